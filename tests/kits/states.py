"""The state of a toy that learns, in milliseconds: one parameter, AdamW, and an average."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from align_gen import pipelines
from align_gen.methods.state import TrainState
from align_gen.training import saved


def state_of(*, ema: bool = True) -> TrainState:
    model = pipelines.load("toy-flow", means=((0.0, 1.0),))
    model.train_full()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = EMAModel(model.parameters(), decay=0.9) if ema else None
    return TrainState(model, optimizer, Accelerator(cpu=True), max_grad_norm=1.0, ema=average)


def learn(state: TrainState) -> None:
    """One update that depends on the step alone."""
    noise = torch.randn(1001, 2, generator=torch.Generator().manual_seed(state.step))
    state.backward((state.model.parameters()[0] * noise).sum())
    state.update()
    state.step += 1
    state.denoiser_calls += 10


def values(state: TrainState) -> dict[str, Any]:
    found: dict[str, Any] = {
        "policy": state.model.parameters()[0].detach().clone(),
        "step": state.step,
    }
    found |= {"calls": state.denoiser_calls}
    if state.ema is not None:
        found |= {
            "ema": state.ema.shadow_params[0].clone(),
            "ema_step": state.ema.optimization_step,
        }
    return found


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a
    )


def sums_again(checkpoint: Path) -> None:
    """Sums that fit whatever lies in a checkpoint now."""
    names = (saved.WEIGHTS, saved.OPTIMIZER, saved.PROGRESS, saved.METRICS)
    lines = [f"{hashlib.sha256((checkpoint / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (checkpoint / saved.SUMS).write_text("".join(lines))
