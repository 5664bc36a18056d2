"""SFT: learn to denoise given pictures, all of which count alike (Ho et al. 2020, arXiv 2006.11239;
Liu et al. 2023).

The base that other methods are compared with, and what they reduce to where every picture counts
alike.
"""

from typing import Literal

import torch
from pydantic import Field

from ..reward_heads import RewardSet
from .base import Cost
from .batches import Kind, Media, Sampling
from .denoising import DenoisingOptions, noised
from .state import TrainState


class Options(DenoisingOptions):
    """Denoising of the pictures of ``data.media``."""

    name: Literal["sft"] = "sft"
    images_per_prompt: int = Field(
        1, ge=1, description="Pictures of one prompt that make a unit of the data."
    )
    prompts_per_step: int = Field(32, ge=1, description="Units of a step, over all processes.")

    def batch_kind(self) -> Kind:
        return "media"

    def cost(self, sampling: Sampling, rows_per_sample: int) -> Cost:
        """Each picture once, without guidance."""
        return Cost(self.images, self.images, self.images)


def step(
    state: TrainState, batch: Media, rewards: RewardSet, options: Options, sampling: Sampling
) -> dict[str, float]:
    """Noise given pictures, predict what was added; B pictures, one call's worth at a time."""
    model = state.model
    # Over all processes, whose gradients add up.
    total = int(state.gather(torch.tensor([len(batch)])).sum())
    errors = []
    for rows in state.slices(len(batch)):
        with torch.no_grad():
            latents = model.encode(batch.media[rows].to(model.device))
        given = noised(state, latents, batch.condition[rows], batch.ids[rows], options, sampling)
        error = given.squared_errors(model)
        state.backward(error.sum() / total)
        errors.append(error.detach())
    grad_norm = state.update()
    return {"grad_norm": grad_norm, "loss": state.gather(torch.cat(errors)).mean().item()}
