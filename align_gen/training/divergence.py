"""Runs that diverge: noticed before anything of them is kept, and told with what to change."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ..errors import RunFailure
from ..methods.state import TrainState
from ..reward_heads import RewardFailure
from ..run_folder import RunFolder

NOT_FINITE = "media: want finite values"  # of a gallery that is asked to hold what is none
LARGE = 1e6  # a reward beyond is told: losses square such numbers
SMALLEST_SCALE = 1e-3  # of fp16's losses: 16 bits overflow at any scale


class Diverged(RunFailure):
    """A loss, a gradient or a weight that is not finite; the same command would meet it again."""


def require_finite_step(metrics: Mapping[str, Any], state: TrainState, run: Path) -> None:
    """Check the loss and the gradient's norm of a step, which are numbers on the CPU already.

    Raises:
        Diverged: one of them is not finite.
    """
    for key in ("loss", "grad_norm"):
        value = metrics.get(key, 0.0)
        if not math.isfinite(value) and not (key == "grad_norm" and _was_skipped(state)):
            raise _diverged(state, run, state.step, f"{key} is {value}", metrics)


def require_finite(state: TrainState, run: Path) -> None:
    """Check weights, their average and the optimizer's moments, by one look at the device.

    All processes must call this.

    Raises:
        Diverged: one of them is not finite.
    """
    if what := _not_finite(state):
        raise _diverged(state, run, state.step, f"{what} are not finite", {})


@contextmanager
def blamed_rightly(state: TrainState, run: Path, step: int) -> Iterator[None]:
    """Inside, a failure on what a broken model drew is the model's, and no reward's.

    Raises:
        Diverged: weights, or the pictures of a model that has learned, are not finite.
        RunFailure: those of the untouched model are not.
    """
    try:
        yield
    except (RewardFailure, ValueError) as error:
        broken = getattr(error, "broken_media", False) or str(error).startswith(NOT_FINITE)
        if what := _not_finite_here(state):
            raise _diverged(state, run, step, f"{what} are not finite", {}) from error
        if not broken:
            raise
        what = "the pictures that are drawn are not finite"
        if state.step > 0:
            raise _diverged(state, run, step, what, {}) from error
        raise RunFailure(
            f"before training, {what}; want model.dtype fp32, or a smaller sampling.guidance_scale"
        ) from error


def _diverged(
    state: TrainState, run: Path, step: int, what: str, metrics: Mapping[str, Any]
) -> Diverged:
    """The error: what was seen at which step, what is kept, and what to change."""
    rewards = [abs(value) for key, value in metrics.items() if key.startswith("reward/")]
    largest = max(filter(math.isfinite, rewards), default=0.0)
    lr = state.optimizer.param_groups[0]["lr"]
    change = f"optim.lr below {lr:g}"
    if largest > LARGE:
        change = f"rewards of a smaller weight (up to {largest:.2g} here), or {change}"
    saved = RunFolder(run).saved_steps()
    kept = "nothing was saved yet; "
    back = ""
    if saved:
        kept = f"step {saved[-1]} is kept and finite; "
        back = (
            f". run.steps={saved[-1]} ends this run there: where its pictures are good still, "
            "model.adapter of another run goes on from its export"
        )
    return Diverged(f"diverged at step {step}: {what}; {kept}want {change}, and a new --out{back}")


def _was_skipped(state: TrainState) -> bool:
    """Whether fp16's loss scale was too large for this step, which changed nothing then.

    The scale is halved each time; where that does not end, the step is no such step.
    """
    scaler = state.accelerator.scaler
    skipped = scaler is not None and state.accelerator.optimizer_step_was_skipped
    return skipped and scaler.get_scale() > SMALLEST_SCALE


def _not_finite(state: TrainState) -> str | None:
    """What is not finite in any of the processes, in words; of shards, each has its own."""
    here = _not_finite_here(state)
    found = [each for each in state.gather_objects(here) if each is not None]
    return found[0] if found else None


def _not_finite_here(state: TrainState) -> str | None:
    weights: Iterable[torch.Tensor] = state.model.parameters()
    average = () if state.ema is None else state.ema.shadow_params
    moments = (
        value
        for each in state.optimizer.state.values()
        for value in each.values()
        if isinstance(value, torch.Tensor)
    )
    kinds = {"the weights": weights, "the averaged weights": average, "the moments": moments}
    # One number for all of them: each look at a device waits for what is computed there.
    verdicts = [_is_finite(tensors) for tensors in kinds.values()]
    device = state.model.device
    for name, finite in zip(
        kinds, torch.stack([each.to(device) for each in verdicts]).tolist(), strict=True
    ):
        if not finite:
            return name
    return None


def _is_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Whether all numbers are finite, a bool on the device; of shards, those of this process."""
    local = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    if not local:
        return torch.tensor(True)
    # An optimizer counts its steps on the CPU.
    device = local[0].device
    return torch.stack([each.detach().isfinite().all().to(device) for each in local]).all()
