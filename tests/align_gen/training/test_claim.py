"""A folder belongs to one recipe: who may go on in it, and who is refused."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from align_gen import Recipe, finetune
from align_gen.errors import UserError
from align_gen.locks import beside
from align_gen.run_folder import RunFolder
from align_gen.training.claim import claim, require_same_recipe
from align_gen.training.engine import Run
from tests.kits.runs import (
    Stopped,
    digests,
    lines,
    picture_digests,
    same,
    stop_at,
    weights,
)

# --- the same recipe ------------------------------------------------------------------------------


@pytest.mark.slow
def test_called_again_it_returns_what_is_there(finished: Run, recipe: Recipe) -> None:
    kept, heard = digests(finished.folder), []
    again = finetune(recipe, finished.folder, progress=lambda phase, *rest: heard.append(phase))
    assert not heard  # neither a training step nor a picture
    assert again.metrics == finished.metrics and again.denoiser_calls == finished.denoiser_calls
    assert again.after.heads == finished.after.heads
    after = digests(finished.folder)
    assert {name: after.get(name) for name in kept if "export" not in name} == {
        name: kept[name] for name in kept if "export" not in name
    }


@pytest.mark.slow
def test_a_torn_line_of_metrics_is_dropped(recipe: Recipe, tmp_path: Path) -> None:
    """A kill in the middle of a write: the line is of a step that will be repeated."""
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path, progress=stop_at(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    finetune(recipe, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 2, 3, 3]


@pytest.mark.slow
def test_what_a_kill_left_beside_the_recipe_does_not_lock_the_folder(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A kill while recipe.yaml was being written leaves only its part; the same command must
    go on.
    """
    (tmp_path / ".recipe.yaml.0123456789abcdef.part").write_text("model:")
    finetune(recipe.replace(run={"steps": 1}), tmp_path)
    assert (tmp_path / "samples/final/scores.parquet").is_file()


# --- longer, and eased ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps(
    finished: Run, recipe: Recipe, tmp_path: Path
) -> None:
    """One step more than a whole run of fewer ends as the whole run does, to the last bit.

    What was drawn at the first end is kept as a gallery on the way.
    """
    steps = recipe.run.steps
    short = finetune(recipe.replace(run={"steps": steps - 1}), tmp_path)
    assert short.steps_taken == steps - 1
    longer = finetune(recipe, tmp_path)
    assert longer.steps_taken == 1
    assert same(weights(tmp_path), weights(finished.folder))
    ends = [
        {name: digest for name, digest in picture_digests(run).items() if "final" in name}
        for run in (tmp_path, finished.folder)
    ]
    assert ends[0] == ends[1] and ends[0]
    assert (tmp_path / f"samples/step-{steps - 1:06d}/scores.parquet").is_file()
    with pytest.raises(UserError, match=rf"run\.steps: this run is at step {steps}; want as many"):
        finetune(recipe.replace(run={"steps": steps - 1}), tmp_path)


@pytest.mark.slow
def test_what_bounds_memory_or_logs_may_change(recipe: Recipe, tmp_path: Path) -> None:
    """Stopped, and gone on with smaller calls and other checkpoints; a learning rate may not."""
    two = recipe.replace(run={"steps": 2})
    with pytest.raises(Stopped):
        finetune(two, tmp_path, progress=stop_at(2))
    with pytest.raises(UserError, match="want another --out"):
        finetune(two.replace(optim={"lr": 0.5}), tmp_path)
    eased = two.replace(
        optim={"micro_batch": 1},
        run={"save_every": 2},
        evaluate={"batch_size": 1},
        memory={"checkpointing": True},
    )
    run = finetune(eased, tmp_path)
    assert run.steps_taken == 1
    assert Recipe.load(tmp_path / "recipe.yaml") == eased


