"""One picture or video to be scored: what is known of it, and where its bytes are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import one_line
from .beneath import read_all, read_beneath
from .formats import MAX_BYTES, MEDIA, OutOfMemory, UnreadablePicture

Opener = Any  # a filesystem of fsspec's


@dataclass(frozen=True)
class Remote:
    """A file at a URL."""

    opener: Opener
    path: str

    def read_bytes(self) -> bytes:
        """The whole file, of at most MAX_BYTES; raises whatever stands behind the URL raises."""
        with self.opener.open(self.path, "rb") as file:
            return read_all(file, MAX_BYTES)


@dataclass(frozen=True)
class Item:
    """One picture or video.

    Attributes:
        row: has "file_name", usually "prompt".
        content: its file, its bytes, or the reason why there are none.
        folder: that a file must lie in; None where nobody else chose its name.
    """

    row: Mapping[str, Any]
    content: Path | Remote | bytes | UnreadablePicture
    folder: Path | None = None

    def renamed(self, taken: Collection[str]) -> Item:
        """The item, whose columns of a name that is taken get another one."""
        if not any(name in self.row for name in taken):
            return self
        return replace(self, row=free_names(self.row, taken))

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
            if isinstance(self.content, Remote):
                return self.content.read_bytes()
            if self.folder is not None:
                name = self.content.relative_to(self.folder)
                return read_beneath(self.folder, str(name), MAX_BYTES)
            file = self.content.resolve()
            return read_beneath(file.parent, file.name, MAX_BYTES)
        except FileNotFoundError:
            raise UnreadablePicture("no such file") from None
        except UnreadablePicture:
            raise
        except MemoryError as error:
            raise OutOfMemory from error
        except Exception as error:
            # A disk, or whatever stands behind a URL.
            raise UnreadablePicture(f"{type(error).__name__}: {one_line(error, 160)}") from error


def free_names(row: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """A row whose keys are none of ``taken``: what has such a name gets dashes after it."""
    renamed: dict[str, Any] = {key: value for key, value in row.items() if key not in taken}
    for key, value in row.items():
        if key in taken:
            name = f"{key}_"
            while name in renamed or name in taken:
                name += "_"
            renamed[name] = value
    return renamed
