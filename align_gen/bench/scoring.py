"""Measure scoring beside its floor: the network's own time, and reading files on every core."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import bundled
from ..galleries.gallery import Gallery, write_gallery
from ..galleries.media import read_picture
from ..galleries.scoring import score
from ..reward_heads import reward_set
from .timing import Row, in_turns, row

PICTURES = 512
BATCHES = (16, 32, 64, 128)


def bench_scoring(device: torch.device, *, rounds: int = 7) -> Row:
    """Time 512 pictures of 64 x 64 scored by emoji-clip.

    The floor: encode the pictures at the best batch size + read their files ÷ cores.
    """
    rewards = reward_set(bundled.reward_spec({"clip": {"path": "emoji-clip"}})).to(device)
    (head,) = rewards.heads.values()
    texts = [f"picture {i % 64}" for i in range(PICTURES)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        media = torch.rand(PICTURES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        media = torch.nn.functional.interpolate(media, (64, 64), mode="bicubic").clamp(0, 1)
        gallery = write_gallery(
            Path(folder) / "gallery", media, [{"prompt": text} for text in texts]
        )
        media = media.to(device)

        def encode(size: int) -> Callable[[], Any]:
            return lambda: [head(part, texts[: len(part)]) for part in media.split(size)]

        # The floor is the fastest that this machine can be, at whatever batch size that is.
        tried = in_turns({str(size): encode(size) for size in BATCHES}, 3, device)
        best = min(BATCHES, key=lambda size: min(tried[str(size)]))
        works = {
            "score": lambda: score(gallery, rewards),
            "encode": encode(best),
            "read": lambda: _read(gallery),
        }
        seconds = in_turns(works, rounds, device)
    # Files are read on all cores while the model runs.
    cores = os.cpu_count() or 1
    floors = [
        encoded + read / cores
        for encoded, read in zip(seconds["encode"], seconds["read"], strict=True)
    ]
    return row("score", "emoji-clip", PICTURES, seconds["score"], floors)


def _read(gallery: Gallery) -> None:
    for index in range(len(gallery)):
        read_picture(gallery.path(index))
