"""One picture or video to be scored: what is known of it, and where its bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import one_line
from .formats import MEDIA, UnreadablePicture

MAX_BYTES = 2**30  # of one picture or video
Opener = Any  # a filesystem of fsspec's


@dataclass(frozen=True)
class Remote:
    """A file at a URL."""

    opener: Opener
    path: str

    def read_bytes(self) -> bytes:
        """The whole file; raises whatever the filesystem behind the URL raises."""
        content: bytes = self.opener.cat_file(self.path)
        return content


@dataclass(frozen=True)
class Item:
    """One picture or video.

    Attributes:
        row: has "file_name", usually "prompt".
        content: its file, its bytes, or the reason why there are none.
    """

    row: Mapping[str, Any]
    content: Path | Remote | bytes | UnreadablePicture

    @property
    def suffix(self) -> str:
        return PurePosixPath(str(self.row["file_name"])).suffix.lower()

    def read(self) -> bytes:
        """The encoded bytes of the picture.

        Raises:
            UnreadablePicture: there are none, or the file is of no kind that is read.
        """
        if isinstance(self.content, UnreadablePicture):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        if self.suffix not in MEDIA:
            raise UnreadablePicture(f"kind {self.suffix!r} is not one of {', '.join(MEDIA)}")
        try:
            if isinstance(self.content, Path):
                _require_small_file(self.content)
            return self.content.read_bytes()
        except FileNotFoundError:
            raise UnreadablePicture("no such file") from None
        except UnreadablePicture:
            raise
        except Exception as error:
            # A disk, or whatever stands behind a URL.
            raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 160)}") from error


def _require_small_file(path: Path) -> None:
    # A pipe is no file either: reading would wait for its other end.
    if not path.is_file():
        raise FileNotFoundError
    if path.stat().st_size > MAX_BYTES:
        raise UnreadablePicture(f"larger than {MAX_BYTES} bytes")
