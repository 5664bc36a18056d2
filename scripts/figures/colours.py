"""Checks without any network: how many colours pictures have, and whether the asked one.

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
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.intervals import Change
from align_gen.opening import open_rewards

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
    """1 where a picture's mean hue is within 30 degrees of its prompt's, else 0; (B,)."""
    red, green, blue = media.mean((-2, -1)).unbind(1)
    along = red - (green + blue) / 2
    across = (green - blue) * math.sqrt(3) / 2
    mean = torch.rad2deg(torch.atan2(across, along))
    asked = torch.tensor([asked_hue(prompt) or 0.0 for prompt in prompts])
    apart = ((mean - asked + 180) % 360 - 180).abs()  # the short way round the circle
    return (apart <= NEAR).float()


def unlearned(before: Path, after: Path) -> tuple[Change, Change]:
    """Changes between two galleries: in the number of colours, and in the share of asked hues."""
    galleries = [bare(Gallery.load(folder)) for folder in (before, after)]
    many = compare(*(score(gallery, open_rewards([colours])) for gallery in galleries))
    coloured = [with_a_colour(gallery) for gallery in galleries]
    right = compare(*(score(gallery, open_rewards([hue])) for gallery in coloured))
    return many.columns["colours"], right.columns["hue"]


def with_a_colour(gallery: Gallery) -> Gallery:
    """The part of a gallery whose prompts name a colour."""
    rows = [row for row in gallery.rows if asked_hue(row["prompt"]) is not None]
    return Gallery(gallery.folder, rows)


def bare(gallery: Gallery) -> Gallery:
    """A gallery under the prompts that were meant, where others were asked."""
    rows = [{**row, "prompt": row.get("bare", row["prompt"])} for row in gallery.rows]
    return Gallery(gallery.folder, rows)


def line(name: str, changes: tuple[Change, Change]) -> str:
    """A row of Markdown."""
    many, right = changes
    interval = f"{many.delta:+.0f} [{many.ci_low:+.0f}, {many.ci_high:+.0f}]"
    share = f"{right.before * right.n:.0f} → {right.after * right.n:.0f} of {right.n}"
    return f"| {name} | {many.before:.0f} → {many.after:.0f} | {interval} | {share} |"
