"""What is measured on the way, and what a run does about it."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.reward_heads.base import CallableHead
from tests.kits.runs import (
    HELD_OUT,
    same,
    weights,
)

pytestmark = pytest.mark.slow

# --- held-out rewards -----------------------------------------------------------------------------


class Watcher:
    """A held-out reward that remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen += prompts
        return -media.mean((1, 2, 3))


def test_held_out_rewards_are_measured_and_never_optimised(recipe: Recipe, tmp_path: Path) -> None:
    """They see held-out prompts alone, once each at the three measurements after a trial; without
    them the weights are the same.
    """
    watcher = Watcher()
    finetune(recipe.replace(eval_rewards={watcher: 5.0}), tmp_path / "watched")
    trial, *seen = watcher.seen
    assert trial in HELD_OUT and sorted(seen) == sorted(3 * HELD_OUT)
    finetune(recipe.replace(eval_rewards={}), tmp_path / "alone")
    assert same(weights(tmp_path / "watched"), weights(tmp_path / "alone"))


def test_a_loaded_head_is_watched_under_its_own_name(recipe: Recipe, tmp_path: Path) -> None:
    """A held-out reward as ``load`` returns it is called what it was named, also where it is
    measured on the way.
    """
    head = CallableHead(lambda media, prompts: media.mean((1, 2, 3)), name="brightness")
    run = finetune(
        recipe.replace(eval_rewards={head: 1.0}, evaluate={"every": 1}, run={"steps": 2}), tmp_path
    )
    assert "eval/brightness/mean" in run.metrics[1]


# --- early stopping, and the best measurement -----------------------------------------------------


def test_a_run_whose_held_out_reward_falls_stops_and_stays_stopped(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A held-out reward that falls with every look: patience 1 stops at the first measurement, step
    1 of 3.
    """

    class Falling:
        # An iterator, which is no setting of the reward: it is the same one when it is resumed.
        looks = count(1)

        def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.arange(len(media)) - 10.0 * next(self.looks)

    watched = recipe.replace(
        eval_rewards={Falling(): 1.0},
        evaluate={"every": 1},
        stop={"when": "eval_rewards_fall", "patience": 1},
    )
    for _ in range(2):  # resumed, it does not go on
        run = finetune(watched, tmp_path)
        assert [line["step"] for line in run.metrics] == [0, 1] and "loss" in run.metrics[1]
    assert not (tmp_path / "best").exists()  # nothing was better than the untouched model


def test_the_best_measurement_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    """Held out: 0, then 5, 2, 1 at steps 1 to 3 of 3. What step 1 had is kept beside the end's
    export, and differs.
    """

    class Peak:
        def __init__(self) -> None:
            self.means = [0.0, 0.0, 5.0, 2.0, 1.0]  # the first is the trial's

        def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.arange(len(media)) + self.means.pop(0)

    run = finetune(recipe.replace(eval_rewards={Peak(): 1.0}, evaluate={"every": 1}), tmp_path)
    best, end = (
        load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        for name in ("best", "export")
    )
    averages = {
        key.removeprefix("ema.unet."): value
        for key, value in weights(tmp_path, 2).items()
        if "ema." in key
    }
    assert best.keys() == end.keys() and not same(best, end) and averages
    assert json.loads((tmp_path / "state.json").read_text())["best_step"] == 1
    again = pipelines.load(recipe.model.path)
    again.reload(tmp_path / "best")
    assert run.metrics[-1]["eval/Peak/mean"] == pytest.approx(1.5)


# --- trackers -------------------------------------------------------------------------------------


def test_tensorboard_shows_curves_and_pictures(recipe: Recipe, tmp_path: Path) -> None:
    """What metrics.jsonl says, TensorBoard's own reader finds in the run directory; and the
    galleries' pictures.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finetune(
        recipe.replace(run={"tracker": "tensorboard", "steps": 2}, evaluate={"every": 0}), tmp_path
    )
    file = min(
        tmp_path.rglob("events.out.tfevents*"), key=lambda file: len(file.parts)
    )  # deeper: hyper-parameters
    events = EventAccumulator(str(file.parent)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/combined")]
    assert found == [
        (line["step"], pytest.approx(line["reward/combined"])) for line in run.metrics[1:]
    ]
    looks = [(event.step, event.value) for event in events.Scalars("eval/jpeg_size/mean")]
    assert looks == [
        (line["step"], pytest.approx(line["eval/jpeg_size/mean"]))
        for line in (run.metrics[0], run.metrics[2])
    ]
    shown = [(event.step, event.height, event.width) for event in events.Images("held-out")]
    assert shown == [(0, 16, 32), (2, 16, 32)]  # two pictures of 16 pixels, side by side
