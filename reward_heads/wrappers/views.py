"""One head on several views of a picture, and how far what it says of them differs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import RewardHead, check_images
from .uncertain import UncertainHead


class Views(UncertainHead):
    """Averages one reward over several crops, or noisy copies, of a picture.

    No view changes what the picture shows.

    ``crops``: the picture, its mirror image, and as many of four corner crops, at 1 - ``strength``
    of its sides and resized back, as ``count`` asks for. ``noise``: the finished picture
    with the same noise at ``count`` levels from 0 to ``strength``. Ctrl-U (Zhang et al. 2025, arXiv
    2410.11236) asks another question: it compares the rewards of predictions at two denoising
    timesteps, which this head does not see.

    Args:
        head: the reward for pictures: its name, or a head.
        kind: which views, crops or noise.
        count: how many views: 2 to 6 crops, 2 to 64 levels of noise; None: 6 crops, 2 levels.
        strength: share of a side that a crop leaves out, or the highest noise; between 0 and 1.
        penalty: standard deviations of the views' scores that are taken off their mean.
        options: options of the head, where it is a name.
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
        # There are six crops in all; levels of noise are bounded for their cost alone.
        usual, limit = (6, 6) if kind == "crops" else (2, 64)
        self.count = usual if count is None else count
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
        self.reads_prompt = self.head.reads_prompt
        self.parallel = self.head.parallel
        if self.head.media != "image":
            raise ValueError(f"views head: {head!r} scores videos; want a head of pictures")

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        check_images(media)
        scores = [self.head(view, prompts, **context).float() for view in self._views(media)]
        return torch.stack(scores)

    def _views(self, media: Tensor) -> list[Tensor]:
        """``count`` views of the pictures; the noise is equal for all pictures and calls."""
        if self.kind == "crops":
            return crops(media, self.count, self.strength)
        # Fixed, so that the same picture has the same score at every call.
        fixed = torch.Generator().manual_seed(0)
        noise = torch.randn(media.shape[1:], generator=fixed).to(media)
        levels = torch.linspace(0, self.strength, self.count).tolist()
        return [(media + level * noise).clamp(0, 1) for level in levels]

    def provenance(self) -> dict[str, Any]:
        inner = self.head.provenance()
        options = {
            "kind": self.kind,
            "count": self.count,
            "strength": self.strength,
            "penalty": self.penalty,
            "head": inner["options"],
        }
        return inner | {"options": options}

    def to(self, device: torch.device | str) -> "Views":
        self.head.to(device)
        return self


def crops(images: Tensor, count: int, strength: float) -> list[Tensor]:
    """``count`` views of pictures (B, 3, H, W), all of one size.

    The pictures, their mirror images, and their four corners.
    """
    height, width = images.shape[-2:]
    high = max(1, round(height * (1 - strength)))
    wide = max(1, round(width * (1 - strength)))
    views = [images, images.flip(-1)]
    bottom = height - high
    right = width - wide
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
    for top, left in corners[: max(count - 2, 0)]:
        corner = images[..., top : top + high, left : left + wide]
        resized = F.interpolate(
            corner, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        views.append(resized.clamp(0, 1))
    return views
