"""Open reference files (``reference://``): JSON that says which bytes of which file are a file.

Who wrote the JSON may be a stranger. So it names no file outside its own folder, and none of its
templates is filled in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..errors import UserError, one_line
from .beneath import read_all
from .items import Opener

REFERENCE = "reference://"
MAX_BYTES = 2**26  # of the JSON
INLINE = "base64:"


def open_references(name: str) -> tuple[Opener, str]:
    """The filesystem of ``reference://PATH::FILE``, and the path in it.

    Raises:
        UserError: FILE is missing or no JSON of references; or refers to a file outside of the
            folder that FILE lies in.
    """
    import fsspec

    path, _, file = name.removeprefix(REFERENCE).partition("::")
    if not file:
        raise UserError(f"{name}: want {REFERENCE}PATH::FILE, with the JSON of the references")
    source, where = fsspec.core.url_to_fs(file)
    local = "file" in _protocols(source)
    where = os.path.realpath(where) if local else where
    references = _checked(_read(source, where, file), file, where, local)
    return fsspec.filesystem("reference", fo=references, fs=source), path.strip("/")


def _read(source: Opener, where: str, file: str) -> Mapping[str, Any]:
    """The references of the file: path -> text, or [file, offset, size]."""
    try:
        with source.open(where, "rb") as stream:
            content = json.loads(read_all(stream, MAX_BYTES))
    except Exception as error:
        raise UserError(f"{file}: cannot be read as references ({one_line(error, 120)})") from error
    # Version 0 is the references alone.
    if isinstance(content, dict) and "version" in content:
        if content.get("templates") or content.get("gen"):
            raise UserError(f"{file}: templates and gen are not filled in; want refs alone")
        content = content.get("refs")
    if not isinstance(content, dict):
        raise UserError(f"{file}: want an object of references")
    return content


def _checked(
    references: Mapping[str, Any], file: str, where: str, local: bool
) -> dict[str, str | list[Any]]:
    """The references, each of which is text or lies in the folder of the file."""
    checked: dict[str, str | list[Any]] = {}
    folder = where.rpartition("/")[0]
    for path, value in references.items():
        if isinstance(value, str):
            checked[path] = value
        elif isinstance(value, list) and len(value) in (1, 3) and isinstance(value[0], str):
            if not all(type(number) is int and 0 <= number < 2**63 for number in value[1:]):
                raise UserError(f"{file}: {path[:80]!r} has no whole numbers for its bytes")
            target = _beneath(folder, value[0], local)
            if target is None:
                raise UserError(f"{file}: {path[:80]!r} refers to a file outside of its folder")
            checked[path] = [target, *value[1:]]
        else:
            raise UserError(f"{file}: {path[:80]!r} is neither text nor [file, offset, size]")
    return checked


def _beneath(folder: str, target: str, local: bool) -> str | None:
    """The path of a file in the folder; None for one outside, or at another URL."""
    relative = target.removeprefix(f"{folder}/")
    if "://" in relative or "::" in relative or relative.startswith("/"):
        return None
    if not relative or ".." in relative.split("/") or "\0" in relative:
        return None
    path = f"{folder}/{relative}" if folder else relative
    # A link on the disk may lead anywhere.
    if local and not os.path.realpath(path).startswith(f"{folder}/"):
        return None
    return path


def _protocols(source: Opener) -> tuple[str, ...]:
    names = source.protocol
    return (names,) if isinstance(names, str) else tuple(names)
