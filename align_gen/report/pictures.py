"""The pictures of the page: thumbnails as data URLs, each with its scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.formats import UnreadablePicture
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.table import ScoresTable
from align_gen.portable import portable_text

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]
MILLISECONDS = 125  # a frame of a moving thumbnail, whatever the video's own rate


def pictures_of(
    table: ScoresTable, rows: Sequence[int], columns: Sequence[str], thumbnail: int
) -> list[Json]:
    """The chosen rows of a table, as the page's script reads them.

    Each has "file", "picture" (a data URL, or None), "reason" (why there is no picture or score)
    and "scores", one per column. A picture is at most ``thumbnail`` pixels a side.
    """
    # Decoding is most of the time, and releases the interpreter's lock.
    names = [str(table.rows[row].get("file_name", "")) for row in rows]
    picture = _reader(table.folder, thumbnail)
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(picture, names))
    for entry, name, row in zip(pictures, names, rows, strict=True):
        entry["file"] = name
        entry["reason"] = entry["reason"] or portable_text(table.errors[row] or "") or None
        entry["scores"] = [
            table.heads[column][row] if column in table.heads else None for column in columns
        ]
    return pictures


def _reader(folder: str | None, thumbnail: int) -> Callable[[str], Json]:
    """A function from a file's name to its "picture" and "reason"."""
    # A page without pictures still shows the scores.
    gallery = None
    reason = "the scores name no gallery in their own folder"
    if folder is not None:
        try:
            gallery = Gallery.load(folder)
        except (UserError, OSError) as error:
            reason = portable_text(str(error))
    index = {row["file_name"]: number for number, row in enumerate(gallery or [])}

    def picture(name: str) -> Json:
        if gallery is None:
            return {"picture": None, "reason": reason}
        if name not in index:
            return {"picture": None, "reason": f"{name} is not in the gallery"}
        try:
            return {"picture": _thumbnail(gallery.media(index[name]), thumbnail), "reason": None}
        except UnreadablePicture as error:
            return {"picture": None, "reason": str(error)}

    return picture


def _thumbnail(media: Tensor, side: int) -> str:
    """A data URL without its scheme, of ``side`` pixels at most.

    PNG of a picture (3,H,W) in [0,1]; moving WebP of a video (F,3,H,W).
    """
    from PIL import Image

    frames = []
    for picture in media if media.ndim == 4 else media[None]:
        # As write_media rounds, so that a small picture is shown to the pixel.
        pixels = picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(pixels)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        frames.append(image)
    buffer = io.BytesIO()
    if media.ndim == 3:
        kind = "png"
        frames[0].save(buffer, "PNG", optimize=True)
    else:
        kind = "webp"
        moving: Json = {
            "save_all": True,
            "append_images": frames[1:],
            "duration": MILLISECONDS,
            "loop": 0,
        }
        frames[0].save(buffer, "WEBP", quality=80, **moving)
    return f"image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
