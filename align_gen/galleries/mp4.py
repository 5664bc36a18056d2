"""Decode MP4 files with ffmpeg, as far as a limit of pixels; a file that is cut is an error."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from .formats import UnreadablePicture

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes of boxes
REASON_BYTES = 2000  # of what ffmpeg says


def decode_video(content: bytes, max_pixels: int) -> Any:
    """Decode the bytes of an MP4 to uint8 numpy (F,H,W,3).

    Raises:
        UnreadablePicture: it is broken, cut, of another kind, or has more than ``max_pixels`` in
            all frames.
    """
    import numpy as np

    require_whole_boxes(content)
    frames = bytearray()
    shape = None
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(content)
        file.flush()
        with _ffmpeg(file.name, max_pixels) as stream:
            while (size := _frame_size(stream)) is not None:
                if shape not in (None, size):
                    raise UnreadablePicture("a video whose frames differ in size")
                shape = size
                length = 3 * size[0] * size[1]
                # Counted while frames arrive: the header of a broken file may promise any number.
                if len(frames) + length > 3 * max_pixels:
                    raise UnreadablePicture(f"more than {max_pixels} pixels in all frames")
                frame = stream.read(length)
                if len(frame) < length:
                    raise UnreadablePicture("a video whose last frame is cut")
                frames += frame
    if shape is None:
        raise UnreadablePicture("a video without frames")
    return np.frombuffer(frames, np.uint8).reshape(-1, shape[1], shape[0], 3)


def pixels_promised(content: bytes) -> int | None:
    """The pixels in all frames by the file's header; None where the header does not say."""
    frames = 0
    area = 0
    for kind, start, stop in _boxes_within(content, 0, len(content)):
        if kind == b"stsz":
            frames = max(frames, int.from_bytes(content[start + 8 : start + 12], "big"))
        elif kind == b"tkhd":
            # The last eight bytes are width and height, as fixed-point numbers.
            width = int.from_bytes(content[stop - 8 : stop - 6], "big")
            area = max(area, width * int.from_bytes(content[stop - 4 : stop - 2], "big"))
    return frames * area or None


def require_whole_boxes(content: bytes) -> None:
    """UnreadablePicture where the last box is larger than what is left of the file."""
    ends = [end for _, _, end in _boxes(content, 0, len(content))]
    if not ends or ends[-1] != len(content):
        raise UnreadablePicture("a cut or broken MP4: its last part is not all there")


def _boxes(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and where the content begins and ends, of boxes one after the other."""
    while stop - start >= 8:
        head = 8
        size = int.from_bytes(content[start : start + 4], "big")
        if size == 1:
            head = 16
            size = int.from_bytes(content[start + 8 : start + 16], "big")
        elif size == 0:
            size = stop - start
        # A size that is smaller than its own header would never end.
        end = start + max(size, head)
        yield content[start + 4 : start + 8], start + head, end
        start = end


def _boxes_within(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes, and those in boxes, that lead to the tables of samples."""
    for kind, inner, end in _boxes(content, start, min(stop, len(content))):
        if kind in CONTAINERS:
            yield from _boxes_within(content, inner, end)
        else:
            yield kind, inner, end


def _frame_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of the next frame, each of which comes as a PPM picture; None at the end."""
    if stream.readline(16) != b"P6\n":
        return None
    width, height = stream.readline(32).split()
    stream.readline(16)
    return int(width), int(height)


@contextmanager
def _ffmpeg(path: str, max_pixels: int) -> Iterator[IO[bytes]]:
    """The frames of a file as PPM pictures; UnreadablePicture if the decoder met an error."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
    # Whatever is broken ends the decoding, with an exit code that says so.
    command += ["-xerror", "-max_pixels", str(max_pixels)]
    # The demuxer is named, so that no other kind of file is opened under the name of an MP4.
    command += ["-protocol_whitelist", "file", "-f", "mov", "-i", f"file:{path}"]
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        try:
            yield process.stdout
            process.stdout.close()
            failed = process.wait() != 0
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if failed:
            said.seek(0)
            lines = said.read(REASON_BYTES).decode("utf-8", "replace").splitlines()
            reason = lines[0].rsplit("] ", 1)[-1] if lines else "ffmpeg failed"
            raise UnreadablePicture(f"a cut or broken video ({reason[:160]})")
