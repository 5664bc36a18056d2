"""Preprocessing of pictures that gradients pass: resizing, cropping, normalising."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def shortest_side(
    images: Tensor, size: int, offset: Callable[[float], int] = int, mode: str = "bicubic"
) -> Tensor:
    """Resize the shorter side with antialias, crop the centre: (B, 3, size, size) in [0, 1].

    A longer side of fractional length is cut, not rounded. Where an odd number of rows or columns
    goes, libraries disagree by one: ``offset`` makes the first that stays of (side - size) / 2,
    ``int`` for transformers and ``round`` for torchvision and CLIP. A picture of the right size is
    returned as it is.
    """
    short = min(images.shape[-2:])
    height, width = (size * side // short for side in images.shape[-2:])
    if short != size:
        images = resize(images, height, width, mode)
    top = offset((height - size) / 2)
    left = offset((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def resize(images: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Resize with antialias to (B, 3, height, width) in [0, 1].

    A picture of that size is returned as it is.
    """
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(
        at_least_float32(images), (height, width), mode=mode, antialias=True
    ).clamp(0, 1)


def fit_square(images: Tensor, size: int, mode: str) -> Tensor:
    """Resize, bicubic with antialias, to (B, 3, size, size).

    A picture of that size is returned as it is. ``mode`` "shortest" crops the centre; any other
    squashes.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if mode == "shortest":
        scale = size / min(height, width)
        height = max(size, round(height * scale))
        width = max(size, round(width * scale))
    else:
        height = width = size
    resized = F.interpolate(
        images, (height, width), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    top = (height - size) // 2
    left = (width - size) // 2
    return resized[..., top : top + size, left : left + size]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std, a channel each."""
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def normalise_as_clip(images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) by the mean and standard deviation of OpenAI's CLIP."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    return normalise(images, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to single; double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
