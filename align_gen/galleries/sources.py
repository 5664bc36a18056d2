"""Where the pictures to be scored come from: folders, tar shards, Parquet, the datasets library,
and URLs of these.

Every source is a stream of `Item`: what is known of a picture, and where its bytes are. Nothing is
unpacked to disk.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from .gallery import (
    METADATA,
    PICTURES,
    VIDEOS,
    Gallery,
    UnreadablePicture,
    parse_row,
    read_rows,
    suffix_of,
)
from .table import ERROR, OWN

MEDIA = (*PICTURES, *VIDEOS)
MAX_BYTES = 2**30  # of one picture or video
PICTURE_COLUMNS = ("image", "picture", "jpg", "png", "webp", "video", "mp4")
PROMPT_COLUMNS = ("prompt", "caption", "text")
DATASET = "datasets:"


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
        return Source(name, lambda: _dataset(name.removeprefix(DATASET)))
    files, opener = _files(name)
    kinds = {file.rsplit(".", 1)[-1] for file in files}
    if kinds == {"tar"}:
        return Source(name, lambda: (item for file in files for item in _tar(file, opener)))
    if kinds == {"parquet"}:
        rows = sum(_parquet_rows(file, opener) for file in files)
        return Source(
            name, lambda: (item for file in files for item in _parquet(file, opener)), rows
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


Opener = Any  # a filesystem of fsspec's


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


# --- tar ------------------------------------------------------------------------------------------


def _tar(file: str, opener: Opener) -> Iterator[Item]:
    """Samples of a shard, read once from front to back; nothing is written, whatever the members
    are called.
    """
    shard = PurePosixPath(file).name
    sample: dict[str, bytes] = {}
    current = ""
    try:
        with opener.open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, _, extension = member.name.rpartition(".")
                if key != current and sample:
                    yield from _sample(shard, current, sample)
                    sample = {}
                current = key
                if member.size > MAX_BYTES:
                    raise UserError(
                        f"{file}: {member.name[:80]!r} is larger than {MAX_BYTES} bytes"
                    )
                content = archive.extractfile(member)
                sample[f".{extension.lower()}"] = content.read() if content is not None else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        yield from _sample(shard, current, sample)  # what came whole before the damage
        yield Item(
            {"file_name": f"{shard}/(the rest)"},
            UnreadablePicture(f"the shard is damaged: {error}"),
        )
        return
    yield from _sample(shard, current, sample)


def _sample(shard: str, key: str, parts: Mapping[str, bytes]) -> Iterator[Item]:
    """The item of one sample, where it has a picture; texts beside it are its prompt and
    columns.
    """
    picture = next((extension for extension in parts if extension in MEDIA), None)
    if picture is None:
        return
    row: dict[str, Any] = {}
    try:
        told = json.loads(parts.get(".json", b"{}"))
        json.dumps(
            told, ensure_ascii=False
        ).encode()  # half a surrogate pair could not be written again
        row |= told if isinstance(told, dict) else {}
    except (ValueError, RecursionError):
        pass  # the picture is there all the same
    text = next((parts[name] for name in (".txt", ".prompt", ".caption") if name in parts), None)
    if text is not None:
        row["prompt"] = text.decode("utf-8", "replace").strip()
    yield Item(_prompted(row) | {"file_name": f"{shard}/{key}{picture}"}, parts[picture])


# --- Parquet and datasets -------------------------------------------------------------------------


def _parquet_rows(file: str, opener: Opener) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opener.open(file, "rb") as stream:
            table = pq.ParquetFile(stream)
            _columns(file, table.schema_arrow.names)
            return int(table.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as Parquet ({one_line(error, 120)})") from error


def _parquet(file: str, opener: Opener) -> Iterator[Item]:
    import pyarrow.parquet as pq

    with opener.open(file, "rb") as stream:
        table = pq.ParquetFile(stream)
        number = 0
        picture = _columns(file, table.schema_arrow.names)
        for batch in table.iter_batches(64):
            for row in batch.to_pylist():
                yield _item(row, picture, f"{PurePosixPath(file).name}/{number:06d}")
                number += 1


def _columns(where: str, names: list[str]) -> str:
    """The column of pictures."""
    found = next((name for name in PICTURE_COLUMNS if name in names), None)
    if found is None:
        raise UserError(
            f"{where}: no column of pictures; want one of {', '.join(PICTURE_COLUMNS)}, it has {names[:12]}"
        )
    return found


def _item(row: dict[str, Any], column: str, name: str) -> Item:
    """A row whose picture is bytes, or {bytes, path} as the datasets library keeps it."""
    value = row.pop(column, None)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    told = value.get("path") if isinstance(value, Mapping) else None
    plain = {key: each for key, each in row.items() if isinstance(each, str | int | float | bool)}
    if not isinstance(content, bytes):
        return Item(
            _prompted(plain) | {"file_name": f"{name}.png"},
            UnreadablePicture("the row has no picture"),
        )
    suffix = PurePosixPath(str(told or "")).suffix.lower()
    suffix = suffix if suffix in MEDIA else suffix_of(content)
    return Item(_prompted(plain) | {"file_name": f"{name}{suffix}"}, content)


def _prompted(row: Mapping[str, Any]) -> dict[str, Any]:
    """With "prompt", from the first column that is one; a column named as one of the scores' gets a
    dash after it.
    """
    prompt = next((row[name] for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    taken = (ERROR, *OWN)  # columns of the scores
    kept = {
        f"{key}_" if key in taken else key: row[key]
        for key in row
        if key not in ("prompt", "file_name")
    }
    return kept if prompt is None else {"prompt": prompt, **kept}


def _dataset(name: str) -> Iterator[Item]:
    """Rows of a dataset of the datasets library, streamed; its pictures are read here, not by code
    of its own.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{DATASET}{name}: wants the datasets library (pip install align_gen[data])"
        ) from None
    path, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(path, split=split or "train", streaming=True)
        column = _columns(path, list(rows.column_names or []))
        kind = datasets.Video if column in ("video", "mp4") else datasets.Image
        rows = rows.cast_column(column, kind(decode=False))
    except UserError:
        raise
    except Exception as error:  # no such dataset, no network, no such split
        said = f"{type(error).__name__}: {one_line(error, 160)}"
        raise UserError(
            f"{DATASET}{name}: cannot be loaded ({said}); want a name, or a folder of Parquet"
        ) from error
    for number, row in enumerate(rows):
        yield _item(dict(row), column, f"{number:06d}")
