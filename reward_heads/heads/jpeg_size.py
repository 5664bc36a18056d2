"""JPEG size as a reward (Black et al. 2024, "compressibility"): no weights."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..base import RewardHead, check_images


class JpegSize(RewardHead):
    """Scores how small a picture is as a JPEG file, or how large. Not differentiable.

    Args:
        goal: which pictures score high; the score of "small" is minus the kilobytes.
        quality: quality of the JPEG, 0 to 100.
    """

    parallel = True

    def __init__(self, goal: Literal["small", "large"] = "small", quality: int = 95):
        if goal not in ("small", "large"):
            raise ValueError(f"jpeg_size goal: want small or large, got {goal!r}")
        self.sign = -1.0 if goal == "small" else 1.0
        self.quality = quality
        self.range = (float("-inf"), 0.0) if goal == "small" else (0.0, float("inf"))

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        from PIL import Image

        check_images(media)
        bytes_ = (media.detach().clamp(0, 1) * 255).round().byte()
        pictures = bytes_.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
        sizes = []
        for pixels in pictures:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
            sizes.append(self.sign * len(buffer.getvalue()) / 1000)
        return torch.tensor(sizes)

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"options": {"sign": self.sign, "quality": self.quality}}
