"""Whether a PNG holds all rows of its picture: where its data ends early, Pillow leaves zeros."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from PIL import Image

from .formats import UnreadablePicture

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
# The seven passes of an interlaced picture: first column and row, and their steps.
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def require_whole_png(content: bytes, picture: Image.Image) -> None:
    """UnreadablePicture where the data of a PNG ends before its last row."""
    picture.load()
    # Only rows of zeros at the end leave a doubt; of an interlaced picture, every other row.
    right = picture.width - 1
    corners = [picture.getpixel((right, max(picture.height - n, 0))) for n in (1, 2)]
    if all(corner not in (0, (0, 0), (0, 0, 0), (0, 0, 0, 0)) for corner in corners):
        return
    last = picture.crop((0, max(picture.height - 2, 0), picture.width, picture.height)).tobytes()
    half = len(last) // min(picture.height, 2)
    if any(last[:half]) and any(last[half:] or b"\1"):
        return
    header = content[16:29]
    if len(header) < 13 or content[12:16] != b"IHDR":
        return
    promised = _bytes_promised(header)
    if _inflates_to_less(content, promised):
        raise UnreadablePicture("a cut PNG: its data ends before the picture does")


def _bytes_promised(header: bytes) -> int:
    """The size of all rows, with the filter byte that each begins with."""
    width = int.from_bytes(header[:4], "big")
    height = int.from_bytes(header[4:8], "big")
    bits = header[8] * SAMPLES.get(header[9], 1)
    parts = [(width, height)]
    if header[12]:
        parts = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in PASSES]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in parts if columns > 0)


def _inflates_to_less(content: bytes, promised: int) -> bool:
    """Whether the data is shorter than promised; no more than a block of it is in memory."""
    inflate = zlib.decompressobj()
    for data in _data_chunks(content):
        while data:
            promised -= len(inflate.decompress(data, 2**18))
            data = inflate.unconsumed_tail
            if promised <= 0:
                return False
    return promised > 0


def _data_chunks(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            yield content[at + 8 : at + 8 + length]
        at += 12 + length
