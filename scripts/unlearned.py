"""Checks of pictures that no network has learned: how many colours they have, and whether they have
the one asked for.

Shading is what tells a glossy 3D emoji from a flat one, and shading is many colours. Counted over
areas of 4 x 4 pixels, which noise hardly moves, at 16 levels a channel, the real pictures that ship
with the package have 70 of them where they are 3D and 33 where they are flat; flat ones with noise
of 3 % have 39.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from align_gen import compare, score
from align_gen.galleries.comparison import Change
from align_gen.galleries.gallery import Gallery
from align_gen.reward_heads import reward_set

HUES = {
    "red": 0.0,
    "brown": 25.0,
    "orange": 30.0,
    "yellow": 55.0,
    "green": 120.0,
    "blue": 220.0,
    "purple": 280.0,
    "pink": 335.0,
}
NEAR = 30.0  # degrees


def colours(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """Distinct colours of each picture, (B, 3, H, W) in [0, 1]."""
    levels = (avg_pool2d(media, 4) * 255).round().long() // 16
    codes = (levels[:, 0] * 16 + levels[:, 1]) * 16 + levels[:, 2]
    return torch.tensor([float(picture.unique().numel()) for picture in codes])


def asked_hue(prompt: str) -> float | None:
    """Degrees of the colour that the prompt names."""
    return next((hue for name, hue in HUES.items() if name in prompt.lower().split()), None)


def hue(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 where a picture's mean colour is within 30 degrees of the hue that its prompt names, else
    0; (B,).
    """
    red, green, blue = media.mean((-2, -1)).unbind(1)
    along = red - (green + blue) / 2
    across = (green - blue) * math.sqrt(3) / 2
    found = torch.rad2deg(torch.atan2(across, along))
    wanted = torch.tensor([asked_hue(prompt) or 0.0 for prompt in prompts])
    return (((found - wanted + 180) % 360 - 180).abs() <= NEAR).float()


def unlearned(before: Path, after: Path) -> tuple[Change, Change]:
    """Changes between two galleries: of the number of colours, and of the share that has the hue
    its prompt names.
    """
    galleries = [bare(Gallery.load(folder)) for folder in (before, after)]
    named = [
        Gallery(
            gallery.folder, [row for row in gallery.rows if asked_hue(row["prompt"]) is not None]
        )
        for gallery in galleries
    ]
    many = compare(*(score(gallery, reward_set([colours])) for gallery in galleries))
    kept = compare(*(score(gallery, reward_set([hue])) for gallery in named))
    return many.columns["colours"], kept.columns["hue"]


def bare(gallery: Gallery) -> Gallery:
    """By the prompts that were meant, where others were asked."""
    return Gallery(
        gallery.folder, [{**row, "prompt": row.get("bare", row["prompt"])} for row in gallery.rows]
    )


def line(name: str, changes: tuple[Change, Change]) -> str:
    """A row of Markdown."""
    many, kept = changes
    interval = f"{many.delta:+.0f} [{many.ci_low:+.0f}, {many.ci_high:+.0f}]"
    share = f"{kept.before * kept.n:.0f} → {kept.after * kept.n:.0f} of {kept.n}"
    return f"| {name} | {many.before:.0f} → {many.after:.0f} | {interval} | {share} |"
