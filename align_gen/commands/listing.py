"""`align-gen list`: what can be named, a sentence each, and the options of a method or a reward."""

import ast
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .. import bundled
from ..errors import UserError
from .arguments import Json
from .options import Option, options_of_model, options_of_reward
from .tables import Column, print_table

EXAMPLE = "align-gen list rewards"
OPTIONS = ("name", "type", "default", "bounds", "unit", "description")
ONE = ("method", "reward")  # that are listed by name, option by option
# A full stop, but that of "et al." or "eq.", before a capital letter.
SENTENCE_END = re.compile(r"(?<!\bal)(?<!\beq)\. (?=[A-Z`])")

# What a list of prompts is for, by the end of its name.
PURPOSES = {
    "train": " to train on",
    "heldout": " to measure with",
    "things": " to recognise pictures by",
}

Row = dict[str, str]  # with "name", "description" and, where they differ, "kind"


def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="rewards, methods, models, recipes, prompts or assets; "
            "method NAME or reward NAME for its options."
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="With method or reward: which.")] = None,
    as_json: Json = False,
) -> None:
    """What can be named: rewards, methods, models, recipes and prompts, or one's options."""
    if what not in (*TABLES, *ONE):
        raise UserError(f"list {what!r}: have {sorted((*TABLES, *ONE))}")
    # "list reward" alone is most often a misspelt "list rewards".
    if what in ONE and name is None:
        raise UserError(f"list {what}: want a name; align-gen list {what}s has them")
    if what in TABLES and name is not None:
        raise UserError(f"list {what} {name}: want no name; method and reward take one")

    # One name's options below its sentence, or every name of a table.
    if name is not None:
        options = method_options(name) if what == "method" else options_of_reward(name)
        sentences = {row["name"]: row["description"] for row in TABLES[f"{what}s"]()}
        if not as_json:
            print(f"{sentences[name]}.")
        _print_options(options, as_json)
        return
    rows = TABLES[what]()
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    _print_names(rows)


def models() -> list[Row]:
    """Bundled models, generators first, with the headline of each one's card."""
    rows = []
    for kind, names in (("generator", bundled.generators()), ("CLIP", bundled.clips())):
        for name in names:
            title = _title_of(bundled.MODELS / name / "README.md")
            rows.append({"name": name, "kind": kind, "description": title})
    return rows


def prompts() -> list[Row]:
    """Bundled prompt lists: how many prompts, what for, and the first one."""
    rows = []
    for name in bundled.prompts():
        lines = (bundled.PROMPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        first = json.loads(lines[0])["prompt"]
        purpose = PURPOSES.get(name.rpartition("-")[2], "")
        text = f"{len(lines)} prompts{purpose}, the first {first!r}"
        rows.append({"name": name, "description": text})
    return rows


def recipes() -> list[Row]:
    """Bundled recipes, with the comment in each one's first line."""
    rows = []
    for name in bundled.recipes():
        text = (bundled.RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        first = text.split("\n", 1)[0]
        comment = first.lstrip("# ").rstrip() if first.startswith("#") else ""
        rows.append({"name": name, "description": comment})
    return rows


def methods() -> list[Row]:
    """Methods, by the headline of each one's module."""
    from ..methods import METHODS

    rows = []
    for name in sorted(METHODS):
        rows.append({"name": name, "description": headline(f"align_gen.methods.{name}")})
    return rows


def rewards() -> list[Row]:
    """Reward heads, by the headline of each one's class."""
    from ..reward_heads.registry import HEADS

    rows = []
    for name in sorted(HEADS):
        module, attribute = HEADS[name].split(":")
        text = headline(f"align_gen.reward_heads.{module}", attribute)
        rows.append({"name": name, "description": text})
    return rows


def assets() -> list[Row]:
    """Everything that is bundled with weights or prompts."""
    return models() + [{**row, "kind": "prompts"} for row in prompts()]


TABLES: dict[str, Callable[[], list[Row]]] = {
    "rewards": rewards,
    "methods": methods,
    "models": models,
    "recipes": recipes,
    "prompts": prompts,
    "assets": assets,
}


def method_options(name: str) -> list[Option]:
    """The options of a method.

    Raises:
        UserError: no such method; the message lists those that exist.
    """
    from .. import methods as package

    if name not in package.METHODS:
        raise UserError(f"no method {name!r}; have {sorted(package.METHODS)}")
    return options_of_model(package.options_of(name))


def method_kind(name: str) -> str:
    """What a method of that name learns from by default: prompts, pairs or media."""
    from .. import methods as package

    method_options(name)  # refuses a name that is none
    options = package.options_of(name).model_validate({"name": name})
    return str(options.batch_kind())


def headline(module: str, attribute: str | None = None) -> str:
    """The first sentence of a module's docstring, or of a class in it, read without importing."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    # Importing every method or head to read one sentence would take half a minute.
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node: ast.Module | ast.ClassDef | ast.FunctionDef = tree
    for child in tree.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name == attribute:
            node = child
    return first_sentence(ast.get_docstring(node) or "")


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, without its full stop."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return SENTENCE_END.split(paragraph)[0].rstrip(".").replace("``", "`")


def _title_of(card: Path) -> str:
    """What a model card's heading says after the model's name."""
    for line in card.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.partition(": ")[2]
    return ""


def _print_names(rows: list[Row]) -> None:
    """A line each, aligned, without a heading: programs read the first word."""
    width = max((len(row["name"]) for row in rows), default=0)
    kinds = max((len(row.get("kind", "")) for row in rows), default=0)
    for row in rows:
        words = [row["name"].ljust(width), row.get("kind", "").ljust(kinds), row["description"]]
        print("  ".join(word for word in words if word).rstrip())


def _print_options(options: list[Option], as_json: bool) -> None:
    rows = [option.json() for option in options]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        print("It has no options.")
        return
    # A column that is empty throughout only widens the table.
    shown = [name for name in OPTIONS if any(row[name] for row in rows)]
    print_table([Column(name) for name in shown], [[row[key] for key in shown] for row in rows])