# --- one process at a time ------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_at_once_the_second_is_told_the_first(recipe: Recipe, tmp_path: Path) -> None:
    """The second comes from inside of the first, at its first training step."""
    told: list[str] = []

    def second(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        if phase == "train" and not told:
            with pytest.raises(UserError) as error:
                finetune(recipe, tmp_path / "run")
            told.append(str(error.value))

    short = recipe.replace(run={"steps": 1}, evaluate={"every": 0})
    finetune(short, tmp_path / "run", progress=second)
    assert f"run: is being written by process {os.getpid()} on" in told[0]
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1, 1]
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.slow
def test_a_lock_that_a_kill_left_is_nothing(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"process 1 on elsewhere\n")
    finetune(recipe.replace(run={"steps": 1}, evaluate={"every": 0}), tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_kill_at_any_write_of_a_claim_leaves_a_folder_to_go_on_in(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there after each rename is a place for the same recipe."""
    folder = RunFolder(tmp_path / "run")
    replace = os.replace
    seen: list[str] = []

    def looked_after(*names: Any) -> None:
        replace(*names)
        require_same_recipe(folder, recipe)
        seen.append(Path(names[1]).name)

    monkeypatch.setattr(os, "replace", looked_after)
    claim(folder, recipe, {"files": {}, "rewards": {}}, Accelerator(cpu=True))
    assert seen == ["recipe.yaml", "inputs.json"]


def test_a_mistake_leaves_no_folder_behind(recipe: Recipe, tmp_path: Path) -> None:
    wrong = recipe.replace(prompts={"eval": str(tmp_path / "nothing.txt")})
    with pytest.raises(UserError, match="no such file"):
        finetune(wrong, tmp_path / "a" / "b")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_recipe_that_is_deleted_midway_is_written_again(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def delete(phase: str, done: int, total: int, numbers: Mapping[str, Any]) -> None:
        if phase == "train" and done == 1:
            (run / "recipe.yaml").unlink()
        if phase == "train" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        finetune(recipe, run, progress=delete)
    assert (run / "recipe.yaml").read_text() == recipe.to_yaml()


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "before",
        "metrics.jsonl",
        "state.json",
        "samples/final",
        "export/link",
        "mine",
    ],
)
def test_a_run_in_which_a_link_stands_is_refused(
    finished: Run, recipe: Recipe, tmp_path: Path, name: str
) -> None:
    """It may have come from someone else, and lead anywhere: nothing is written or removed."""
    run = shutil.copytree(finished.folder, tmp_path / "run")
    there = run / name
    canary = tmp_path / "canary"
    if there.exists():
        os.rename(there, canary)
    else:
        canary.write_text("mine")
    there.symlink_to(canary)
    kept = digests(tmp_path)
    with pytest.raises(UserError, match=rf"{name}: is a link"):
        finetune(recipe, run)
    assert digests(tmp_path) == kept


# --- what decides a run besides its recipe --------------------------------------------------------

REWARD = """
from align_gen.reward_heads import RewardHead

class Green(RewardHead):
    def __call__(self, media, prompts, **context):
        return media[:, 1].mean((1, 2))

    def provenance(self):
        return {**super().provenance(), "source_sha256": "SUM"}
"""


@pytest.fixture(scope="module")
def began(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A finished run of one step with a reward of the user's own; only to be read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "my.py").write_text(REWARD)
    for name in ("train", "eval"):
        shutil.copy(getattr(recipe.prompts, name), folder / f"{name}.txt")
    mine = recipe.replace(
        rewards={"green": {"name": f"{folder}/my.py:Green"}},
        prompts={"train": f"{folder}/train.txt", "eval": f"{folder}/eval.txt"},
        run={"steps": 1},
        evaluate={"every": 0},
    )
    finetune(mine, folder / "run")
    return mine, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("train.txt", r"run: prompts\.train: .*train\.txt changed since step 1; want it as it was"),
        ("eval.txt", r"run: prompts\.eval: .*eval\.txt changed since step 1"),
        ("my.py", r"run: reward .*my\.py:Green changed since step 1; .* or a new --out"),
    ],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_goes_on_only_with_what_it_began_with(
    began: tuple[Recipe, Path], file: str, told: str, steps: int
) -> None:
    """Also where it is finished: its table would come back as if it were of the new reward."""
    recipe, folder = began
    content = (folder / file).read_text()
    kept = digests(folder / "run")
    (folder / file).write_text(content.replace("SUM", "OTHER").replace("an elk", "a moose") + "\n")
    try:
        with pytest.raises(UserError, match=told):
            finetune(recipe.replace(run={"steps": steps}), folder / "run")
    finally:
        (folder / file).write_text(content)
    assert digests(folder / "run") == kept


@pytest.mark.slow
def test_a_run_from_before_sums_were_kept_goes_on(
    began: tuple[Recipe, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """With a word, and with the sums of now."""
    recipe, folder = began
    inputs = folder / "run/inputs.json"
    content = inputs.read_text()
    inputs.unlink()
    finetune(recipe, folder / "run")
    assert "has no inputs.json" in caplog.text
    assert inputs.read_text() == content
    assert {*json.loads(content)["files"]} == {"prompts.train", "prompts.eval"}


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_directory_of_another_recipe_is_refused(finished: Run, recipe: Recipe) -> None:
    kept = digests(finished.folder)
    with pytest.raises(UserError) as error:
        finetune(recipe.replace(optim={"lr": 0.02}), finished.folder)
    assert "differs in: -lr: 0.01; +lr: 0.02; want another --out" in str(error.value)
    assert digests(finished.folder) == kept


def test_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="want a new or empty folder"):
        finetune(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "out",
    ["{file}/run", "/proc/align-gen-run", "{folder}/" + "x" * 300],
    ids=["file", "proc", "long"],
)
def test_an_unwritable_out(recipe: Recipe, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    path = out.format(file=tmp_path / "file", folder=tmp_path)
    with pytest.raises(UserError) as error:
        finetune(recipe, path)
    assert path[:60] in str(error.value) and "\n" not in str(error.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_locks_of_galleries_that_kills_left_are_removed(tmp_path: Path) -> None:
    """Beside a gallery and in it; an empty file of the user's, whatever its name, stays."""
    folder = RunFolder(tmp_path / "run")
    left = []
    for gallery in (folder.before, folder.final):
        gallery.mkdir(parents=True)
        left += [beside(gallery), beside(gallery / "scores.parquet")]
    mine = [folder.path / ".notes.lock", folder.final / ".picture.lock"]
    for file in (*left, *mine):
        file.touch()
    recipe = Recipe.load("emoji-sd-prdp")
    claim(folder, recipe, {"files": {}, "rewards": {}}, Accelerator(cpu=True))
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in mine)
