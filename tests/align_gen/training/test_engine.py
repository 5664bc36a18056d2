"""Whole runs on a tiny Stable Diffusion: complete, and resumable to the last bit."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import ScoresTable
from align_gen.methods.state import TrainState
from align_gen.reward_heads import RewardFailure
from align_gen.training import engine
from align_gen.training.engine import Run
from tests.kits.runs import (
    HELD_OUT,
    STEPS,
    Stopped,
    lines,
    picture_digests,
    same,
    stop_at,
    weights,
)
from tests.tiny import subject

pytestmark = pytest.mark.slow

# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sd3", "wan"])
def test_rows_are_counted_however_a_network_is_called(family: str) -> None:
    """By position or by name: two prompts with guidance are four rows."""
    one = subject(family)
    state = TrainState(one.model, None, None, 1.0)  # type: ignore[arg-type]
    x = one.latents()
    with engine.counted_calls(state), torch.no_grad():
        one.model.predict(x, one.model.times(4, x.shape[1:])[1, 0], one.condition(), 3.0)
    assert state.denoiser_calls == 4


# --- a finished run -------------------------------------------------------------------------------


def test_the_run_directory_is_complete(finished: Run, recipe: Recipe) -> None:
    run = finished.folder
    assert (run / "recipe.yaml").read_text() == recipe.to_yaml()
    state = json.loads((run / "state.json").read_text())
    assert (state["format"], state["step"], state["checkpoint"]) == (1, STEPS, f"step-{STEPS:06d}")
    assert (run / "checkpoints" / state["checkpoint"] / "optimizer.pt").is_file()
    assert list((run / "export").glob("*.safetensors"))
    for name in ("before", "samples/step-000002", "samples/final"):
        assert {row["prompt"] for row in Gallery.load(run / name).rows} == set(HELD_OUT)
        assert set(ScoresTable.load(run / name / "scores.parquet").heads) == {
            "mean_hue",
            "jpeg_size",
        }
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]


def test_the_metrics_say_what_happened(finished: Run) -> None:
    """A line a training step, and one a measurement: before, at step 2 and at the end."""
    found = lines(finished.folder)
    assert [line["step"] for line in found] == [0, 1, 2, 2, 3, 3]
    steps, looks = (
        [line for line in found if key in line] for key in ("loss", "eval/jpeg_size/mean")
    )
    assert [line["step"] for line in steps] == [1, 2, 3] and [line["step"] for line in looks] == [
        0,
        2,
        3,
    ]
    assert {
        "loss",
        "grad_norm",
        "clip_fraction",
        "kl",
        "reward/mean_hue",
        "reward/combined",
    } <= steps[0].keys()
    table = ScoresTable.load(finished.folder / "samples/step-000002/scores.parquet")
    assert looks[1]["eval/jpeg_size/mean"] == pytest.approx(table.mean("jpeg_size"))
    assert [line["step"] for line in finished.metrics] == [0, 1, 2, 3] and finished.metrics[2] == {
        **steps[1],
        **looks[1],
        "seconds": finished.metrics[2]["seconds"],
    }


def test_it_learned_something(finished: Run) -> None:
    """Other pictures than before, of the same prompts and seeds; the clip bound on some steps."""
    before, after = (Gallery.load(finished.folder / name) for name in ("before", "samples/final"))
    assert [(r["prompt"], r["seed"]) for r in before.rows] == [
        (r["prompt"], r["seed"]) for r in after.rows
    ]
    assert not torch.equal(before.image(0), after.image(0))
    assert any(line.get("clip_fraction", 0) > 0 for line in lines(finished.folder))


def test_denoiser_calls_are_counted(finished: Run) -> None:
    """A step: 4 samples, doubled by guidance; 3 rollout steps, and 3 with a density (the schedule's
    offset keeps the last one above zero noise) for the reference, the second first pass, and at
    most 2 backward passes: 8 x 15 = 120.

    Calls whose coefficients all vanish are left out, so at least 8 x 9 are left.
    """
    assert 8 * 9 * STEPS <= finished.denoiser_calls <= 8 * 15 * STEPS
    assert (
        json.loads((finished.folder / "state.json").read_text())["denoiser_calls"]
        == finished.denoiser_calls
    )


def test_the_same_recipe_gives_the_same_run(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    """A run is a function of its recipe, its seed among it, whatever the process drew before."""
    torch.manual_seed(12345)
    finetune(recipe, tmp_path / "again")
    assert lines(tmp_path / "again") == lines(finished.folder)
    assert same(weights(tmp_path / "again"), weights(finished.folder))
    assert picture_digests(tmp_path / "again") == picture_digests(finished.folder)


def test_another_seed_gives_another_run(finished: Run, recipe: Recipe, tmp_path: Path) -> None:
    finetune(recipe.replace(run={"seed": 4, "steps": 1}), tmp_path / "other")
    assert (
        lines(tmp_path / "other")[1]["reward/mean_hue"]
        != lines(finished.folder)[1]["reward/mean_hue"]
    )


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    finished: Run, recipe: Recipe, tmp_path: Path, step: int
) -> None:
    """Stopped after step k was logged and before it was saved: the same call repeats that step and
    goes on.

    At step 1 there is no checkpoint yet. Weights, averages, metrics and pictures agree to the last
    bit.
    """
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path / "run", progress=stop_at(step))
    torch.rand(7)  # another process has another history
    resumed = finetune(recipe, tmp_path / "run")
    assert same(weights(resumed.folder), weights(finished.folder))
    assert lines(resumed.folder) == lines(finished.folder)
    assert picture_digests(resumed.folder) == picture_digests(finished.folder)
    assert resumed.denoiser_calls == finished.denoiser_calls


def test_resuming_with_the_same_model_object(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    """In a notebook the pipeline outlives the interruption; its half-trained weights must not
    become the reference.
    """
    from diffusers import StableDiffusionPipeline

    def fresh() -> Any:
        return StableDiffusionPipeline.from_pretrained(tiny_folder)

    whole = finetune(recipe, tmp_path / "whole", model=fresh())
    pipeline = fresh()
    with pytest.raises(Stopped):
        finetune(recipe, tmp_path / "run", model=pipeline, progress=stop_at(2))
    resumed = finetune(recipe, tmp_path / "run", model=pipeline)
    assert same(weights(resumed.folder), weights(whole.folder))


# --- rewards --------------------------------------------------------------------------------------


class Sour:
    """The mean of green, which turns to NaN at one call.

    An iterator is no setting, so that a sour one and a sound one are the same reward to a run.
    """

    def __init__(self, bad_call: int | None):
        self.added = iter([0.0] * (bad_call - 1) + [float("nan")] if bad_call else [])

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        return media[:, 1].mean((1, 2)) + next(self.added, 0.0)


def test_a_callable_object_is_written_down_by_a_name_that_lasts(recipe: Recipe) -> None:
    """Its repr holds an address: the same program started again would be refused its own run
    directory.
    """
    assert (
        recipe.replace(rewards={Sour(1): 1.0}).to_yaml()
        == recipe.replace(rewards={Sour(1): 1.0}).to_yaml()
    )


def test_a_nan_reward_stops_the_run_with_its_last_checkpoint_intact(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Call 1 is the trial, 2 the gallery before, 3 and 4 are steps, 5 is the gallery at step 2, 6
    is step 3: NaN. Then a good one.
    """
    with pytest.raises(RewardFailure, match="'Sour' returned 4 non-finite of 4"):
        finetune(recipe.replace(rewards={Sour(6): 1.0}), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 2
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path, 2).values())
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 2]
    done = finetune(recipe.replace(rewards={Sour(None): 1.0}), tmp_path)
    assert [line["step"] for line in done.metrics] == [0, 1, 2, 3]


