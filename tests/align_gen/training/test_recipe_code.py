"""Code that a recipe's file names is asked for; what its reader names is the reader's own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from align_gen.errors import UserError
from align_gen.training.recipe import Recipe

BASE: dict[str, Any] = {
    "model": {"path": "emoji-sd"},
    "method": {"name": "prdp"},
    "prompts": {"train": "emoji-train", "eval": "emoji-heldout"},
    "rewards": {"mean_hue": 1.0},
}
TRAP = {"name": "subprocess:Popen", "args": ["touch", "sprung"]}
# What the file has besides, and the key and the name that are told.
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "a program": ({"rewards": {"x": TRAP}}, "rewards.x.name: 'subprocess:Popen'"),
    "a file": ({"rewards": {"x": {"name": "my.py:f"}}}, "rewards.x.name: 'my.py:f'"),
    "a key": ({"rewards": {"my.py:f": 1.0}}, "rewards.my.py:f: 'my.py:f'"),
    "held out": ({"eval_rewards": {"x": TRAP}}, "eval_rewards.x.name: 'subprocess:Popen'"),
    "of weight 0": ({"rewards": {"mean_hue": 1, "a:b": 0}}, "rewards.a:b: 'a:b'"),
    "in views": ({"rewards": {"v": {"name": "views", "head": "a:b"}}}, "rewards.v.head: 'a:b'"),
    "a member": (
        {"rewards": {"ensemble": {"members": ["colour", {"name": "a:b"}]}}},
        "rewards.ensemble.members.1: 'a:b'",
    ),
}


def written(folder: Path, **sections: Any) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**BASE, **sections}))
    return file


@pytest.mark.parametrize("case", ASKED)
def test_code_in_a_file_is_asked_for(tmp_path: Path, case: str) -> None:
    sections, told = ASKED[case]
    file = written(tmp_path, **sections)
    with pytest.raises(UserError) as error:
        Recipe.load(file)
    assert str(error.value).startswith(f"{file}: {told} runs code; want --allow-code (")
    assert "\n" not in str(error.value)
    allowed = Recipe.load(file, allow_code=True)
    # An object of Python's is its maker's own, however it came about.
    assert Recipe.parse(allowed.model_dump()) == allowed == allowed.replace(run={"steps": 100})


def test_rewards_of_the_table_are_never_asked_for(tmp_path: Path) -> None:
    rewards = {"red": {"name": "mean_hue", "hue": 0.0}, "clip": {"path": "C:/x", "goal": "a: b"}}
    assert Recipe.load(written(tmp_path, rewards=rewards)).rewards == rewards


@pytest.mark.parametrize(
    "override",
    ["rewards.x.name=my.py:f", "rewards={'my.py:f': 1}", "eval_rewards.y={name: 'my.py:f'}"],
)
def test_what_the_command_line_names_is_the_users_own(tmp_path: Path, override: str) -> None:
    recipe = Recipe.load(written(tmp_path), [override])
    assert "my.py:f" in str((recipe.rewards, recipe.eval_rewards))


def test_what_the_command_line_replaces_is_not_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, rewards={"x": TRAP, "mean_hue": 1.0})
    assert Recipe.load(file, ["rewards={mean_hue: 1.0}"]).rewards == {"mean_hue": 1.0}
    replaced = Recipe.load(file, ["rewards.x={name: colour}"])
    assert replaced.rewards["x"] == {"name": "colour"}
    # Another key of the section does not vouch for the file's own.
    with pytest.raises(UserError, match=r"rewards\.x\.name: .* runs code"):
        Recipe.load(file, ["rewards.mine.name=my.py:f", "rewards.x.weight=2"])


def test_a_file_beside_the_recipe_is_told_as_the_one_that_would_run(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("")
    with pytest.raises(UserError, match=rf"rewards\.x\.name: '{tmp_path}/my\.py:f' runs code"):
        Recipe.load(written(tmp_path, rewards={"x": {"name": "my.py:f"}}))
