"""Supervised fine-tuning: plain denoising of given pictures (Ho et al. 2020, arXiv 2006.11239; Liu
et al. 2023).

The base that other methods are compared with, and what they reduce to where every picture counts
alike.
"""

from typing import Literal

import torch
from pydantic import Field

from ..pipelines import Model
from ..reward_heads import RewardSet
from ..strict import Strict
from .batches import Kind, Media, Sampling
from .denoising import (
    Times,
    draw_noise,
    draw_times,
    drop_captions,
    noise_generators,
    squared_errors,
)
from .state import TrainState
from .trajectories import slices


class Options(Strict):
    """``dropout``: share of captions left empty, which keeps the branch that guidance compares
    with.
    """

    name: Literal["sft"] = "sft"
    images_per_prompt: int = Field(1, ge=1)
    prompts_per_step: int = Field(32, ge=1)
    times: Times = "uniform"
    dropout: float = Field(0.1, ge=0, le=1)


def kind(options: Options) -> Kind:
    """What a step's batch is."""
    return "media"


def check(options: Options, sampling: Sampling) -> None:
    """What no single key shows: UserError when these settings cannot learn."""


def calls(options: Options, sampling: Sampling, passes: int) -> dict[str, int]:
    """Rows through the denoiser per step: each picture once, without guidance."""
    images = options.prompts_per_step * options.images_per_prompt
    return {"forwards": images, "backwards": images, "images": images}


def step(
    state: TrainState,
    batch: Media,
    model: Model,
    rewards: RewardSet,
    options: Options,
    sampling: Sampling,
) -> dict[str, float]:
    """Noise given pictures, predict what was added; B pictures, one call's worth at a time."""
    generators = noise_generators(state, batch.ids)
    total = int(
        state.gather(torch.tensor([len(batch)])).sum()
    )  # over all processes, whose gradients add up
    errors = []
    for rows in slices(len(batch), state.micro_batch):
        with torch.no_grad():
            latents = model.encode(batch.media[rows].to(model.device))
        own = generators[rows]
        t = draw_times(model, own, options.times)
        noise = draw_noise(latents, own)
        condition = drop_captions(model, batch.condition[rows], own, options.dropout, sampling)
        error = squared_errors(model, latents, noise, t, condition, sampling)
        state.backward(error.sum() / total)
        errors.append(error.detach())
    metrics = {"grad_norm": state.update()}
    return metrics | {"loss": state.gather(torch.cat(errors)).mean().item()}
