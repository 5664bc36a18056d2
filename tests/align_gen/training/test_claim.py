"""A folder belongs to one recipe: who may go on in it, and who is refused."""

from pathlib import Path

import pytest

from align_gen import Recipe, finetune
from align_gen.errors import UserError
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
