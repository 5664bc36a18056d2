"""docs/recipe.md is what the models say: every key of every section and method."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from align_gen import methods
from align_gen.commands.options import model_in
from align_gen.training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "scripts" / "write_recipe.py")
PAGE = ROOT / "docs" / "recipe.md"


def test_the_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["write_recipe.py", "--check"])
    runpy.run_path(SCRIPT, run_name="__main__")


def test_a_page_that_drifted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a sentence that says how to mend it."""
    main = runpy.run_path(SCRIPT)["main"]
    main.__globals__["PAGE"] = tmp_path / "recipe.md"
    monkeypatch.setattr(sys, "argv", ["write_recipe.py", "--check"])
    for drift in (None, PAGE.read_text(encoding="utf-8") + "And more.\n"):
        if drift is not None:
            (tmp_path / "recipe.md").write_text(drift, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"out of date: python scripts/write_recipe.py"):
            main()


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner = model_in(field.annotation)
        keys += [] if inner is None else keys_of(inner, f"{prefix}{name}.")
    return keys


def chapter(text: str, heading: str) -> str:
    """From one heading to the next of its level or above."""
    level = heading.index(" ")
    _, _, rest = text.partition(f"\n{heading}\n")
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def test_every_key_has_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    plain = ("method", "rewards", "eval_rewards")
    for name, field in Recipe.model_fields.items():
        part = chapter(text, f"## {name}")
        assert f"```yaml\n{name}:" in part
        if name not in plain:
            model: Any = model_in(field.annotation)
            found = re.findall(r"^\| `([\w.]+)`", part, re.MULTILINE)
            assert sorted(found) == sorted(keys_of(model))
    for name in methods.METHODS:
        part = chapter(text, f"### {name}")
        expected = list(methods.load(name).Options.model_fields)
        assert re.findall(r"^\| `(\w+)`", part, re.MULTILINE) == expected
