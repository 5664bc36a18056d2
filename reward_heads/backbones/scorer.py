"""Scores from the features of a frozen open_clip model: what preference training learns."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .open_clip_model import OpenClip


def tower(width: int, hidden: int) -> nn.Module:
    """(B, width) -> (B, 1): a linear map, or one hidden layer."""
    if hidden == 0:
        return nn.Linear(width, 1)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))


class Scorer(nn.Module):
    """Features of a frozen model -> one score a dimension, by a tower each.

    Features are blocks of D numbers, the width of the base's embeddings; each dimension reads only
    the blocks that ``reads`` gives it. The last block is image times text, whose sum is D times
    their cosine.
    """

    media: ClassVar[Literal["image", "video"]]
    # The blocks with the prompt in them.
    text: ClassVar[tuple[int, int]]

    def __init__(self, width: int, dimensions: Sequence[str], hidden: int = 0):
        super().__init__()
        self.width, self.dimensions, self.hidden = width, tuple(dimensions), hidden
        self.towers = nn.ModuleList(
            tower(len(self.reads(name)) * width, hidden) for name in dimensions
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, blocks * D) -> (B, dimensions)."""
        blocks = features.unflatten(-1, (-1, self.width))
        seen = [blocks[..., self.reads(name), :].flatten(-2) for name in self.dimensions]
        return torch.cat([each(x) for each, x in zip(self.towers, seen, strict=True)], -1)

    @classmethod
    def reads(cls, dimension: str) -> list[int]:
        """The blocks that a dimension sees; ValueError where there is none of that name."""
        raise NotImplementedError

    @classmethod
    def features(
        cls, clip: OpenClip, media: Tensor, prompts: Sequence[str], mode: str = "squash"
    ) -> Tensor:
        """Media in [0, 1] and their prompts -> (B, blocks * D) float32.

        Differentiable in the media.
        """
        raise NotImplementedError


def blocks_of(image: Tensor, *more: Tensor, text: Tensor) -> Tensor:
    """[image, more …, text, image * text], (B, blocks * D), of entries of the order of one."""
    root = math.sqrt(image.shape[-1])
    return torch.cat(
        [root * image, *(root * each for each in more), root * text, root**2 * image * text], -1
    )
