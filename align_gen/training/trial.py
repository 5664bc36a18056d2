"""Rewards tried on one random picture before anything is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError, one_line
from ..methods.batches import Sampling
from ..pipelines import Model
from ..reward_heads import RewardSet


def try_rewards(rewards: RewardSet, model: Model, sampling: Sampling, prompt: str) -> None:
    """Give every head one random picture or video of the run's size.

    A wrong shape, a NaN or an exception then costs seconds, not the first gallery.

    Raises:
        UserError: a head gives no usable score; names it.
    """
    height = sampling.height or model.default_size[0]
    width = sampling.width or model.default_size[1]
    frames = sampling.num_frames or model.default_frames
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, height, width) if frames == 1 else (1, frames, 3, height, width)
    media = torch.rand(shape, generator=generator).to(rewards.device)
    try:
        with torch.no_grad(), generators_restored(rewards):
            rewards(media, [prompt])
    except RuntimeError as error:
        raise UserError(f"tried on one random picture: {one_line(error)}") from error


@contextmanager
def generators_restored(rewards: RewardSet) -> Iterator[None]:
    """Afterwards, heads that draw at random go on as if they had not been asked."""
    generators = [
        value
        for head in rewards.heads.values()
        for value in vars(head).values()
        if isinstance(value, torch.Generator)
    ]
    states = [each.get_state() for each in generators]
    try:
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)
