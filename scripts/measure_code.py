"""Measure how the code reads, as a Markdown table: sizes, density, comments, names a method needs.

    python scripts/measure_code.py [PATH …] [--at COMMIT] [--check]

PATHs narrow the table to some files and folders. ``--check`` exits 1 when a target is missed.
Lines are counted without blank ones, sizes of files and functions with them. Nodes are all of
``ast.walk``, so names, their contexts and operators count each for itself.
"""

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("align_gen", "pipelines", "reward_heads")
LINKED = PACKAGES[1:]  # align_gen/pipelines is a link to pipelines: one module, two spellings
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ROOT = Path(__file__).resolve().parent.parent


class Source:
    """One file: its text, and what is read from it."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.filled = [line for line in self.lines if line.strip()]
        self.tree = ast.parse(text, path)
        self.nodes = list(ast.walk(self.tree))
        self.functions = [node for node in self.nodes if isinstance(node, FUNCTIONS)]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments = [token for token in tokens if token.type == tokenize.COMMENT]

    @cached_property
    def module(self) -> tuple[str, ...]:
        """The dotted parts of the module's name, from align_gen."""
        parts = self.path.removesuffix(".py").removesuffix("/__init__").split("/")
        return tuple(parts) if parts[0] not in LINKED else ("align_gen", *parts)

    def imports(self, everywhere: bool = False) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is imported from this project: (module, name); "" where a module is imported whole.

        ``everywhere``: inside functions and under ``TYPE_CHECKING`` too.
        """
        is_package = self.path.endswith("/__init__.py")
        for node in self.nodes if everywhere else self.tree.body:
            if isinstance(node, ast.Import):
                modules = [tuple(alias.name.split(".")) for alias in node.names]
                yield from ((module, "") for module in modules if module[0] == "align_gen")
            elif isinstance(node, ast.ImportFrom):
                above = len(self.module) - node.level + is_package
                start = self.module[:above] if node.level else ()
                module = (*start, *(node.module.split(".") if node.module else ()))
                names = node.names if module[0] == "align_gen" else []
                yield from ((module, alias.name) for alias in names)

    def is_step(self) -> bool:
        """Whether the file holds an algorithm: align_gen/methods/*.py with a ``step``."""
        names = {node.name for node in self.tree.body if isinstance(node, FUNCTIONS)}
        return self.path.startswith("align_gen/methods/") and "step" in names


# --- the figures ----------------------------------------------------------------------------------


def quantile(values: Iterable[int], share: float) -> int:
    """The value below which ``share`` of all lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def spread(values: Sequence[int]) -> str:
    """Median / 90th percentile / maximum."""
    return " / ".join(str(quantile(values, share)) for share in (0.5, 0.9, 1.0))


def functions(sources: Sequence[Source]) -> list[int]:
    """Lines of each function, from ``def`` to its end."""
    found = [node for source in sources for node in source.functions]
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in found]


def typed(sources: Sequence[Source]) -> float:
    """Share of annotated parameters, self and cls aside."""
    parameters = []
    for source in sources:
        for node in source.functions:
            star = [one for one in (node.args.vararg, node.args.kwarg) if one]
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *star]
            parameters += [one for one in every if one.arg not in ("self", "cls")]
    annotated = [one for one in parameters if one.annotation]
    return len(annotated) / max(1, len(parameters))


def documented(sources: Sequence[Source]) -> float:
    """Share of functions with a docstring, among those without a leading underscore."""
    named = [node for source in sources for node in source.functions]
    public = [node for node in named if not node.name.startswith("_")]
    return sum(1 for node in public if ast.get_docstring(node)) / max(1, len(public))


def graph(sources: Sequence[Source]) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """The modules, and which of them each imports while it is being imported."""
    modules = {source.module for source in sources}
    arrows = {}
    for source in sources:
        named = [
            (*module, name) if (*module, name) in modules else module
            for module, name in source.imports()
        ]
        arrows[source.module] = {one for one in named if one in modules} - {source.module}
    return arrows


def depth(sources: Sequence[Source]) -> str:
    """The longest chain of imports, in files; and the files of a circle, if there is one."""
    arrows = graph(sources)
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        names = [".".join(module[1:]) for module in error.args[1]]
        return "circle: " + " -> ".join(names)
    height: dict[tuple[str, ...], int] = {}
    for module in order:
        height[module] = 1 + max((height[one] for one in arrows[module]), default=0)
    return f"{max(height.values(), default=0)}, 0"


def names_per_method(sources: Sequence[Source]) -> dict[str, int]:
    """How many names of this project each method's file imports."""
    methods = [source for source in sources if source.is_step()]
    return {Path(one.path).stem: len(set(one.imports(everywhere=True))) for one in methods}


# --- the table ------------------------------------------------------------------------------------


class Table:
    """The figures of some files."""

    def __init__(self, sources: Sequence[Source]) -> None:
        filled = [line for source in sources for line in source.filled]
        comments = [token for source in sources for token in source.comments]
        full = sum(1 for token in comments if token.line.lstrip().startswith("#"))
        ternaries = [
            node for source in sources for node in source.nodes if isinstance(node, ast.IfExp)
        ]
        count = max(1, len(filled))
        self.sources = sources
        self.files = [len(source.lines) for source in sources]
        self.functions = functions(sources)
        self.width = [len(line) for line in filled]
        self.nodes = sum(len(source.nodes) for source in sources) / count
        self.full = 100 * full / count
        self.trailing = 100 * (len(comments) - full) / count
        self.ternaries = 1000 * len(ternaries) / count
        self.names = names_per_method(sources)

    def rows(self) -> dict[str, str]:
        """Each figure, written out."""
        methods = ", ".join(f"{name} {count}" for name, count in sorted(self.names.items()))
        return {
            "files": str(len(self.files)),
            "lines": f"{sum(self.files):,}",
            "lines a function, median / p90 / max": spread(self.functions),
            "lines a file, median / p90 / max": spread(self.files),
            "columns a line, median / p90 / max": spread(self.width),
            "typed parameters": f"{typed(self.sources):.0%}",
            "documented public functions": f"{documented(self.sources):.0%}",
            "depth of imports, circles": depth(self.sources),
            "syntax nodes a line": f"{self.nodes:.2f}",
            "comments, full line + trailing": f"{self.full:.1f} % + {self.trailing:.1f} %",
            "ternaries per 1000 lines": f"{self.ternaries:.0f}",
            "project names a method, median": f"{quantile(self.names.values(), 0.5)} ({methods})",
        }

    def missed(self) -> list[str]:
        """The targets that are missed, with what stands beside each."""
        size = quantile(self.files, 0.9)
        length = quantile(self.functions, 0.9)
        width = quantile(self.width, 0.9)
        names = quantile(self.names.values(), 0.5)
        targets = {
            f"files p90 at most 250 lines: {size}": size <= 250,
            f"no file over 330 lines: {max(self.files)}": max(self.files) <= 330,
            f"functions p90 at most 30 lines: {length}": length <= 30,
            f"lines p90 at most 95 columns: {width}": width <= 95,
            f"no line over 100 columns: {max(self.width)}": max(self.width) <= 100,
            f"nodes a line at most 8: {self.nodes:.2f}": self.nodes <= 8,
            f"full-line comments at least 3 %: {self.full:.2f}": self.full >= 3,
            f"a method at 12 names: {names}": names <= 12,
        }
        return [target for target, met in targets.items() if not met]


# --- the checkout ---------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    """What git answers, run in the checkout."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def sources_of(paths: Sequence[str], commit: str | None) -> list[Source]:
    """The tracked Python files under the paths, as they are on disk or were at a commit."""
    listed = git("ls-tree", "-r", "--name-only", commit) if commit else git("ls-files")
    files = [name for name in listed.splitlines() if name.endswith(".py")]
    files = [name for name in files if any(is_under(name, path) for path in paths)]
    if commit:
        return [Source(name, git("show", f"{commit}:{name}")) for name in files]
    on_disk = [name for name in files if (ROOT / name).is_file()]
    return [Source(name, (ROOT / name).read_text(encoding="utf-8")) for name in on_disk]


def is_under(name: str, path: str) -> bool:
    """Whether a file is the path or lies under it."""
    return name == path or name.startswith(path.rstrip("/") + "/")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=PACKAGES, help="files, folders; relative to it")
    parser.add_argument(
        "--at", metavar="COMMIT", help="of this commit instead of the files on disk"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    args = parser.parse_args()
    sources = sources_of(args.paths, args.at)
    if not sources:
        sys.exit(f"no tracked Python file under {', '.join(args.paths)}")
    table = Table(sources)
    print("| | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in table.rows().items()))
    missed = table.missed()
    if args.check and missed:
        sys.exit("\nmissed:\n" + "\n".join(missed))


if __name__ == "__main__":
    main()
