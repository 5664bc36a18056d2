"""Open what is to be scored: folders, tar shards, Parquet, datasets, and URLs of these.

Every source is a stream of ``Item``: what is known of a picture, and where its bytes are. Nothing
is unpacked to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from ..files import numbered_lines
from .formats import MEDIA
from .gallery import METADATA, Gallery, parse_row, read_rows, skipped_files
from .items import Item, Opener, Remote
from .parquet import parquet_rows, read_parquet
from .references import REFERENCE, open_references
from .shards import DATASET, read_dataset
from .tars import read_tar

MAX_ROWS_BYTES = 2**28  # of metadata.jsonl at a URL, whose rows stay in memory


@dataclass(frozen=True)
class Source:
    """A stream of items that can be begun anew.

    Attributes:
        name: as the user gave it.
        items: begins the stream.
        total: the number of items, where it is known without reading all.
        folder: of a gallery.
        columns: of the rows, where they are known without reading all.
        skipped: files of a folder that are not read, counted by suffix; "folder" for folders.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    total: int | None = None
    folder: Path | None = None
    columns: frozenset[str] = frozenset()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Item]:
        return self.items()


def open_source(source: str | Path | Gallery) -> Source:
    """Open a source by what it looks like.

    - a gallery, or a folder of pictures;
    - ``.tar`` shards of WebDataset (a file, a folder of them, or a pattern with ``*``): members of
      one sample have one name, ``key.jpg`` and ``key.txt`` or ``key.json``;
    - ``.parquet`` (a file, a folder or a pattern) with a column of bytes, or of pictures as the
      datasets library keeps them;
    - ``datasets:NAME[:SPLIT]``;
    - each of these at any URL that fsspec opens, those of URLs in URLs among them, as
      ``zip://folder::https://host/file.zip``.

    Raises:
        UserError: nothing of these is there.
    """
    if isinstance(source, Gallery):
        return _of_gallery(source)
    name = str(source)
    if name.startswith(DATASET):
        return Source(name, lambda: read_dataset(name.removeprefix(DATASET)))

    # Shards, where the name stands for any.
    files, opener, root = _shards(name)
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

    # A folder of pictures, here or at a URL.
    if "::" in name or ("://" in name and not name.startswith(("file://", "local://"))):
        return _remote_gallery(name, opener, root)
    return _of_folder(Path(name.removeprefix("file://").removeprefix("local://")))


def _of_folder(folder: Path) -> Source:
    """A local folder, all rows checked before anything is scored; never all of them in memory."""
    # One pass finds mistakes in any row, the total and the columns.
    total = 0
    columns = set[str]()
    for row in read_rows(folder):
        total += 1
        columns |= row.keys()

    def items() -> Iterator[Item]:
        return (Item(row, folder / row["file_name"], folder) for row in read_rows(folder))

    return Source(str(folder), items, total, folder, frozenset(columns), skipped_files(folder))


def _of_gallery(gallery: Gallery) -> Source:
    def items() -> Iterator[Item]:
        folder = gallery.folder
        return (Item(row, gallery.path(index), folder) for index, row in enumerate(gallery))

    columns = frozenset(key for row in gallery for key in row)
    return Source(str(gallery.folder), items, len(gallery), gallery.folder, columns)


def _remote_gallery(name: str, opener: Opener, root: str) -> Source:
    """A folder of pictures at a URL, with or without metadata.jsonl; ``root`` is its path there."""
    base = f"{root.rstrip('/')}/" if root.strip("/") else ""
    skipped: Counter[str] = Counter()
    # Whatever stands behind a URL may raise anything.
    try:
        if opener.isfile(f"{base}{METADATA}"):
            rows = _remote_rows(opener, f"{base}{METADATA}", f"{name}/{METADATA}")
        else:
            files = [PurePosixPath(str(file)) for file in opener.ls(root, detail=False)]
            read = [file.name for file in files if file.name.lower().endswith(MEDIA)]
            rows = [{"file_name": file} for file in sorted(read)]
            others = sorted(file for file in files if file.name not in read)
            skipped.update(file.suffix.lower() or "file" for file in others)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{name}: cannot be read ({reason})") from error
    if not rows:
        raise UserError(
            f"{name}: no pictures; want {METADATA} with rows, or {', '.join(MEDIA)} files"
        )

    def items() -> Iterator[Item]:
        return (Item(row, Remote(opener, f"{base}{row['file_name']}")) for row in rows)

    return Source(name, items, len(rows), skipped=dict(skipped))


def _remote_rows(opener: Opener, path: str, where: str) -> list[dict[str, Any]]:
    rows = []
    left = MAX_ROWS_BYTES
    with opener.open(path, "rb") as file:
        for number, line in numbered_lines(file, where):
            left -= len(line)
            if left < 0:
                raise UserError(f"{where}: larger than {MAX_ROWS_BYTES} bytes; want it on a disk")
            rows.append(parse_row(line, f"{where} line {number}"))
    return rows


def _shards(name: str) -> tuple[list[str], Opener, str]:
    """The shards that a name stands for, in order, none for a gallery; what opens them, the path.

    The path is that of ``name`` in the filesystem that opens it.
    """
    import fsspec

    try:
        if name.startswith(REFERENCE):
            opener, path = open_references(name)
        else:
            opener, path = fsspec.core.url_to_fs(name)
    except UserError:
        raise
    except Exception as error:
        # An unknown protocol, or one whose package is missing.
        raise UserError(f"{name}: cannot be opened ({one_line(error)})") from error
    try:
        if "*" in path:
            files = sorted(opener.glob(path))
        elif opener.isdir(path):
            files = _shards_in(sorted(opener.ls(path, detail=False)))
        else:
            files = [path] if path.endswith((".tar", ".parquet")) else []
        missing = next((file for file in files if not opener.isfile(file)), None)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{name}: cannot be read ({reason})") from error
    if missing is not None or ("*" in path and not files):
        raise UserError(f"{name}: no such file; want a folder of pictures, .tar or .parquet")
    return files, opener, path


def _shards_in(files: list[str]) -> list[str]:
    """The shards of a folder; none where pictures or metadata make it a gallery."""
    names = [f"/{file}" for file in files]
    if any(name.endswith((f"/{METADATA}", *MEDIA)) for name in names):
        return []
    shards = [file for file in files if file.endswith((".tar", ".parquet"))]
    return [file for file in shards if not f"/{file}".endswith("/scores.parquet")]
