"""Pictures and videos as tensors: decode them from files or bytes, and encode them into files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from align_gen.errors import one_line
from align_gen.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}  # suffix -> decoder, no other is tried

FORMATS = tuple(set(PICTURES.values()))

VIDEOS = (".mp4",)

MAX_PIXELS = (
    64 * 2**20
)  # 64 megapixels: 768 MB as float32; what asks for more is a mistake or a decompression bomb

MAX_VIDEO_PIXELS = 256 * 2**20  # of all frames


class UnreadablePicture(Exception):
    """A picture or video that cannot be read; the message is the reason, without the path."""


def read_picture(path: Path) -> Tensor:
    """A picture as float32 (3,H,W), RGB, [0,1]: turned upright, transparency laid on white, first
    frame only.

    Raises UnreadablePicture when it is missing, broken, of another kind, or larger than MAX_PIXELS.
    """
    return as_media(_picture(path, path.suffix.lower()))


def read_video(path: Path) -> Tensor:
    """A video as float32 (F,3,H,W), RGB, [0,1].

    Raises UnreadablePicture when it is missing, broken, of another kind, or larger than
    MAX_VIDEO_PIXELS.
    """
    return as_media(_video(path))


def read_pixels(source: Path | bytes, suffix: str) -> Any:
    """A picture or video from a file or its bytes, as uint8 numpy (H,W,3) or (F,H,W,3); raises
    UnreadablePicture.
    """
    return _video(source) if suffix in VIDEOS else _picture(source, suffix)


def suffix_of(content: bytes) -> str:
    """The suffix of media without a name, by their first bytes; .png for what is no kind that is
    read.
    """
    if content[4:8] == b"ftyp":
        return ".mp4"
    if content[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if content[8:12] == b"WEBP" else ".png"


def as_media(pixels: Any) -> Tensor:
    """uint8 numpy (…,H,W,3) -> float32 (…,3,H,W) in [0,1]."""
    import torch

    return torch.from_numpy(pixels).movedim(-1, -3).contiguous().float().div_(255)


def _picture(source: Path | bytes, suffix: str) -> Any:
    import numpy as np

    if suffix not in PICTURES:
        raise UnreadablePicture(f"kind {suffix!r} is not one of {', '.join(PICTURES)}")
    if isinstance(source, Path) and not source.is_file():
        raise UnreadablePicture("no such file")
    try:
        with Image.open(
            BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UnreadablePicture(
                    f"{picture.width}x{picture.height} is more than {MAX_PIXELS} pixels"
                )
            return np.array(_upright_rgb(picture))
    except UnreadablePicture:
        raise
    except UnidentifiedImageError as error:  # its message is the path, which says nothing
        raise UnreadablePicture("not a PNG, JPEG or WebP picture") from error
    except (
        Exception
    ) as error:  # broken files make decoders raise anything: OSError, SyntaxError, struct.error …
        raise UnreadablePicture(f"{type(error).__name__}: {error}") from error


def _video(source: Path | bytes) -> Any:
    import imageio.v3 as iio
    import numpy as np

    if isinstance(source, Path) and not source.is_file():
        raise UnreadablePicture("no such file")
    try:
        frames, pixels = [], 0
        # No other kind, whatever its name.
        for frame in iio.imiter(
            source, plugin="FFMPEG", extension=".mp4", input_params=["-f", "mov"]
        ):
            pixels += frame.shape[0] * frame.shape[1]
            if pixels > MAX_VIDEO_PIXELS:
                raise UnreadablePicture(f"more than {MAX_VIDEO_PIXELS} pixels in all frames")
            frames.append(frame)
    except UnreadablePicture:
        raise
    except Exception as error:  # whatever the decoder says of a broken file
        raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 200)}") from error
    if not frames:
        raise UnreadablePicture("a video without frames")
    return np.stack(frames)


def write_media(folder: Path, number: int, pixels: Any, fps: int) -> str:
    """One picture (H,W,3) or video (F,H,W,3), uint8; its name."""
    if pixels.ndim == 3:
        name = f"{number:05d}.png"
        with whole_file(folder / name) as file:
            Image.fromarray(pixels).save(file, "PNG")
        return name
    import imageio.v3 as iio

    name = f"{number:05d}.mp4"
    # H.264 as browsers play it, nearly lossless; sizes are not rounded up to its blocks.
    options: dict[str, Any] = {
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


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def encoded(media: Tensor) -> Any:
    """(…,3,H,W) in [0,1] -> uint8 numpy (…,H,W,3). A 1e-3 overshoot is rounding; more is another
    range.
    """
    if media.ndim not in (4, 5) or media.shape[-3] != 3 or 0 in media.shape:
        raise ValueError(
            f"media: want (B,3,H,W) or (B,F,3,H,W), none of them 0, got {tuple(media.shape)}"
        )
    media = media.detach().float().cpu()
    low = media.min().item()
    high = media.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails
        raise ValueError(f"media: want finite values in [0,1], got {low} to {high}")
    return media.clamp(0, 1).mul(255).round().byte().movedim(-3, -1).contiguous().numpy()
