"""Nearness of a picture's mean colour to a hue: no weights, differentiable."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import RewardHead, check_images


class MeanHue(RewardHead):
    """Scores how much of one hue a picture has on the whole, in [-1, 1]; grey scores 0.

    The component of the mean colour along that hue on the colour circle. The colour circle is the
    plane of opponent axes (r - (g+b)/2, sqrt(3)/2 (g - b)).

    Args:
        hue: degrees on the colour circle: 0 red, 120 green, 240 blue.
    """

    differentiable = True
    parallel = True
    range = (-1.0, 1.0)

    def __init__(self, hue: float = 0.0):
        self.hue = float(hue)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        red, green, blue = media.float().mean((-2, -1)).unbind(1)
        angle = torch.tensor(math.radians(self.hue), device=media.device)
        across = red - (green + blue) / 2
        along = (green - blue) * math.sqrt(3) / 2
        return across * angle.cos() + along * angle.sin()

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"options": {"hue": self.hue}}
