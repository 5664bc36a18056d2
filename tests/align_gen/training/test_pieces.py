"""Pieces that a run has lost: made again as they were, or refused in one line; never made up."""

import shutil
from pathlib import Path

import pytest

from align_gen import Recipe, finetune
from align_gen.errors import UserError
from align_gen.files import remove
from align_gen.galleries.table import ScoresTable
from align_gen.run_folder import RunFolder
from align_gen.training.engine import Run
from align_gen.training.pieces import require_pieces
from tests.kits.runs import STEPS, Stopped, digests, lines, same, stop_at, weights

pytestmark = pytest.mark.slow

# Of a run that measures at step 2 of 3; the glob of each kind of file.
MADE_AGAIN = {
    "before": "before/*.png",
    "rows of before": "before/metadata.jsonl",
    "scores of before": "before/scores.parquet",
    "metrics": "metrics.jsonl",
    "inputs": "inputs.json",
    "state": "state.json",
    "scores on the way": "samples/step-000002/scores.parquet",
    "newest checkpoint": "checkpoints/step-000003/weights.safetensors",
    "a sum": "checkpoints/step-000003/SHA256SUMS",
    "end": "samples/final/00000.png",
    "rows of the end": "samples/final/metadata.jsonl",
    "scores of the end": "samples/final/scores.parquet",
    "export": "export/*",
}
REFUSED = {
    "recipe": ("recipe.yaml", "holds a run whose recipe.yaml is gone"),
    "way": ("samples/step-000002/00000.png", "samples/step-000002: has lost a picture or its rows"),
    "rows": ("samples/step-000002/metadata.jsonl", "step-000002: has lost a picture or its rows"),
}


@pytest.fixture(scope="module")
def half(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in its last step: step 2 is saved and measured."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.raises(Stopped):
        finetune(recipe, folder, progress=stop_at(STEPS))
    return folder


@pytest.fixture(params=["finished", "half"])
def copy(request: pytest.FixtureRequest, finished: Run, half: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, or of the one that was stopped."""
    source = finished.folder if request.param == "finished" else half
    return shutil.copytree(source, tmp_path / "run")


def lose(run: Path, pattern: str) -> list[str]:
    """Remove the files of a pattern; their names."""
    found = [path for path in run.glob(pattern) if path.is_file()]
    for path in found:
        path.unlink()
    return [str(path.relative_to(run)) for path in found]


def require_undisturbed(run: Path, whole: Path) -> None:
    """Pictures, scores, numbers and weights of the run that nothing happened to."""
    assert lines(run) == lines(whole)
    assert same(weights(run), weights(whole))
    mine, theirs = digests(run), digests(whole)
    for name in theirs:
        # Times, and the order of a header's entries, differ in each of these.
        if name.endswith((".png", "metadata.jsonl", "recipe.yaml", "inputs.json")):
            assert mine[name] == theirs[name], name
    for gallery in ("before", "samples/step-000002", "samples/final"):
        tables = [ScoresTable.load(each / gallery / "scores.parquet") for each in (run, whole)]
        assert tables[0].heads == tables[1].heads, gallery
    assert {*theirs} <= {*mine}


@pytest.mark.parametrize("piece", MADE_AGAIN)
def test_a_lost_piece_is_made_again(copy: Path, finished: Run, recipe: Recipe, piece: str) -> None:
    if not lose(copy, MADE_AGAIN[piece]):
        pytest.skip("not there yet")
    finetune(recipe, copy)
    require_undisturbed(copy, finished.folder)


@pytest.mark.parametrize("piece", REFUSED)
def test_a_piece_that_cannot_be_made_again_is_refused(
    finished: Run, recipe: Recipe, tmp_path: Path, piece: str
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    pattern, told = REFUSED[piece]
    assert lose(run, pattern)
    kept = digests(run)
    with pytest.raises(UserError, match=told) as error:
        finetune(recipe, run)
    assert "\n" not in str(error.value) and digests(run) == kept


@pytest.mark.parametrize("piece", ["way", "rows"])
def test_where_it_stopped_a_run_can_draw_again(
    half: Path, finished: Run, recipe: Recipe, tmp_path: Path, piece: str
) -> None:
    """Step 2 is its last checkpoint: the weights that drew the gallery are there."""
    run = shutil.copytree(half, tmp_path / "run")
    assert lose(run, REFUSED[piece][0])
    finetune(recipe, run)
    require_undisturbed(run, finished.folder)


def test_a_gallery_that_was_removed_as_a_whole_is_told(
    finished: Run, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    remove(run / "samples/step-000002")
    finetune(recipe, run)
    assert "step-000002: is gone, and with it the weights that drew it" in caplog.text


def test_without_any_checkpoint_it_begins_anew_and_ends_alike(
    finished: Run, recipe: Recipe, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    remove(run / "checkpoints")
    finetune(recipe, run)
    require_undisturbed(run, finished.folder)


def test_the_first_gallery_of_every_weight_is_its_copy(recipe: Recipe, tmp_path: Path) -> None:
    """Full training keeps a frozen copy of what it began with."""
    full = recipe.replace(model={"lora": None}, run={"steps": 1}, evaluate={"every": 0})
    finetune(full, tmp_path / "run")
    whole = digests(tmp_path / "run/before")
    remove(tmp_path / "run/before")
    finetune(full, tmp_path / "run")
    mine = digests(tmp_path / "run/before")
    assert {name: mine[name] for name in whole if name.endswith("png")} == {
        name: value for name, value in whole.items() if name.endswith("png")
    }
    assert digests(tmp_path / "run/samples/final")["00000.png"] != whole["00000.png"]


def test_the_best_export_is_whole_or_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of step 2, at step 3: its weights are gone."""
    folder = RunFolder(tmp_path)
    progress = {"step": 3, "best_step": 2, "best_files": ["a/config.json", "a/w.safetensors"]}
    (folder.best / "a").mkdir(parents=True)
    for name in progress["best_files"]:  # type: ignore[attr-defined]
        (folder.best / name).write_text("")
    require_pieces(folder, [], progress)
    (folder.best / "a/w.safetensors").unlink()
    with pytest.raises(UserError, match=r"best: has lost a/w\.safetensors, and the weights"):
        require_pieces(folder, [], progress)
    # Where it is the best of just now, the measurement exports it again.
    require_pieces(folder, [], {**progress, "step": 2})
    remove(folder.best)
    require_pieces(folder, [], progress)
    assert "best: is gone" in caplog.text
