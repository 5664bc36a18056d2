"""One picture or video that is to be scored: its columns, and where its bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import one_line
from .media import PICTURES, VIDEOS, UnreadablePicture

MEDIA = (*PICTURES, *VIDEOS)

MAX_BYTES = 2**30  # of one picture or video


@dataclass(frozen=True)
class Remote:
    """A file at a URL."""

    opener: Any  # a filesystem of fsspec's
    path: str

    def read_bytes(self) -> bytes:
        found: bytes = self.opener.cat_file(self.path)
        return found


@dataclass(frozen=True)
class Item:
    """One picture or video. ``row`` has "file_name", usually "prompt"; ``content`` is its file,
    bytes, or why not.
    """

    row: Mapping[str, Any]
    content: Path | Remote | bytes | UnreadablePicture

    @property
    def suffix(self) -> str:
        return PurePosixPath(str(self.row["file_name"])).suffix.lower()

    def read(self) -> bytes:
        """Its file's bytes.

        Raises:
            UnreadablePicture: there are none.
        """
        if isinstance(self.content, UnreadablePicture):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        if self.suffix not in MEDIA:
            raise UnreadablePicture(f"kind {self.suffix!r} is not one of {', '.join(MEDIA)}")
        try:
            if isinstance(self.content, Path):
                if not self.content.is_file():  # a pipe would be waited for
                    raise FileNotFoundError
                if self.content.stat().st_size > MAX_BYTES:
                    raise UnreadablePicture(f"larger than {MAX_BYTES} bytes")
            return self.content.read_bytes()
        except FileNotFoundError:
            raise UnreadablePicture("no such file") from None
        except UnreadablePicture:
            raise
        except Exception as error:  # a disk, or whatever stands behind a URL
            raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 160)}") from error


Opener = Any  # a filesystem of fsspec's
