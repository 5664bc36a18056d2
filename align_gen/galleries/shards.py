"""Read items from tar shards, Parquet files and datasets of the datasets library."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from .items import MAX_BYTES, MEDIA, Item, Opener
from .media import UnreadablePicture, suffix_of
from .table import ERROR, OWN

PICTURE_COLUMNS = ("image", "picture", "jpg", "png", "webp", "video", "mp4")

PROMPT_COLUMNS = ("prompt", "caption", "text")

DATASET = "datasets:"


def read_tar(file: str, opener: Opener) -> Iterator[Item]:
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


def parquet_rows(file: str, opener: Opener) -> int:
    """The number of rows, from the file's footer; UserError without a column of pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opener.open(file, "rb") as stream:
            table = pq.ParquetFile(stream)
            _columns(file, table.schema_arrow.names)
            return int(table.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as Parquet ({one_line(error, 120)})") from error


def read_parquet(file: str, opener: Opener) -> Iterator[Item]:
    """The items of a file, 64 rows in memory at a time."""
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


def read_dataset(name: str) -> Iterator[Item]:
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
