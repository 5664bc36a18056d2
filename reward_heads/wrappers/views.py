"""How sure a reward is: what it says of several views of one picture, or what several heads say of
it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import RewardHead, check_images


class Unsure(RewardHead):
    """A score that is the mean of several opinions, less ``penalty`` of their deviations; it tells
    the deviation too.

    Deviations are those of a population (Eisenstein et al. 2023, arXiv 2312.09244, mean - k std).
    """

    penalty: float

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        """(opinions, B)."""
        raise NotImplementedError

    def judge(self, media: Tensor, prompts: Sequence[str], **context: Any) -> tuple[Tensor, ...]:
        found = self.opinions(media, prompts, **context)
        spread = found.std(0, correction=0)
        return found.mean(0) - self.penalty * spread, spread

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return self.judge(media, prompts, **context)[0]


class Views(Unsure):
    """One head on several views of each picture, none of which changes what it shows.

    ``crops``: the picture, its mirror image, and as many of four corner crops, at 1 - ``strength``
    of its sides and resized back, as ``count`` asks for. ``noise``: ``count`` noise levels from 0
    to ``strength``, with the same noise: what Ctrl-U asks of two neighbouring timesteps (Zhang et
    al. 2025, arXiv 2410.11236), asked of a clean picture.

    Args:
        head: another head's name, or the head; ``options`` are its own.
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
        from ..registry import load

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
        self.needs = self.head.needs
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


class Ensemble(Unsure):
    """Several heads as one, whose disagreement is its uncertainty.

    Args:
        members: each a head's name or a mapping with its ``name`` and options.
        scale: divides a member's scores, one number each, so that all count alike; None: 1.
    """

    def __init__(
        self,
        members: Sequence[str | RewardHead | Mapping[str, Any]],
        scale: Sequence[float] | None = None,
        penalty: float = 0.0,
    ):
        from ..registry import load

        if isinstance(members, str) or len(members) < 2:
            raise ValueError(f"ensemble members: want two or more heads, got {members!r}")
        if scale is not None and (
            len(scale) != len(members) or not all(each > 0 for each in scale)
        ):
            raise ValueError(f"ensemble scale: want {len(members)} numbers above 0, got {scale}")
        given = [dict(each) if isinstance(each, Mapping) else {"name": each} for each in members]
        self.members = [load(each.pop("name", ""), **each) for each in given]
        self.scale = list(scale or [1.0] * len(members))
        self.penalty = penalty
        kinds = {member.media for member in self.members}
        if len(kinds) > 1:
            raise ValueError("ensemble members: some judge pictures and some videos; want one kind")
        self.media = kinds.pop()
        self.needs = tuple(dict.fromkeys(key for member in self.members for key in member.needs))
        self.differentiable = all(member.differentiable for member in self.members)
        self.parallel = all(member.parallel for member in self.members)

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        found = []
        for member, scale in zip(self.members, self.scale, strict=True):
            told = {key: context[key] for key in member.needs}
            found.append(member(media, prompts, **told).to(media.device, torch.float32) / scale)
        return torch.stack(found)

    def provenance(self) -> dict[str, Any]:
        parts = [member.provenance() for member in self.members]
        options = {
            "scale": self.scale,
            "penalty": self.penalty,
            "members": [part["options"] for part in parts],
        }
        joined = {
            key: [part[key] for part in parts]
            for key in ("weights_sha256", "preprocessing", "dtype")
        }
        return {**joined, "options": options}

    def to(self, device: torch.device | str) -> "Ensemble":
        for member in self.members:
            member.to(device)
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
