"""`align-gen recipe new`: what it writes loads, names every key, and costs what a dry run says."""

import json
from pathlib import Path

import pytest
import yaml

from align_gen import methods
from align_gen.commands.options import sections_of
from align_gen.training.recipe import Recipe
from tests.kits.command_line import Cli, mistake


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_methods_recipe_loads(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """And what stands in comments is what holds without them: every default is right."""
    monkeypatch.chdir(tmp_path)
    done = cli("recipe", "new", "mine", "--method", method)
    assert done.code == 0, done.err
    assert "finetune mine.yaml --dry-run" in done.out
    recipe = Recipe.load("mine.yaml")
    assert recipe.run.out == "runs/mine"
    assert recipe.rewards and recipe.eval_rewards

    text = (tmp_path / "mine.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    options = methods.options_of(method)
    for name in (*dict(sections_of(Recipe)), *options.model_fields):
        assert f"{name}:" in text
    known = {*Recipe.model_fields, *options.model_fields}
    for _, section in sections_of(Recipe):
        known |= section.model_fields.keys()
    every = "\n".join(_without_marks(text, known))
    spelled = {key: value for key, value in yaml.safe_load(every).items() if value is not None}
    assert spelled.keys() == set(Recipe.model_fields)
    (tmp_path / "all.yaml").write_text(every)
    assert Recipe.load("all.yaml") == recipe


def _without_marks(text: str, known: set[str]) -> list[str]:
    """The recipe with every key set: `# key:` and `  # key: value` lose their mark."""
    lines = []
    for line in text.splitlines():
        body = line.lstrip()
        key, colon, _ = body.removeprefix("# ").partition(":")
        if body.startswith("# ") and colon and key in known:
            line = line.replace("# ", "", 1)
        lines.append(line)
    return lines


def test_what_is_asked_for_is_set(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--model", "owner/model", "--reward", "blue=mean_hue:hue=240", "--method", "ddpo"]
    assert cli("recipe", "new", "blue.yaml", *asked).code == 0
    recipe = Recipe.load("blue.yaml")
    assert recipe.model.path == "owner/model"
    assert recipe.rewards == {"blue": {"name": "mean_hue", "hue": 240}}
    assert recipe.method.name == "ddpo"


def test_a_new_recipe_passes_a_dry_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("recipe", "new", "mine", "--model", "toy-flow").code == 0
    done = cli("finetune", "mine.yaml", "--dry-run")
    assert done.code == 0, done.err
    assert "trained parameters" in done.out
    plan = json.loads(cli("finetune", "mine.yaml", "--dry-run", "--json").out)
    assert plan["steps"] == 100


def test_a_mistake_writes_nothing_and_replaces_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'prdp'" in mistake(cli("recipe", "new", "mine", "--method", "prdq"))
    assert "nowhere/mine.yaml" in mistake(cli("recipe", "new", "nowhere/mine"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.yaml").write_text("mine")
    assert "is there already" in mistake(cli("recipe", "new", "mine"))
    assert (tmp_path / "mine.yaml").read_text() == "mine"
