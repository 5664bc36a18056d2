"""Arrows between modules point one way, read from the imports themselves; names and sizes the house
forbids.
"""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "reward_heads", "align_gen")
# The wings of align_gen from the bottom to the top; those of one floor do not import each other,
# but for the hall's files. "pipelines" and "reward_heads" are the two packages beside it.
HALL = {
    "errors",
    "strict",
    "files",
    "locks",
    "distributed",
    "precision",
    "progress",
    "portable",
    "bundled",
    "run_folder",
    "peak_memory",
}
FLOORS = [
    HALL | {"losses", "pipelines", "reward_heads"},
    {"opening"},
    {"galleries", "methods"},
    {"training", "reward_training", "check"},
    {"report"},
    {"bench"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]
HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip",
    "accelerate",
    "peft",
    "pyarrow",
    "xformers",
}
MB = 1_000_000
# Calls that change the disk, by their last name or in full; `open` besides, where its mode writes.
WRITES = {
    ".rename", "copyfile", "copytree", "hardlink_to", "imwrite", "mkdtemp", "mkstemp", "os.open",
    "os.remove", "os.replace", "rmdir", "rmtree", "np.save", "save_file", "save_pretrained",
    "symlink_to", "torch.save", "touch", "truncate", "unlink", "write_bytes", "write_text",
}  # fmt: skip
# Who may: the two files that everything goes through; who fills a folder that one of them, or
# tempfile, has made; and the cache of the user's own.
WRITERS = {
    "align_gen/files.py": "the one way",
    "align_gen/locks.py": "the one lock",
    "align_gen/galleries/beneath.py": "opens to read",
    "align_gen/galleries/media.py": "fills a part",
    "align_gen/training/checkpoint.py": "fills a part",
    "align_gen/training/export.py": "fills a part",
    "align_gen/reward_training/export.py": "fills a part",
    "align_gen/reward_training/train.py": "fills a part",
    "align_gen/bench/rewards.py": "fills a temporary folder",
    "pipelines/exports.py": "fills a part",
    "pipelines/lora_files.py": "fills a temporary folder",
    "pipelines/families/toy.py": "fills a part",
    "reward_heads/backbones/head_folder.py": "fills a part",
    "pipelines/prompt_cache.py": "the user's own cache",
}


@cache
def our_entries() -> tuple[Path, ...]:
    """What is committed or about to be, relative to the root; links count as themselves."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    entries = tuple(Path(name) for name in listed)
    assert {Path("pyproject.toml"), Path("Makefile"), Path("align_gen/__init__.py")} <= set(entries)
    return entries


def our_files() -> list[Path]:
    return [
        path for path in our_entries() if (ROOT / path).is_file() and not (ROOT / path).is_symlink()
    ]


def sources(package: str) -> list[Path]:
    return [path for path in our_files() if path.parts[0] == package and path.suffix == ".py"]


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Every import of a file, wherever it stands, as dotted parts from the top; relative ones
    resolved.

    ``from a import b`` gives (a, b): b may be a module, and where it is not, the arrow to a is seen
    all the same.
    """
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level] if node.level else ()
            start = (*above, *(node.module or "").split(".")) if node.module else above
            yield from ((*start, alias.name) for alias in node.names)


