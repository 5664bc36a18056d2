"""The training pictures with their facts, and ways to vary them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import Row


@dataclass
class Pictures:
    """The training arrays: pixels float (N, 3, 64, 64) in [0, 1], and a row of facts a picture."""

    pixels: Tensor
    rows: list[Row]

    @classmethod
    def load(cls, folder: Path, styles: tuple[str, ...]) -> "Pictures":
        rows = [json.loads(line) for line in (folder / "pictures.jsonl").open()]
        keep = [i for i, row in enumerate(rows) if row["style"] in styles]
        pixels = torch.from_numpy(np.load(folder / "pictures.npy")[keep]).permute(0, 3, 1, 2) / 255
        return cls(pixels.contiguous(), [rows[i] for i in keep])

    @property
    def things(self) -> list[str]:
        return sorted({row["thing"] for row in self.rows})


def warp(
    pixels: Tensor,
    g: torch.Generator,
    *,
    shift: float,
    scale: float,
    turn: float,
    flip: float = 0.5,
) -> Tensor:
    """Random affine maps on a white ground. Shift in picture widths, turn in radians."""
    n = len(pixels)

    def uniform(size: float) -> Tensor:
        return (torch.rand(n, generator=g) * 2 - 1) * size

    # The order of the draws is part of what a seed means.
    angle = uniform(turn)
    zoom = 1 + uniform(scale)
    mirror = 1 - 2 * (torch.rand(n, generator=g) < flip).float()
    cos = angle.cos() * zoom
    sin = angle.sin() * zoom
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin, uniform(2 * shift)], 1),
            torch.stack([sin * mirror, cos, uniform(2 * shift)], 1),
        ],
        1,
    )

    # Outside of a picture is zero, which stands for white here.
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return 1 - F.grid_sample(
        1 - pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def recolour(pixels: Tensor, g: torch.Generator, strength: float) -> Tensor:
    """Random brightness, contrast, saturation and channel gains."""
    n = len(pixels)

    def gain(size: float, channels: int = 1) -> Tensor:
        return 1 + (torch.rand(n, channels, 1, 1, generator=g) * 2 - 1) * size

    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * gain(strength)
    pixels = 0.5 + (pixels - 0.5) * gain(strength)
    return (pixels * gain(strength / 2, 3)).clamp(0, 1)


def soften(pixels: Tensor, g: torch.Generator, share: float) -> Tensor:
    """Blur a share of the pictures and add grain: generated ones are not as crisp as drawn ones."""
    n = len(pixels)
    small = F.interpolate(pixels, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, size=pixels.shape[-2:], mode="bicubic", align_corners=False)
    blurred = blurred + 0.03 * torch.randn(pixels.shape, generator=g)
    mix = torch.rand(n, 1, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < share)
    return (pixels + mix * (blurred - pixels)).clamp(0, 1)
