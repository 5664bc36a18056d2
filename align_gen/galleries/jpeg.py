"""Whether a JPEG holds all of its picture.

libjpeg fills up what is missing before an end marker, grey or blurred, and Pillow keeps its warning
to itself. So the scans are counted, and where that leaves a doubt, the picture is decoded once more
with bytes inserted where its data ends: only a decoder that ran out of data reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from .formats import UnreadablePicture

# A marker within a scan's data, other than the stuffed zero byte and fill bytes.
MARKER = re.compile(rb"\xff[^\x00\xff]")
RESTARTS = range(0xD0, 0xD8)
ALONE = {0x01, *RESTARTS, 0xD8}  # markers without data
SEQUENTIAL = (0xC0, 0xC1)
PROGRESSIVE = 0xC2
END = 0xD9
SCAN = 0xDA
RESTART_INTERVAL = 0xDD
MAX_SCANS = 100  # each goes through the whole picture; encoders write about ten
# Zeros end the last code; what follows decodes to something else than nothing.
FILLER = bytes(4) + bytes((37 * number + 11) % 251 for number in range(60))
STRIPE = 256  # rows that are compared at once


def require_whole_jpeg(content: bytes, picture: Image.Image) -> None:
    """UnreadablePicture where data of a JPEG is missing, however it ends.

    Less than one block of at most 16 x 16 pixels may be missing without being seen.

    Args:
        content: of the file.
        picture: as Pillow opened it; its pixels are loaded.
    """
    structure = _Structure.of(content)
    if structure.incomplete:
        raise UnreadablePicture("a cut JPEG: parts of the picture are missing")
    picture.load()
    # A lone scan that lacks blocks leaves the last one grey: zeros, at the middle of the range.
    corner = picture.getpixel((picture.width - 1, picture.height - 1))
    grey = {"L": 128, "RGB": (128, 128, 128)}.get(picture.mode, corner)
    if structure.is_simple and corner != grey:
        return
    with Image.open(BytesIO(structure.with_filler(content)), formats=["JPEG"]) as again:
        if not _same_pixels(picture, again):
            raise UnreadablePicture("a cut JPEG: its data ends before the picture does")


@dataclass
class _Structure:
    """Where the data of a JPEG ends.

    Attributes:
        ends: offsets of the markers that follow entropy-coded data.
        scans: how many there are.
        frame: the marker of the frame's kind.
        size: width and height.
        sampling: by component, its samples across and down in each block of the picture.
        bits: by component, the lowest bit that has come of each coefficient.
        interval: blocks between two restart markers; 0 without any.
        restarts: markers that are still to come.
        ended: whether there is an end marker.
    """

    ends: list[int] = field(default_factory=list)
    scans: int = 0
    frame: int = 0
    size: tuple[int, int] = (0, 0)
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    bits: dict[int, list[int]] = field(default_factory=dict)
    interval: int = 0
    restarts: int = 0
    ended: bool = False

    @classmethod
    def of(cls, content: bytes) -> _Structure:
        """The structure up to the end marker; UnreadablePicture with more than MAX_SCANS scans."""
        made = cls()
        at = 2
        while (match := MARKER.search(content, at)) and not made.ended:
            start = match.start()
            marker = content[start + 1]
            at = start + 2
            if marker == END:
                made.ended = True
            elif marker not in ALONE:
                length = int.from_bytes(content[at : at + 2], "big")
                made._note(marker, content[at + 2 : at + length])
                at += length
            if marker == SCAN:
                at = made._skip_data(content, at)
        return made

    @property
    def incomplete(self) -> bool:
        """Whether a part is missing as a whole: a component, a scan that refines, the end."""
        missing = any(low for bits in self.bits.values() for low in bits)
        return missing or self.restarts > 0 or not self.ended

    @property
    def is_simple(self) -> bool:
        """Whether missing data can only show at the end of the picture, as grey."""
        return self.frame in SEQUENTIAL and self.scans == 1 and len(self.ends) == 1

    def with_filler(self, content: bytes) -> bytes:
        """The file with bytes that a decoder skips, unless data is missing before them."""
        starts = [0, *self.ends]
        stops = [*self.ends, len(content)]
        return FILLER.join(content[a:b] for a, b in zip(starts, stops, strict=True))

    def _note(self, marker: int, data: bytes) -> None:
        """Note what a frame promises, or what a scan brings."""
        if marker in (*SEQUENTIAL, PROGRESSIVE) and len(data) > 5:
            self.frame = marker
            self.size = (int.from_bytes(data[3:5], "big"), int.from_bytes(data[1:3], "big"))
            parts = [data[at : at + 3] for at in range(6, min(6 + 3 * data[5], len(data) - 2), 3)]
            self.sampling = {part[0]: (part[1] >> 4 or 1, part[1] & 15 or 1) for part in parts}
            self.bits = {component: [1] * 64 for component in self.sampling}
        elif marker == RESTART_INTERVAL:
            self.interval = int.from_bytes(data[:2], "big")
        elif marker == SCAN and data:
            self._note_scan(data)

    def _note_scan(self, data: bytes) -> None:
        self.scans += 1
        if self.scans > MAX_SCANS:
            raise UnreadablePicture(f"a JPEG of more than {MAX_SCANS} scans")
        components = [each for each in data[1 : 1 + 2 * data[0] : 2] if each in self.bits]
        first, last, bit = 0, 63, 0
        if self.frame == PROGRESSIVE and len(data) >= 4 + 2 * data[0]:
            first, last, bit = data[-3], min(data[-2], 63), data[-1] & 15
        for component in components:
            self.bits[component][first : last + 1] = [bit] * (last + 1 - first)
        if self.interval and components:
            self.restarts += (self._blocks(components) - 1) // self.interval

    def _blocks(self, components: list[int]) -> int:
        """The number of blocks in a scan of some components; those of a lone one are smaller."""
        across = max(each[0] for each in self.sampling.values())
        down = max(each[1] for each in self.sampling.values())
        own = self.sampling[components[0]] if len(components) == 1 else (1, 1)
        columns = -(-self.size[0] * own[0] // (8 * across))
        rows = -(-self.size[1] * own[1] // (8 * down))
        return max(1, columns * rows)

    def _skip_data(self, content: bytes, at: int) -> int:
        """The offset of the marker that ends a scan's data; those of restarts are noted."""
        for match in MARKER.finditer(content, at):
            self.ends.append(match.start())
            if content[match.start() + 1] not in RESTARTS:
                return match.start()
            self.restarts -= 1
        return len(content)


def _same_pixels(one: Image.Image, other: Image.Image) -> bool:
    if (one.size, one.mode) != (other.size, other.mode):
        return False
    for top in range(0, one.height, STRIPE):
        box = (0, top, one.width, min(top + STRIPE, one.height))
        if one.crop(box).tobytes() != other.crop(box).tobytes():
            return False
    return True
