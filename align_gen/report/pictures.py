"""The pictures of the page: thumbnails as data URLs, and each picture's scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery
from align_gen.galleries.media import UnreadablePicture
from align_gen.galleries.table import ScoresTable

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]


def pictures_of(
    table: ScoresTable, rows: Sequence[int], columns: Sequence[str], thumbnail: int
) -> list[Json]:
    """Pictures, or why not, and scores (one a column) of the chosen rows."""
    names = [str(table.rows[i].get("file_name", "")) for i in rows]
    gallery = None
    reason = "the scores do not say where the gallery is"
    if table.folder is not None:
        try:
            gallery = Gallery.load(table.folder)
        except (UserError, OSError) as error:
            reason = str(error)
    place = {row["file_name"]: i for i, row in enumerate(gallery.rows)} if gallery else {}

    def picture(name: str) -> Json:
        if gallery is None or name not in place:
            return {
                "picture": None,
                "reason": f"{name} is not in the gallery" if gallery else reason,
            }
        try:
            return {"picture": _thumbnail(gallery.media(place[name]), thumbnail), "reason": None}
        except UnreadablePicture as error:
            return {"picture": None, "reason": str(error)}

    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(picture, names))
    for entry, name, i in zip(pictures, names, rows, strict=True):
        entry |= {"file": name, "reason": entry["reason"] or table.errors[i]}
        entry["scores"] = [
            table.heads[column][i] if column in table.heads else None for column in columns
        ]
    return pictures


MILLISECONDS = 125  # a frame of a moving thumbnail, whatever the video's own rate


def _thumbnail(media: Tensor, side: int) -> str:
    """A data URL without its scheme: PNG of (3,H,W) in [0,1], moving WebP of (F,3,H,W); `side`
    pixels at most.
    """
    from PIL import Image

    frames = []
    for picture in media if media.ndim == 4 else media[None]:
        image = Image.fromarray(
            picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        )
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        frames.append(image)
    buffer = io.BytesIO()
    if media.ndim == 3:
        frames[0].save(buffer, "PNG", optimize=True)
    else:
        moving = {
            "save_all": True,
            "append_images": frames[1:],
            "duration": MILLISECONDS,
            "loop": 0,
        }
        frames[0].save(buffer, "WEBP", quality=80, **moving)
    kind = "png" if media.ndim == 3 else "webp"
    return f"image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
