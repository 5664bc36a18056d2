"""Where the pictures to be scored come from: folders, tar shards, Parquet, the datasets library,
and URLs of these.

Every source is a stream of `Item`: what is known of a picture, and where its bytes are. Nothing is
unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from .gallery import METADATA, Gallery, parse_row, read_rows
from .items import MEDIA, Item, Opener, Remote
from .shards import DATASET, parquet_rows, read_dataset, read_parquet, read_tar


@dataclass(frozen=True)
class Source:
    """A stream of items that can be begun anew; ``total`` where it is known without reading all."""

    name: str
    items: Callable[[], Iterator[Item]]
    total: int | None = None
    folder: Path | None = None  # of a gallery
    columns: frozenset[str] = frozenset()  # of the rows, where they are known without reading all

    def __iter__(self) -> Iterator[Item]:
        return self.items()


def open_source(source: str | Path | Gallery) -> Source:
    """A source by what it looks like.

    A gallery or a folder of pictures; ``.tar`` shards of WebDataset (a file, a folder of them, or a
    pattern with ``*``: members of one sample have one name, ``key.jpg`` and ``key.txt`` or
    ``key.json``); ``.parquet`` (a file, a folder or a pattern) with a column of bytes or of the
    datasets library's pictures; ``datasets:NAME[:SPLIT]``; and tar or Parquet at any URL that
    fsspec opens.

    Raises:
        UserError: nothing of these is there.
    """
    if isinstance(source, Gallery):
        return _of_gallery(source)
    name = str(source)
    if name.startswith(DATASET):
        return Source(name, lambda: read_dataset(name.removeprefix(DATASET)))
    files, opener = _files(name)
    kinds = {file.rsplit(".", 1)[-1] for file in files}
    if kinds == {"tar"}:
        return Source(name, lambda: (item for file in files for item in read_tar(file, opener)))
    if kinds == {"parquet"}:
        rows = sum(parquet_rows(file, opener) for file in files)
        return Source(
            name, lambda: (item for file in files for item in read_parquet(file, opener)), rows
        )
    if kinds - {"tar", "parquet"}:
        raise UserError(f"{name}: holds shards of several kinds; want .tar or .parquet")
    if "://" in name and not name.startswith(("file://", "local://")):
        return _remote_gallery(name, opener)
    return _of_folder(Path(name.removeprefix("file://").removeprefix("local://")))


def _of_folder(folder: Path) -> Source:
    """A folder of ours, checked whole before anything is scored; its rows are never all in
    memory.
    """
    total = 0
    columns = set[str]()
    for row in read_rows(folder):
        total += 1
        columns |= row.keys()

    def items() -> Iterator[Item]:
        return (Item(row, folder / row["file_name"]) for row in read_rows(folder))

    return Source(str(folder), items, total, folder, frozenset(columns))


def _of_gallery(gallery: Gallery) -> Source:
    def items() -> Iterator[Item]:
        return (Item(row, gallery.path(index)) for index, row in enumerate(gallery.rows))

    columns = frozenset(key for row in gallery.rows for key in row)
    return Source(str(gallery.folder), items, len(gallery), gallery.folder, columns)


def _remote_gallery(name: str, opener: Any) -> Source:
    """A folder of pictures at a URL, with or without metadata.jsonl."""
    root = str(opener._strip_protocol(name)).rstrip("/")
    try:
        if opener.isfile(f"{root}/{METADATA}"):
            lines = enumerate(opener.cat_file(f"{root}/{METADATA}").split(b"\n"), start=1)
            rows = [
                parse_row(line, f"{name}/{METADATA} line {number}")
                for number, line in lines
                if line.strip()
            ]
        else:
            found = [PurePosixPath(str(file)).name for file in opener.ls(root, detail=False)]
            rows = [{"file_name": file} for file in sorted(found) if file.lower().endswith(MEDIA)]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from error
    if not rows:
        raise UserError(
            f"{name}: no pictures; want {METADATA} with rows, or {', '.join(MEDIA)} files"
        )
    return Source(
        name,
        lambda: (Item(row, Remote(opener, f"{root}/{row['file_name']}")) for row in rows),
        len(rows),
    )


def _files(name: str) -> tuple[list[str], Opener]:
    """Shards that a name stands for, in order, and what opens them; none for a gallery."""
    import fsspec

    try:
        opener, path = fsspec.core.url_to_fs(name)
    except Exception as error:  # an unknown protocol, or one whose package is missing
        raise UserError(f"{name}: cannot be opened ({one_line(error)})") from error
    try:
        if "*" in path:
            files = sorted(opener.glob(path))
        elif opener.isdir(path):
            inside = sorted(opener.ls(path, detail=False))
            shards = [file for file in inside if file.endswith((".tar", ".parquet"))]
            own = [file for file in shards if not file.endswith("/scores.parquet")]
            files = (
                own
                if not any(file.endswith(("/metadata.jsonl", *MEDIA)) for file in inside)
                else []
            )
        else:
            files = [path] if path.endswith((".tar", ".parquet")) else []
        missing = next((file for file in files if not opener.isfile(file)), None)
    except Exception as error:
        raise UserError(
            f"{name}: cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from error
    if missing is not None or ("*" in path and not files):
        raise UserError(f"{name}: no such file; want a folder of pictures, .tar or .parquet")
    return files, opener
