"""`align-gen recipe new`: what it writes loads, names every key, and costs what a dry run says."""

import json
import re
import socket
from pathlib import Path

import pytest
import yaml

from align_gen import bundled, methods
from align_gen.commands.options import sections_of
from align_gen.commands.own_defaults import own_defaults
from align_gen.commands.starter import cost_of
from align_gen.methods.batches import Sampling
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


def test_the_next_command_allows_the_code_that_was_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, it runs: nothing has to be added by hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def score(media, prompts):\n    return media.mean((1, 2, 3))\n"
    )
    done = cli("recipe", "new", "own", "--reward", "mine.py:score")
    assert done.out.endswith("finetune own.yaml --dry-run --allow-code\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shipped"),
    [
        ("emoji-sd", "emoji-sd-prdp"),
        ("emoji-flow", "emoji-flow-prdp"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15-prdp"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-prdp"),
    ],
)
def test_a_model_with_a_shipped_recipe_gets_its_settings(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, shipped: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("recipe", "new", "mine", "--model", model)
    assert done.code == 0, done.err
    mine, theirs = Recipe.load("mine.yaml"), Recipe.load(shipped)
    assert mine.sampling == theirs.sampling
    assert mine.memory == theirs.memory
    assert mine.model.dtype == theirs.model.dtype
    assert mine.optim.micro_batch == theirs.optim.micro_batch
    assert mine.evaluate.num_inference_steps == theirs.evaluate.num_inference_steps
    assert f"those of the recipe {shipped}." in (tmp_path / "mine.yaml").read_text()


@pytest.mark.slow
def test_a_bundled_video_model_gets_the_settings_of_its_pictures(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """emoji-video is emoji-sd with motion, for 8 frames: its batches are an eighth as large."""
    monkeypatch.chdir(tmp_path)
    assert cli("recipe", "new", "mine", "--model", "emoji-video").code == 0
    mine, pictures = Recipe.load("mine.yaml"), Recipe.load("emoji-sd-prdp")
    assert mine.sampling == pictures.sampling.model_copy(update={"num_frames": 8})
    assert mine.optim.micro_batch == pictures.optim.micro_batch // 8


@pytest.mark.slow
def test_a_published_model_without_a_recipe_gets_the_defaults_of_its_pipeline(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sana's paper and card: 1024 x 1024, 20 steps, guidance 4.5. Nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    name = "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers"
    assert cli("recipe", "new", "mine", "--model", name).code == 0
    mine = Recipe.load("mine.yaml")
    assert (mine.sampling.height, mine.sampling.width) == (1024, 1024)
    assert (mine.sampling.num_inference_steps, mine.sampling.guidance_scale) == (20, 4.5)
    assert (mine.model.dtype, mine.memory.checkpointing) == ("bf16", True)
    assert "the defaults of diffusers' SanaPipeline" in (tmp_path / "mine.yaml").read_text()


def test_a_model_of_which_nothing_is_here_gets_general_defaults(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the recipe says so; the hub is not asked, whether there is a network or not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "create_connection", _refuse)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    done = cli("recipe", "new", "mine", "--model", "owner/unheard-of")
    assert done.code == 0, done.err
    mine = Recipe.load("mine.yaml")
    assert mine.sampling == Sampling()
    assert "are general defaults, not its own" in (tmp_path / "mine.yaml").read_text().replace(
        "\n#", ""
    )


def _refuse(*_: object) -> None:
    raise AssertionError("the network was asked")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji-sd-prdp", "emoji-flow-dpo", "sd15-ddpo", "sdxl-prdp"])
def test_the_cost_is_what_the_shipped_recipe_says(name: str) -> None:
    """The comments of shipped recipes were worked out apart from this code."""
    recipe = Recipe.load(name)
    text = (bundled.RECIPES / f"{name}.yaml").read_text().replace("\n#", "")
    step, backward = re.search(r"([\d,]+) a step, ([\d,]+) of them", text).groups()  # type: ignore[union-attr]
    galleries = re.search(r"and ([\d,]+) for", text)[1]  # type: ignore[index]
    cost = cost_of(recipe, own_defaults(recipe.model.path, recipe.method.name))
    assert cost.startswith(f"Rows through the denoiser: {step} a step, {backward} of them backward")
    assert f"and {galleries} for " in cost


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
    assert "want a folder with model_index.json" in mistake(
        cli("recipe", "new", "mine", "--model", "emoji-sdd")
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.yaml").write_text("mine")
    assert "is there already" in mistake(cli("recipe", "new", "mine"))
    assert (tmp_path / "mine.yaml").read_text() == "mine"
