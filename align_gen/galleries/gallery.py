"""Galleries: a folder of pictures or videos and `metadata.jsonl`, one object a line, as the
datasets library has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from align_gen.distributed import rank_slice
from align_gen.errors import UserError, one_line, writing, writing_to
from align_gen.files import aside, lines_of, partial, publish, surviving, whole_file

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

METADATA = "metadata.jsonl"
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
OWN_FILES = re.compile(
    r"\.?(\d{5,}\.(png|mp4)|metadata\.jsonl|scores\.parquet)(\.part)?"
)  # what write_gallery may replace


class UnreadablePicture(Exception):
    """A picture or video that cannot be read; the message is the reason, without the path."""


@dataclass(frozen=True)
class Gallery:
    """A folder of pictures and what is known of each: `rows[i]` has "file_name", usually "prompt"
    and "seed".
    """

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> Gallery:
        """Read the rows, not the pictures. Without metadata.jsonl, the folder's pictures by name.

        Raises UserError for a missing or empty folder, and, with the line, for a row that is not an
        object, lacks "file_name", names a file outside the folder or has a "prompt" that is not
        text.
        """
        folder = surviving(Path(folder))
        return cls(folder, list(read_rows(folder)))

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """Where the picture of row `index` lies."""
        return self.folder / str(self.rows[index]["file_name"])

    def image(self, index: int) -> Tensor:
        """The picture of row `index`: float32 (3,H,W), RGB, [0,1]; raises UnreadablePicture. Safe
        in threads.
        """
        return read_picture(self.path(index))

    def media(self, index: int) -> Tensor:
        """The picture of row `index`, or its video, (F,3,H,W); likewise."""
        path = self.path(index)
        return read_video(path) if path.suffix.lower() in VIDEOS else read_picture(path)


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gallery, one by one, each checked; UserError as ``Gallery.load`` has it."""
    folder = surviving(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; want a folder of pictures, with or without {METADATA}"
        )
    metadata = folder / METADATA
    empty = True
    if metadata.is_file():
        for number, line in lines_of(metadata):
            empty = False
            yield _parse(line, folder, f"{metadata} line {number}")
    else:
        kinds = (*PICTURES, *VIDEOS)
        for name in sorted(path.name for path in folder.iterdir() if path.suffix.lower() in kinds):
            empty = False
            yield {"file_name": inside(folder, name, str(folder))}
    if empty:
        raise UserError(
            f"{folder}: no pictures; want {METADATA} with rows, or {', '.join((*PICTURES, *VIDEOS))} files"
        )


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


def require_gallery(folder: str | Path) -> None:
    """UserError where ``write_gallery`` would refuse the folder: asked before hours of sampling,
    not after.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; want a folder for the gallery")
    foreign = (
        sorted(p.name for p in target.iterdir() if not OWN_FILES.fullmatch(p.name))
        if target.exists()
        else []
    )
    if foreign:
        raise UserError(
            f"{target}: holds {foreign[0]!r}, which no gallery of ours does; want a new folder"
        )


def write_gallery(
    folder: str | Path,
    media: Tensor | Iterable[Tensor],
    rows: Sequence[Mapping[str, Any]],
    *,
    fps: int = 8,
    crew: Accelerator | None = None,
) -> Gallery:
    """Write pictures (B,3,H,W) in [0,1] as 00000.png …, or videos (B,F,3,H,W) as 00000.mp4 …, whole
    or in batches.

    `rows` are their metadata; each row gets its "file_name". The folder appears complete or not at
    all; an old gallery is replaced, its scores.parquet too, and survives until the new one is
    whole. Of a `crew` of processes each brings the media of its `rank_slice` of all rows. Raises
    UserError when the folder holds anything else or cannot be written, ValueError when shapes
    disagree or a pixel is not finite or leaves [0,1].
    """
    target = Path(folder).resolve()
    first = crew is None or crew.is_main_process
    part = partial(target)
    wait = (lambda: None) if crew is None else crew.wait_for_everyone
    with ExitStack() as stack:
        if first:
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            _prepare(target, part)
        stack.enter_context(writing(target))
        wait()
        mine = rank_slice(len(rows), crew)
        names: list[str] = []
        batches: Iterable[Any] = [media] if hasattr(media, "shape") else media
        for pixels in (pixels for batch in batches for pixels in _to_bytes(batch)):
            names.append(_write(part, mine.start + len(names), pixels, fps))
        if len(mine) != len(names):
            raise ValueError(f"{len(mine)} rows for {len(names)} pictures")
        wait()
        if first:
            kind = Path(names[0]).suffix if names else ""
            named = [{**row, "file_name": f"{number:05d}{kind}"} for number, row in enumerate(rows)]
            with whole_file(part / METADATA) as file:
                file.write(
                    "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named).encode()
                )
            publish(part, target)
        wait()
    return Gallery.load(folder)


def _write(folder: Path, number: int, pixels: Any, fps: int) -> str:
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


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """A line of metadata, its file's name relative and inside its folder; UserError with ``where``
    otherwise.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(
            row, ensure_ascii=False
        ).encode()  # half a surrogate pair parses, but could never be written again
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(
            f'{where}: want an object like {{"file_name": "00000.png", "prompt": "…", "seed": 0}}'
        )
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r}, want the name of a picture in the folder")
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
        )
    if not isinstance(row.get("prompt", ""), str):
        raise UserError(f"{where}: prompt is {row['prompt']!r}, want text")
    return row


def _parse(line: bytes, folder: Path, where: str) -> dict[str, Any]:
    row = parse_row(line, where)
    inside(folder, row["file_name"], where)
    return row


def inside(folder: Path, name: str, where: str) -> str:
    """`name`, once it is known to lie in the folder, links followed; UserError otherwise."""
    try:
        (folder / name).exists()  # raises where the name is too long for the disk
        escapes = not (folder / name).resolve().is_relative_to(folder.resolve())
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # a NUL byte, a name too long, links that go in circles
        raise UserError(
            f"{where}: file_name {name[:80]!r} is no file name ({str(error)[:80]})"
        ) from error
    if escapes:
        raise UserError(
            f"{where}: file_name {name!r} leaves the folder; want a relative path inside it"
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


def _to_bytes(media: Tensor) -> Any:
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


def _prepare(target: Path, part: Path) -> None:
    """Make `part` an empty folder beside `target`; clears what a killed write left. UserError if it
    may not be.
    """
    require_gallery(target)
    with writing_to(target, "a folder that can"):
        if target.exists():
            shutil.rmtree(aside(target), ignore_errors=True)
        elif aside(target).exists():
            os.replace(aside(target), target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
