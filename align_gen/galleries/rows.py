"""What a row of a shard or dataset becomes: a prompt, columns, the bytes of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError
from .columns import ERROR, EXTRA
from .formats import MEDIA, UnreadablePicture, suffix_of
from .items import Item, free_names

PICTURE_COLUMNS = ("image", "picture", "jpg", "png", "webp", "video", "mp4")
PROMPT_COLUMNS = ("prompt", "caption", "text")


def picture_item(row: Mapping[str, Any], content: Any, name: str) -> Item:
    """The item of a row and its picture.

    Args:
        row: the other columns; of these, numbers and texts are kept.
        content: bytes, or {bytes, path} as the datasets library keeps pictures.
        name: of the file, without a suffix.
    """
    path = content.get("path") if isinstance(content, Mapping) else None
    content = content.get("bytes") if isinstance(content, Mapping) else content
    plain = {key: each for key, each in row.items() if isinstance(each, str | int | float | bool)}
    columns = with_prompt(plain)
    if not isinstance(content, bytes):
        reason = UnreadablePicture("the row has no picture")
        return Item(columns | {"file_name": f"{name}.png"}, reason)
    suffix = PurePosixPath(str(path or "")).suffix.lower()
    suffix = suffix if suffix in MEDIA else suffix_of(content)
    return Item(columns | {"file_name": f"{name}{suffix}"}, content)


def with_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with "prompt" first, from the first of PROMPT_COLUMNS that is text.

    A column that is named as one of the scores' gets a dash after its name.
    """
    prompt = next((row[name] for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    others = {key: value for key, value in row.items() if key not in ("prompt", "file_name")}
    columns = free_names(others, (ERROR, *EXTRA))
    return columns if prompt is None else {"prompt": prompt, **columns}


def picture_column(where: str, names: list[str]) -> str:
    """The name of the column of pictures; UserError without one."""
    for name in PICTURE_COLUMNS:
        if name in names:
            return name
    wanted = ", ".join(PICTURE_COLUMNS)
    raise UserError(f"{where}: no column of pictures; want one of {wanted}, it has {names[:12]}")
