"""`align-gen finetune`: each mistake in a recipe as one line, dry runs, failures, interruptions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align_gen.training.recipe import Recipe
from tests.kits.command_line import Cli, mistake

# What to --set or where to write, and what the line must name. {here} is the recipe's folder.
MISTAKES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "unknown key": (["optim.lrr=1"], ["optim.lrr", "did you mean 'lr'"]),
    "wrong type": (["run.steps=many"], ["run.steps", "integer", "'many'"]),
    "missing model": (["model.path={here}/nowhere"], ["/nowhere"]),
    "folder that is no pipeline": (["model.path={here}/folder"], ["/folder", "model_index.json"]),
    "file that is no pipeline": (["model.path={here}/file"], ["/file", "model_index.json"]),
    "unknown pipeline class": (
        ["model.path={here}/other"],
        ["SoundPipeline", "StableDiffusionPipeline"],
    ),
    "torn pipeline": (["model.path={here}/torn"], ["/torn"]),
    "unknown reward": (["rewards.shine=1"], ["'shine'", "mean_hue"]),
    "unknown held-out reward": (["eval_rewards.shine=1"], ["'shine'", "mean_hue"]),
    "unknown option of a reward": (["rewards.mean_hue.heu=1"], ["mean_hue", "heu"]),
    "no clip folder": (["rewards.clip={{path: {here}/folder}}"], ["/folder", "open_clip"]),
    "unknown method": (["method.name=dpoo"], ["'dpoo'", "prdp"]),
    "missing context": (["rewards={{'{here}/mine.py:near': 1}}"], ["near", "'control'"]),
    "one image a prompt": (["method.images_per_prompt=1"], ["method.images_per_prompt", "2"]),
    "missing prompts": (["prompts.train={here}/nowhere.txt"], ["/nowhere.txt"]),
    "empty prompts": (["prompts.train={here}/empty.txt"], ["/empty.txt", "no prompts"]),
    "overlapping prompts": (["prompts.eval={here}/train.txt"], ["overlap", "'a bird'"]),
    "size": (["sampling.height=17"], ["17"]),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_a_mistake_is_one_line(cli: Cli, recipe: Path, tmp_path: Path, case: str) -> None:
    settings, named = MISTAKES[case]
    before = sorted(tmp_path.rglob("*"))
    options = [part for text in settings for part in ("--set", text.format(here=tmp_path))]
    line = mistake(cli("finetune", recipe, "--out", tmp_path / "run", *options))
    assert all(word in line for word in named), line
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


@pytest.mark.slow
@pytest.mark.parametrize("out", ["file/run", "file", "/proc/align-gen-run"])
def test_an_unwritable_out_is_one_line(cli: Cli, recipe: Path, tmp_path: Path, out: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    line = mistake(cli("finetune", recipe, "--out", tmp_path / out))
    assert out in line and sorted(tmp_path.rglob("*")) == before


def test_a_run_directory_of_another_recipe_is_one_line(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(Recipe.load(recipe).to_yaml())
    line = mistake(cli("finetune", recipe, "--out", tmp_path / "run", "--set", "optim.lr=2e-4"))
    assert "another recipe" in line and "-lr: 0.0001; +lr: 0.0002" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_no_such_recipe_is_one_line(cli: Cli) -> None:
    assert "'emoji-sd-prdp'" in mistake(cli("finetune", "nowhere.yaml"))


@pytest.mark.slow
def test_a_dry_run_counts_and_writes_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    """2 pictures x 2 steps, doubled by guidance: 8 a pass; K = 2: 5 passes forward, 2 of them
    backward.
    """
    done = cli("finetune", recipe, "--dry-run", "--out", tmp_path / "run", "--set", "optim.lr=1e-4")
    assert done.code == 0, done.err
    assert "lr: 0.0001" in done.out and "40 rows forward, 16 of them backward" in done.out
    assert "trained parameters" in done.out and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_failing_reward_is_one_line_and_exit_1(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    """Good when it is tried, and NaN later: that names the head, and where to look."""
    (tmp_path / "sour.py").write_text(
        "calls = []\n\n\n"
        "def sour(media, prompts):\n"
        "    calls.append(media)\n"
        "    return [0.0 if len(calls) == 1 else float('nan')] * len(media)\n"
    )
    done = cli(
        "finetune",
        recipe,
        "--out",
        tmp_path / "run",
        "--set",
        f"rewards={{'{tmp_path}/sour.py:sour': 1}}",
    )
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "goes on" not in last  # there is no checkpoint
    assert last.startswith("align-gen: RewardFailure: ") and "sour" in last and "--debug" in last
    assert "Traceback" not in done.err


CODE = """\
from pathlib import Path

Path("{mark}").touch()


def sour(media, prompts):
    return [float("nan")] * len(media)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_a_recipes_code_runs_only_where_it_is_allowed(
    cli: Cli, recipe: Path, tmp_path: Path, dry: bool
) -> None:
    """Not imported even, without leave; a dry run imports nothing with it."""
    mark = tmp_path / "sprung"
    (tmp_path / "sour.py").write_text(CODE.format(mark=mark))
    recipe.write_text(
        recipe.read_text().replace("{mean_hue: {hue: 120}}", "{x: {name: sour.py:sour}}")
    )
    asked = ["finetune", recipe, "--out", tmp_path / "run", *(["--dry-run"] if dry else [])]
    line = mistake(cli(*asked))
    told = f"{recipe}: rewards.x.name: '{tmp_path}/sour.py:sour' runs code; want --allow-code"
    assert told in line and not mark.exists() and not (tmp_path / "run").exists()

    # With leave it is the reward that fails, and no longer the recipe.
    allowed = cli(*asked, "--allow-code")
    assert "runs code" not in allowed.err
    assert (allowed.code == 0) == dry and mark.exists() == (not dry), allowed.err


def test_debug_shows_where(cli: Cli, recipe: Path) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        cli("finetune", recipe, "--set", "optim.lrr=1", "--debug")


def test_an_interruption_says_how_to_go_on_where_there_is_a_checkpoint(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("align_gen.training.engine.finetune", interrupted)
    done = cli("finetune", recipe, "--out", tmp_path / "run")
    assert (done.code, done.err) == (130, "align-gen: interrupted\n")
    (tmp_path / "run/checkpoints/step-000001").mkdir(parents=True)
    done = cli("finetune", recipe, "--out", tmp_path / "run")
    assert done.code == 130 and "the same command goes on" in done.err


@pytest.mark.slow
def test_a_finished_run_says_that_nothing_was_run(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    first = cli("finetune", recipe, "--out", tmp_path / "run")
    assert first.code == 0, first.err
    assert "nothing was run" not in first.out
    again = cli("finetune", recipe, "--out", tmp_path / "run")
    assert (
        again.out == f"{tmp_path}/run: this run was finished already; nothing was run\n{first.out}"
    )
