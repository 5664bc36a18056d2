"""Cut files: a prefix of a picture or video, also one made to look whole, is no picture."""

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.media import pixels_of, read_pixels
from tests.kits.pictures import patches, video

LAW = settings(max_examples=60, deadline=None, derandomize=True)
FRACTIONS = st.floats(0, 1, exclude_max=True)

# What Pillow and other encoders write: in one scan or many, with restart markers, of any colours.
JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "full colour": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "restarts of rows": {"restart_marker_rows": 1},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 2},
    "grey": {"mode": "L"},
    "ink": {"mode": "CMYK"},
}
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("JPEG", more) for name, more in JPEGS.items()},
    "PNG": ("PNG", {}),
    "palette": ("PNG", {"mode": "P"}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
}


def decoded(content: bytes, suffix: str = ".jpg") -> Any:
    """The pixels, or None where the file is refused."""
    try:
        return read_pixels(content, suffix)
    except UnreadablePicture:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
@LAW
@given(fraction=FRACTIONS)
def test_a_prefix_of_a_picture_is_no_picture(name: str, fraction: float) -> None:
    """Or all of it, where only the end marker is lost."""
    form, more = PICTURES[name]
    whole = patches(form, **more)
    found = decoded(whole[: int(fraction * len(whole))])
    assert found is None or (found == decoded(whole)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", JPEGS)
@LAW
@given(fraction=FRACTIONS)
def test_a_cut_jpeg_with_an_end_marker_is_no_picture(name: str, fraction: float) -> None:
    """Less than a block of 16 x 16 may go unseen, and its neighbours' colours are smoothed."""
    whole = patches("JPEG", **JPEGS[name])
    found = decoded(whole[: int(fraction * len(whole))] + b"\xff\xd9")
    if found is not None:
        rows, columns = np.nonzero((found != decoded(whole)).any(-1))
        assert not len(rows) or (np.ptp(rows) <= 17 and np.ptp(columns) <= 17)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_whole_jpeg_is_read_whatever_its_corner_is(name: str, level: int) -> None:
    """Grey is what libjpeg makes up; a picture may be grey by itself, and is decoded as Pillow
    does.
    """
    for size in ((1, 1), (16, 16), (33, 17)):
        buffer = io.BytesIO()
        more = {**JPEGS[name]}
        plain = Image.new("RGB", size, (level,) * 3).convert(more.pop("mode", "RGB"))
        plain.save(buffer, "JPEG", **more)
        expected = np.asarray(Image.open(buffer).convert("RGB"))
        assert (decoded(buffer.getvalue()) == expected).all()
        assert pixels_of(buffer.getvalue(), ".jpg") == size[0] * size[1]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each scan goes through the whole picture: 5 MB of them would take hours."""
    whole = patches("JPEG", progressive=True)
    scan = whole.rindex(b"\xff\xda")
    assert decoded(whole[:-2] + whole[scan:-2] * 100 + b"\xff\xd9") is None


def png_of(rows: bytes, size: tuple[int, int], interlaced: bool = False) -> bytes:
    """A PNG of RGB rows, whose chunks are whole whatever the rows are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.slow
@pytest.mark.parametrize("interlaced", [False, True])
@LAW
@given(
    missing=st.integers(1, 400),
    level=st.sampled_from([0, 7]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_png_of_too_few_rows_is_no_picture(
    interlaced: bool, missing: int, level: int, size: tuple[int, int]
) -> None:
    """Rows of W x 3 bytes and a filter byte; interlaced, 7 passes at most, of whole rows. A black
    picture is whole as it is.
    """
    width, height = size
    lengths = [width] * height
    if interlaced:
        lengths = []
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4))
        for x, y, dx, dy in (*passes, (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
            if len(range(x, width, dx)):
                lengths += [len(range(x, width, dx))] * len(range(y, height, dy))
    rows = b"".join(b"\0" + bytes([level] * 3 * length) for length in lengths)
    assert (decoded(png_of(rows, size, interlaced), ".png") == level).all()
    assert decoded(png_of(rows[:-missing], size, interlaced), ".png") is None


# --- videos ---------------------------------------------------------------------------------------


def remuxed(content: bytes, folder: Path, *options: str) -> bytes:
    """The same frames in another layout."""
    (folder / "in.mp4").write_bytes(content)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-i", folder / "in.mp4"]
    subprocess.run([*command, *options, folder / "out.mp4"], check=True)
    return (folder / "out.mp4").read_bytes()


LAYOUTS = {
    "as written": ("-c", "copy"),
    "faststart": ("-c", "copy", "-movflags", "+faststart"),
    "fragments": ("-g", "4", "-movflags", "frag_keyframe+empty_moov"),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_of_a_video_is_no_video(tmp_path: Path, layout: str) -> None:
    """No cut gives fewer frames: it is refused, or all frames are there."""
    whole = remuxed(video(tmp_path), tmp_path, *LAYOUTS[layout])
    assert decoded(whole, ".mp4").shape == (12, 24, 32, 3)
    for number in range(24):
        found = decoded(whole[: number * len(whole) // 24 + number % 3], ".mp4")
        assert found is None or len(found) == 12


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_video_whose_end_is_zeros_is_no_video(tmp_path: Path, layout: str) -> None:
    """As a download leaves it that had claimed its space; ffmpeg alone would make up frames."""
    whole = remuxed(video(tmp_path), tmp_path, *LAYOUTS[layout])
    start = len(whole) // 2
    refused = decoded(whole[:start] + bytes(len(whole) - start), ".mp4") is None
    assert refused


def test_the_header_of_a_video_tells_its_pixels(tmp_path: Path) -> None:
    assert pixels_of(video(tmp_path), ".mp4") == 12 * 24 * 32
