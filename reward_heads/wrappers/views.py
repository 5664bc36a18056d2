"""One head on several views of a picture, and how far what it says of them differs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import RewardHead, check_images
from .uncertain import UncertainHead


class Views(UncertainHead):
    """One head on several views of each picture, none of which changes what it shows.

    ``crops``: the picture, its mirror image, and as many of four corner crops, at 1 - ``strength``
    of its sides and resized back, as ``count`` asks for. ``noise``: ``count`` noise levels from 0
    to ``strength``, with the same noise: what Ctrl-U asks of two neighbouring timesteps (Zhang et
    al. 2025, arXiv 2410.11236), asked of a clean picture.

    Args:
        head: a name of the table, or a head; of pictures.
        kind: which views, crops or noise.
        count: how many views: 2 to 6 crops, 2 to 64 levels of noise; None: 6 crops, 2 levels.
        strength: share of a side that a crop leaves out, or the highest noise; between 0 and 1.
        penalty: standard deviations of the views' scores that are taken off their mean.
        options: of the head, where it is a name.
    """

    def __init__(
        self,
        head: str | RewardHead,
        kind: Literal["crops", "noise"] = "crops",
        count: int | None = None,
        strength: float = 0.1,
        penalty: float = 0.0,
        **options: Any,
    ):
        from ..loading import load

        if kind not in ("crops", "noise"):
            raise ValueError(f"views kind: want crops or noise, got {kind!r}")
        limit = 6 if kind == "crops" else 64
        self.count = (6 if kind == "crops" else 2) if count is None else count
        if not 2 <= self.count <= limit:
            raise ValueError(f"views count: want 2 to {limit} of {kind}, got {count}")
        if not 0 < strength < 1:
            raise ValueError(f"views strength: want a number between 0 and 1, got {strength}")
        self.head = load(head, **options)
        self.kind = kind
        self.strength = strength
        self.penalty = penalty
        self.required_context = self.head.required_context
        self.range = self.head.range
        self.differentiable = self.head.differentiable
        self.parallel = self.head.parallel
        if self.head.media != "image":
            raise ValueError(f"views head: {head!r} judges videos; want a head of pictures")

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        views = (
            crops(media, self.count, self.strength) if self.kind == "crops" else self._noised(media)
        )
        return torch.stack([self.head(view, prompts, **context).float() for view in views])

    def _noised(self, media: Tensor) -> list[Tensor]:
        noise = torch.randn(media.shape[1:], generator=torch.Generator().manual_seed(0)).to(media)
        return [
            (media + level * noise).clamp(0, 1)
            for level in torch.linspace(0, self.strength, self.count).tolist()
        ]

    def provenance(self) -> dict[str, Any]:
        own = {
            "kind": self.kind,
            "count": self.count,
            "strength": self.strength,
            "penalty": self.penalty,
        }
        inner = self.head.provenance()
        return inner | {"options": {**own, "head": inner["options"]}}

    def to(self, device: torch.device | str) -> "Views":
        self.head.to(device)
        return self


def crops(images: Tensor, count: int, strength: float) -> list[Tensor]:
    """``count`` of: the pictures (B, 3, H, W), mirrored, and their four corners; all of the same
    size.
    """
    height, width = images.shape[-2:]
    high = max(1, round(height * (1 - strength)))
    wide = max(1, round(width * (1 - strength)))
    views = [images, images.flip(-1)]
    for top, left in ((0, 0), (0, width - wide), (height - high, 0), (height - high, width - wide))[
        : max(count - 2, 0)
    ]:
        corner = images[..., top : top + high, left : left + wide]
        resized = F.interpolate(
            corner, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        views.append(resized.clamp(0, 1))
    return views
