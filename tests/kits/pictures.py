"""Encoded pictures and videos, and shards of them, for tests of what reads files."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align_gen.galleries.media import write_media


def picture(form: str = "PNG", size: tuple[int, int] = (8, 8), level: int = 10) -> bytes:
    """A plain grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, form)
    return buffer.getvalue()


def patches(
    form: str = "PNG", size: tuple[int, int] = (90, 70), mode: str = "RGB", **more: Any
) -> bytes:
    """A picture of smooth random patches, none of whose blocks is like another."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    buffer = io.BytesIO()
    made = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    made.convert(mode).save(buffer, form, **more)
    return buffer.getvalue()


def video(folder: Path, frames: int = 12) -> bytes:
    """An MP4 of moving patches, as ``write_media`` writes it."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8 + frames, 3), np.uint8)
    wide = np.asarray(Image.fromarray(noise).resize((4 * (8 + frames), 24)))
    clip = np.stack([wide[:, 4 * n : 4 * n + 32] for n in range(frames)])
    return (folder / write_media(folder, 0, clip, 8)).read_bytes()


def tar(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """A tar file, packed by ``mode``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
