"""Pictures and videos as pixels and tensors: decoded from files or bytes, and written to files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from align_gen.errors import one_line
from align_gen.files import new_file
from align_gen.galleries.beneath import read_beneath
from align_gen.galleries.formats import (
    FORMATS,
    MAX_BYTES,
    PICTURES,
    VIDEOS,
    OutOfMemory,
    UnreadablePicture,
)
from align_gen.galleries.jpeg import require_whole_jpeg
from align_gen.galleries.mp4 import decode_video, pixels_promised
from align_gen.galleries.png import require_whole_png

if TYPE_CHECKING:
    from torch import Tensor

# 64 megapixels are 768 MB as float32: what asks for more is a mistake or a decompression bomb.
MAX_PIXELS = 64 * 2**20
MAX_VIDEO_PIXELS = 256 * 2**20  # of all frames


def read_picture(path: Path) -> Tensor:
    """Read a picture as float32 (3,H,W), RGB, [0,1].

    The picture is turned upright by its EXIF orientation, transparency is laid on white, and of an
    animation only the first frame is read.

    Raises:
        UnreadablePicture: missing, broken, of another kind, or larger than MAX_PIXELS.
    """
    return as_media(_picture(path, path.suffix.lower()))


def read_video(path: Path) -> Tensor:
    """Read a video as float32 (F,3,H,W), RGB, [0,1].

    Raises:
        UnreadablePicture: missing, broken, of another kind, or larger than MAX_VIDEO_PIXELS.
    """
    return as_media(_video(path))


def read_pixels(source: Path | bytes, suffix: str) -> Any:
    """Decode a file, or its bytes, as uint8 numpy: (H,W,3) of a picture, (F,H,W,3) of a video.

    Raises:
        UnreadablePicture: as ``read_picture`` and ``read_video``.
        OutOfMemory: for want of memory; of the same kind.
    """
    try:
        return _video(source) if suffix in VIDEOS else _picture(source, suffix)
    except MemoryError as error:
        raise OutOfMemory from error


def pixels_of(content: bytes, suffix: str) -> int:
    """How many pixels decoding would give, by the header alone; of a video, in all frames.

    The header of a broken file may say anything; one that says nothing counts as the largest.
    """
    if suffix in VIDEOS:
        promised = pixels_promised(content)
        return MAX_VIDEO_PIXELS if promised is None else promised
    # Read in place: to open a small PNG takes half as long as to decode it.
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR":
        return int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            return picture.width * picture.height
    except Exception:
        # Decoding, too, will stop there and tell the reason.
        return 0


def as_media(pixels: Any) -> Tensor:
    """Convert uint8 numpy (…,H,W,3) to float32 (…,3,H,W) in [0,1]."""
    import torch

    source = torch.from_numpy(pixels).movedim(-1, -3)
    # Into place: a copy in between would take as much again as the pixels.
    return torch.empty(source.shape, dtype=torch.float32).copy_(source).div_(255)


def encoded(media: Tensor) -> Any:
    """Convert (…,3,H,W) in [0,1] to uint8 numpy (…,H,W,3).

    Raises:
        ValueError: another shape, or a value that is not finite or leaves [0,1]. Up to 1e-3 outside
            counts as rounding; more is another range.
    """
    if media.ndim not in (4, 5) or media.shape[-3] != 3 or 0 in media.shape:
        raise ValueError(
            f"media: want (B,3,H,W) or (B,F,3,H,W), none of them 0, got {tuple(media.shape)}"
        )
    media = media.detach().float().cpu()
    low = media.min().item()
    high = media.max().item()
    # Written so that NaN fails.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"media: want finite values in [0,1], got {low} to {high}")
    return media.clamp(0, 1).mul(255).round().byte().movedim(-3, -1).contiguous().numpy()


def write_media(folder: Path, number: int, pixels: Any, fps: int) -> str:
    """Write a uint8 picture (H,W,3) as PNG or video (F,H,W,3) as MP4; returns the file's name."""
    if pixels.ndim == 3:
        name = f"{number:05d}.png"
        with new_file(folder / name) as file:
            Image.fromarray(pixels).save(file, "PNG")
        return name
    import imageio.v3 as iio

    name = f"{number:05d}.mp4"
    # H.264 as browsers play it, nearly lossless; sizes are not rounded up to its blocks.
    options: dict[str, Any] = {
        # Quality is set by -crf alone: imageio's own ``quality`` would set a second one.
        "codec": "libx264",
        "pixelformat": "yuv420p",
        "macro_block_size": 2,
        "ffmpeg_params": ["-crf", "8"],
    }
    iio.imwrite(
        folder / name,
        pixels,
        plugin="FFMPEG",
        fps=fps,
        quality=None,
        ffmpeg_log_level="error",
        **options,
    )
    return name


def _picture(source: Path | bytes, suffix: str) -> Any:
    import numpy as np

    if suffix not in PICTURES:
        raise UnreadablePicture(f"kind {suffix!r} is not one of {', '.join(PICTURES)}")
    content = _bytes_of(source)
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            # By the header alone: pixels of a decompression bomb are never decoded.
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width}x{picture.height}"
                raise UnreadablePicture(f"{size} is more than {MAX_PIXELS} pixels")
            _require_whole(content, picture)
            return np.array(_upright_rgb(picture))
    except (UnreadablePicture, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Its own message is the path, which says nothing of the reason.
        raise UnreadablePicture("not a PNG, JPEG or WebP picture") from error
    except Exception as error:
        # Broken files make decoders raise anything: OSError, SyntaxError, struct.error …
        raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 200)}") from error


def _require_whole(content: bytes, picture: Image.Image) -> None:
    """UnreadablePicture where pixels are missing that Pillow would make up in silence."""
    # By the bytes: Pillow also knows JPEGs of several pictures, under another name.
    if content[:3] == b"\xff\xd8\xff":
        require_whole_jpeg(content, picture)
    elif picture.format == "PNG":
        require_whole_png(content, picture)


def _video(source: Path | bytes) -> Any:
    content = _bytes_of(source)
    try:
        return decode_video(content, MAX_VIDEO_PIXELS)
    except (UnreadablePicture, MemoryError):
        raise
    except Exception as error:
        # Whatever the decoder says of a broken file.
        raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 200)}") from error


def _bytes_of(source: Path | bytes) -> bytes:
    """The bytes of a file that the caller chose, or those that are there already."""
    if isinstance(source, bytes):
        return source
    try:
        file = source.resolve()
        return read_beneath(file.parent, file.name, MAX_BYTES)
    except (FileNotFoundError, RuntimeError) as error:
        raise UnreadablePicture("no such file") from error
    except OSError as error:
        raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 160)}") from error


def _upright_rgb(picture: Image.Image) -> Image.Image:
    """Turn upright, and bring any mode of Pillow to RGB."""
    picture = ImageOps.exif_transpose(picture)
    # 16-bit grey, which Pillow itself would clip at 255.
    if picture.mode.startswith("I"):
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