def absolute_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def module_of(path: Path) -> tuple[str, ...]:
    """The dotted parts of a file's module, as align_gen has it: its links lead to the two packages
    beside it.
    """
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "align_gen" else ("align_gen", *parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def modules() -> dict[tuple[str, ...], Path]:
    """Every module of the three packages, and its file."""
    return {module_of(path): path for package in PACKAGES for path in sources(package)}


@cache
def face(package: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Where the names of a package's ``__init__`` come from."""
    path = modules()[package]
    names = imports(path) if path.name == "__init__.py" else iter(())
    return {parts[-1]: as_ours(parts) for parts in names if parts[0] in PACKAGES}


def as_ours(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts if parts[0] == "align_gen" else ("align_gen", *parts)


def as_module(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The module that an imported name is, or stands in; None for other libraries' and a package's
    version.
    """
    if parts[0] not in PACKAGES:
        return None
    ours = as_ours(parts)
    module = next(ours[:end] for end in range(len(ours), 0, -1) if ours[:end] in modules())
    rest = ours[len(module) :]
    if rest and rest[0] in face(module):
        return as_module(face(module)[rest[0]])
    return None if module == ("align_gen",) else module


def arrows() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Which of our modules each module imports; faces (an ``__init__`` whose names resolve on first
    use) left out.
    """
    found = {}
    for module, path in modules().items():
        if path.name != "__init__.py":
            targets = {as_module(parts) for parts in imports(path)}
            found[module] = {
                target for target in targets if target is not None and target != module
            }
    return found


def wing(module: tuple[str, ...]) -> str:
    """The folder or file directly below align_gen; its own ``__init__`` for the package itself."""
    return module[1] if len(module) > 1 else "__init__"


def floor(name: str) -> int:
    [height] = [height for height, names in enumerate(FLOORS) if name in names]
    return height


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import torch.nn as nn", ("torch", "nn")),
        ("from .base import Model", ("align_gen", "methods", "base", "Model")),
        ("from . import base", ("align_gen", "methods", "base")),
        ("from ..engine import finetune", ("align_gen", "engine", "finetune")),
        ("def f():\n    from ... import pipelines", ("pipelines",)),
    ],
)
def test_imports_are_resolved(
    line: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "tree_of", lambda path: ast.parse(line))
    assert list(imports(Path("align_gen/methods/prdp.py"))) == [expected]


def test_the_scan_sees_the_three_packages() -> None:
    seen = {str(path) for package in PACKAGES for path in sources(package)}
    assert seen >= {
        "pipelines/__init__.py",
        "pipelines/base.py",
        "pipelines/families/stable_diffusion.py",
        "reward_heads/__init__.py",
        "reward_heads/heads/clip.py",
        "align_gen/cli.py",
        "align_gen/training/engine.py",
        "align_gen/losses/rdp.py",
        "align_gen/methods/prdp.py",
        "align_gen/report/page.py",
    }


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pipelines", "reward_heads"])
def test_sampling_and_judging_stand_alone(package: str) -> None:
    """They import libraries, and themselves relatively; neither each other nor align_gen, nor by a
    name that only a checkout has.
    """
    found = {path: list(imports(path)) for path in sources(package)}
    assert any(parts[0] == package for every in found.values() for parts in every)
    foreign = {*PACKAGES, "scripts", "tests"} - {package}
    assert not [
        f"{path}: {'.'.join(parts)}"
        for path, every in found.items()
        for parts in every
        if parts[0] in foreign
    ]
    assert not [
        str(path)
        for path in found
        if any(name.split(".")[0] == package for name in absolute_imports(path))
    ]


def test_every_file_stands_in_a_wing() -> None:
    """And every wing has a file: the order below has no name that nothing bears."""
    named = [name for names in FLOORS for name in names]
    assert len(named) == len(set(named))
    assert {wing(module) for module in modules()} == set(named)


def test_arrows_never_point_upward() -> None:
    """To a lower floor, inside a wing, or from one file of the hall to another."""
    found = arrows()
    assert ("align_gen", "losses", "rdp") in found["align_gen", "methods", "prdp"]
    assert ("align_gen", "training", "engine") in found["align_gen", "demo"]
    upward = [
        f"{'.'.join(module)} -> {'.'.join(target)}"
        for module, targets in found.items()
        for target in targets
        if wing(module) != wing(target)
        and not {wing(module), wing(target)} <= HALL
        and floor(wing(target)) >= floor(wing(module))
    ]
    assert not upward


def test_no_file_imports_itself_through_others() -> None:
    """Wherever the import stands, at the top of a file or in a function."""
    order = list(TopologicalSorter(arrows()).static_order())
    engine = order.index(("align_gen", "training", "engine"))
    assert order.index(("align_gen", "losses", "rdp")) < order.index(
        ("align_gen", "methods", "prdp")
    )
    assert engine < order.index(("align_gen", "demo"))


@pytest.mark.slow
def test_there_is_one_way_to_write() -> None:
    """Every call that changes the disk stands in a file of ``WRITERS``, each of which has one."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sources(package):
            calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
            writes = [f"line {call.lineno}" for call in calls if changes_the_disk(call)]
            found |= {str(path): writes} if writes else {}
    assert {path: lines for path, lines in found.items() if path not in WRITERS} == {}
    assert {*WRITERS} == {*found}


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        ("path.write_text(text)", True),
        ("os.replace(a, b)", True),
        ("text.replace(a, b)", False),
        ("open(path, 'ab')", True),
        ("path.open(mode='r+')", True),
        ("path.open('rb')", False),
        ("open(path)", False),
        ("shutil.rmtree(path)", True),
        ("path.rename(other)", True),
        ("rename(name)", False),
    ],
)
def test_a_call_that_changes_the_disk_is_seen(call: str, changes: bool) -> None:
    [found] = [node for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call)]
    assert changes_the_disk(found) == changes


def changes_the_disk(call: ast.Call) -> bool:
    full = ast.unparse(call.func)
    name = full.rpartition(".")[2]
    if name != "open" or full == "os.open":
        # A method alone is `.rename`: a function of that name may be any.
        return not {name, full, full[full.rfind(".") :]}.isdisjoint(WRITES)
    modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
    return any(isinstance(text, str) and {*text} & {*"wax+"} for text in texts if text)


@pytest.mark.slow
def test_scripts_are_used_by_nothing() -> None:
    users = [
        path
        for package in PACKAGES
        for path in sources(package)
        for parts in imports(path)
        if "scripts" in parts
    ]
    assert not users


def test_no_test_imports_another() -> None:
    """What several tests use stands in tests/kits and tests/tiny, which use no test."""
    files = [path for path in sources("tests") if path.name != "conftest.py"]
    assert {"kits", "tiny", "align_gen"} <= {path.parts[1] for path in files}
    helpers = [("tests", "kits"), ("tests", "tiny")]
    assert any(parts[:2] in helpers for path in files for parts in imports(path))
    assert not [
        f"{path}: {'.'.join(parts)}"
        for path in files
        for parts in imports(path)
        if parts[0] == "tests" and parts[:2] not in helpers
    ]


@pytest.mark.parametrize("name", ["align_gen/__init__.py", "align_gen/cli.py"])
def test_the_door_is_light(name: str) -> None:
    """At module level: no library that takes seconds to import, nothing printed."""
    light, names = (ast.FunctionDef, ast.ClassDef), set[str]()
    for node in tree_of(Path(name)).body:
        if isinstance(node, light) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            continue
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or "."} if isinstance(node, ast.ImportFrom) else set()
        calls = [ast.unparse(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        assert "print" not in calls
    assert "typing" in names
    assert not {module.split(".")[0] for module in names} & HEAVY


def test_no_folder_of_code_is_named_as_one_of_diffusers() -> None:
    """diffusers would take a saved component of ours to be its own pipeline of that name."""
    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.submodule_search_locations
    theirs = {
        path.name
        for path in Path(spec.submodule_search_locations[0], "pipelines").iterdir()
        if path.is_dir()
    }
    assert {"flux", "wan", "controlnet"} <= theirs
    ours = {part for package in PACKAGES for path in sources(package) for part in path.parent.parts}
    assert set(PACKAGES) <= ours
    assert not ours & theirs


def test_the_links_are_relative_and_few() -> None:
    """Three folders of the package; and files of emoji-video that are emoji-sd's, so that they are
    kept once.
    """
    links = {
        str(path): str((ROOT / path).readlink())
        for path in our_entries()
        if (ROOT / path).is_symlink()
    }
    shared = {
        path: target
        for path, target in links.items()
        if path.startswith("assets/models/emoji-video/")
    }
    assert links.items() - shared.items() == {
        (f"align_gen/{name}", f"../{name}") for name in ("pipelines", "reward_heads", "assets")
    }
    assert shared and all(
        target == path.replace("assets/models/emoji-video/", "../../emoji-sd/")
        for path, target in shared.items()
    )


def test_no_file_of_code_is_called_utils() -> None:
    assert not [path for path in our_files() if path.name == "utils.py"]


def test_files_stay_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in our_files()}
    assert not {path: size for path, size in sizes.items() if size > 20 * MB}
    assets = [size for path, size in sizes.items() if path.parts[0] == "assets"]
    assert 0 < sum(assets) < 80 * MB
