"""Colourfulness: no weights, differentiable.

Hasler and Süsstrunk, "Measuring colourfulness in natural images", SPIE 2003: the measure on r, g
and b.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import RewardHead, check_images


class Colourfulness(RewardHead):
    """Scores how colourful a picture is, by the spread and the strength of its colours.

    That is sigma + 0.3 mu in the plane of the opponent axes r - g and (r + g) / 2 - b.

    On the scale of bytes, as in the paper: 0 is grey, 33 moderately, 59 quite and 109 extremely
    colourful. The most is 255 sqrt(1.25 * 1.09) = 297.7: no point of the plane is further than R =
    255 sqrt(1.25) from grey, sigma^2 + mu^2 <= R^2, and sigma + 0.3 mu <= sqrt(1 + 0.3^2) R.
    """

    differentiable = True
    parallel = True
    range = (0.0, 255 * math.sqrt(1.25 * 1.09))

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        return colourfulness(media.float())

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"preprocessing": "colour-1"}


def colourfulness(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B,).

    Both roots are norms of vectors, whose gradient at zero torch takes as zero: a plain picture has
    a finite one.
    """
    red, green, blue = (255 * images).flatten(2).unbind(1)
    plane = torch.stack([red - green, (red + green) / 2 - blue], 1)  # (B, 2, pixels)
    mean = plane.mean(2, keepdim=True)
    spread = torch.linalg.vector_norm(plane - mean, dim=(1, 2)) / math.sqrt(plane.shape[2])
    return spread + 0.3 * torch.linalg.vector_norm(mean, dim=(1, 2))