def test_the_placebo_trains_on_shuffled_rewards(recipe: Recipe, tmp_path: Path) -> None:
    """Same rollouts at step 1, another update; and it is itself reproducible."""
    short = recipe.replace(run={"steps": 1}, evaluate={"every": 0}, method={"images_per_prompt": 4})
    runs = {}
    for name, placebo in (("real", False), ("placebo", True), ("again", True)):
        runs[name] = finetune(short.replace(run={"placebo": placebo}), tmp_path / name)
    found = {name: lines(run.folder)[1] for name, run in runs.items()}
    assert found["real"]["reward/mean_hue"] == found["placebo"]["reward/mean_hue"]
    assert found["real"]["reward/std"] == pytest.approx(found["placebo"]["reward/std"])
    assert not same(weights(runs["real"].folder, 1), weights(runs["placebo"].folder, 1))
    assert same(weights(runs["placebo"].folder, 1), weights(runs["again"].folder, 1))


def test_a_reward_that_always_ties_leaves_the_model_alone(recipe: Recipe, tmp_path: Path) -> None:
    def constant(media: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.ones(len(media))

    run = finetune(recipe.replace(rewards={constant: 1.0}, run={"steps": 1}), tmp_path)
    assert lines(tmp_path)[1]["zero_variance"] == 1
    assert torch.equal(
        Gallery.load(tmp_path / "before").image(0),
        Gallery.load(tmp_path / "samples/final").image(0),
    )
    assert run.before.heads == run.after.heads


# --- one process, several runs --------------------------------------------------------------------


def test_the_same_object_goes_on_from_run_to_run(
    recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    """A trained object keeps its LoRA: the next run starts from it, the third from the second, the
    fourth likewise.
    """
    model = pipelines.load(str(tiny_folder))
    plain = recipe.replace(optim={"ema": None}, evaluate={"every": 0}, run={"steps": 1})
    runs = [finetune(plain, tmp_path / str(i), model=model) for i in range(3)]
    for earlier, later in pairwise(runs):
        assert picture_digests(later.folder / "before") == picture_digests(
            earlier.folder / "samples/final"
        )
        assert picture_digests(later.folder / "before") != picture_digests(
            later.folder / "samples/final"
        )


def test_two_precisions_in_one_process(recipe: Recipe, finished: Run, tmp_path: Path) -> None:
    """After a run in float32, one in bfloat16: nothing of the first lingers."""
    short = recipe.replace(model={"dtype": "bf16"}, run={"steps": 1}, evaluate={"every": 0})
    assert finetune(short, tmp_path).metrics[-1]["step"] == 1
