"""Read pictures out of tar shards, Parquet files and datasets, without unpacking to disk."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from .formats import MEDIA, UnreadablePicture, suffix_of
from .items import MAX_BYTES, Item, Opener
from .table import ERROR, EXTRA

PICTURE_COLUMNS = ("image", "picture", "jpg", "png", "webp", "video", "mp4")
PROMPT_COLUMNS = ("prompt", "caption", "text")
DATASET = "datasets:"  # prefix of a source that the datasets library loads


# --- tar ------------------------------------------------------------------------------------------


def read_tar(file: str, opener: Opener) -> Iterator[Item]:
    """The samples of a WebDataset shard, read once from front to back.

    Members that follow each other under one name, ``key.jpg`` and ``key.txt``, are one sample. A
    damaged shard gives what came whole before the damage, then one item with the reason.
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
                # A new name ends the sample, as its members follow each other.
                if key != current and sample:
                    yield from _sample_items(shard, current, sample)
                    sample = {}
                current = key
                if member.size > MAX_BYTES:
                    raise UserError(
                        f"{file}: {member.name[:80]!r} is larger than {MAX_BYTES} bytes"
                    )
                # Read at once: a stream cannot go back to a member that it has passed.
                content = archive.extractfile(member)
                sample[f".{extension.lower()}"] = content.read() if content is not None else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        yield from _sample_items(shard, current, sample)
        reason = UnreadablePicture(f"the shard is damaged: {error}")
        yield Item({"file_name": f"{shard}/(the rest)"}, reason)
        return
    yield from _sample_items(shard, current, sample)


def _sample_items(shard: str, key: str, parts: Mapping[str, bytes]) -> Iterator[Item]:
    """The item of one sample, none without a picture; texts beside it are prompt and columns."""
    picture = next((extension for extension in parts if extension in MEDIA), None)
    if picture is None:
        return
    row: dict[str, Any] = {}
    try:
        columns = json.loads(parts.get(".json", b"{}"))
        # Half a surrogate pair parses, but could not be written again.
        json.dumps(columns, ensure_ascii=False).encode()
        row |= columns if isinstance(columns, dict) else {}
    except (ValueError, RecursionError):
        # The picture is there all the same.
        pass
    text = next((parts[name] for name in (".txt", ".prompt", ".caption") if name in parts), None)
    if text is not None:
        row["prompt"] = text.decode("utf-8", "replace").strip()
    yield Item(_with_prompt(row) | {"file_name": f"{shard}/{key}{picture}"}, parts[picture])


# --- Parquet and datasets -------------------------------------------------------------------------


def parquet_rows(file: str, opener: Opener) -> int:
    """The number of rows, from the file's footer.

    Raises:
        UserError: the file cannot be read as Parquet, or has no column of pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opener.open(file, "rb") as stream:
            table = pq.ParquetFile(stream)
            _picture_column(file, table.schema_arrow.names)
            return int(table.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as Parquet ({one_line(error, 120)})") from error


def read_parquet(file: str, opener: Opener) -> Iterator[Item]:
    """The items of a file, 64 rows in memory at a time."""
    import pyarrow.parquet as pq

    with opener.open(file, "rb") as stream:
        table = pq.ParquetFile(stream)
        number = 0
        picture = _picture_column(file, table.schema_arrow.names)
        for batch in table.iter_batches(64):
            for row in batch.to_pylist():
                yield _item(row, picture, f"{PurePosixPath(file).name}/{number:06d}")
                number += 1


def read_dataset(name: str) -> Iterator[Item]:
    """Rows of a dataset of the datasets library, streamed; ``name`` is NAME or NAME:SPLIT.

    Pictures stay encoded: they are decoded here later, not by code of the dataset.
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
        column = _picture_column(path, list(rows.column_names or []))
        kind = datasets.Video if column in ("video", "mp4") else datasets.Image
        rows = rows.cast_column(column, kind(decode=False))
    except UserError:
        raise
    except Exception as error:
        # No such dataset, no network, no such split.
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise UserError(
            f"{DATASET}{name}: cannot be loaded ({reason}); want a name, or a folder of Parquet"
        ) from error
    for number, row in enumerate(rows):
        yield _item(dict(row), column, f"{number:06d}")


def _picture_column(where: str, names: list[str]) -> str:
    """The name of the column of pictures; UserError without one."""
    for name in PICTURE_COLUMNS:
        if name in names:
            return name
    wanted = ", ".join(PICTURE_COLUMNS)
    raise UserError(f"{where}: no column of pictures; want one of {wanted}, it has {names[:12]}")


def _item(row: dict[str, Any], column: str, name: str) -> Item:
    """A row whose picture is bytes, or {bytes, path} as the datasets library keeps pictures."""
    value = row.pop(column, None)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    path = value.get("path") if isinstance(value, Mapping) else None
    plain = {key: each for key, each in row.items() if isinstance(each, str | int | float | bool)}
    columns = _with_prompt(plain)
    if not isinstance(content, bytes):
        reason = UnreadablePicture("the row has no picture")
        return Item(columns | {"file_name": f"{name}.png"}, reason)
    suffix = PurePosixPath(str(path or "")).suffix.lower()
    suffix = suffix if suffix in MEDIA else suffix_of(content)
    return Item(columns | {"file_name": f"{name}{suffix}"}, content)


def _with_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with "prompt" first, from the first of PROMPT_COLUMNS that is text.

    A column that is named as one of the scores' gets a dash after its name.
    """
    prompt = next((row[name] for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    taken = (ERROR, *EXTRA)
    others = {
        f"{key}_" if key in taken else key: value
        for key, value in row.items()
        if key not in ("prompt", "file_name")
    }
    return others if prompt is None else {"prompt": prompt, **others}
