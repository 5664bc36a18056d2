"""Preference pairs, kept as a Parquet file that the datasets library reads too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, one_line, writing_to
from ..files import lines_of, whole_file
from .formats import VIDEOS, UnreadablePicture, suffix_of
from .gallery import METADATA, inside
from .media import as_media, read_pixels
from .parquet_files import KEY, PAIRS_KIND, mark, parquet_reader, parquet_writer, require_own

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]
SIDES = ("chosen", "rejected")
FIRST_COLUMNS = ("prompt", *SIDES)
BATCH = 64  # pairs that are written at a time


class Pairs(list[Row]):
    """Rows of pairs, and how many could not become any.

    Attributes:
        unreadable: pictures without a score.
        ties: pairs that were left out because their margin is zero or too small.
    """

    def __init__(self, rows: Iterable[Row] = (), unreadable: int = 0, ties: int = 0):
        super().__init__(rows)
        self.unreadable = unreadable
        self.ties = ties


@dataclass(frozen=True)
class MediaFile:
    """A picture or video of a pair, not yet decoded: the bytes of a file, or where it lies."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    def read(self) -> Tensor:
        """Decode to (3,H,W) or (F,3,H,W), float32, RGB, [0,1].

        Raises:
            UnreadablePicture: missing, broken, of another kind or too large.
        """
        source = self.path or self.data
        if source is None:
            raise UnreadablePicture("no bytes and no file")
        return as_media(read_pixels(source, Path(self.name).suffix.lower()))


# --- writing --------------------------------------------------------------------------------------


def write_pairs(path: str | Path, pairs: Sequence[Mapping[str, Any]], folder: str | Path) -> None:
    """Write pairs and their media as one Parquet file, whole or not at all.

    "chosen" and "rejected" become the datasets library's own struct of bytes and path, and the
    schema names them Image or Video, so that ``load_dataset("parquet", data_files=path)`` decodes
    them. "label" is 1, the first is better, where a row has none; every other column is kept,
    numbers and text as they are.

    Raises:
        UserError: no pairs, pictures among videos, a file that lies outside ``folder`` or cannot be
            read, or a path that cannot be written: something else than pairs of ours is there.
    """
    import pyarrow as pa

    require_own(Path(path), PAIRS_KIND)
    if not pairs:
        raise UserError("pairs: none to write")
    folder = Path(folder)
    rows = [{"label": 1, **row} for row in pairs]
    kinds = {Path(str(row[side])).suffix.lower() in VIDEOS for row in rows for side in SIDES}
    if len(kinds) > 1:
        raise UserError(f"{folder}: pictures and videos in one file of pairs; want one kind")

    # The columns and their types are those of all rows.
    types = _types(rows)
    schema = _schema(types, "Video" if kinds.pop() else "Image")

    # A picture is in several pairs of its prompt: it is decoded and read once a batch.
    checked: dict[str, bytes] = {}
    try:
        with (
            writing_to(path),
            whole_file(Path(path)) as file,
            parquet_writer(file, schema) as writer,
        ):
            # In batches, as media lie in the file: all of them would not fit in memory.
            for start in range(0, len(rows), BATCH):
                batch = []
                for row in rows[start : start + BATCH]:
                    media = {side: _embedded(folder, row[side], checked) for side in SIDES}
                    batch.append(row | media)
                columns = [
                    pa.array([_cell(row.get(name), kind) for row in batch], schema.field(name).type)
                    for name, kind in types.items()
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                checked.clear()
    except OverflowError as error:
        raise UserError(f"{path}: a whole number is beyond 64 bits ({error})") from error


def _types(rows: Sequence[Row]) -> dict[str, str | None]:
    """The type of every column in order, FIRST_COLUMNS first; None for media."""
    keys = dict.fromkeys(key for row in rows for key in row)
    names = [*FIRST_COLUMNS, *(key for key in keys if key not in FIRST_COLUMNS)]
    return {
        name: None if name in SIDES else _kind([row.get(name) for row in rows]) for name in names
    }


def _schema(types: Mapping[str, str | None], decoded: str) -> Any:
    """The file's schema, with the datasets library's own description of it as metadata."""
    import pyarrow as pa

    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = []
    features = {}
    for name, kind in types.items():
        fields.append(pa.field(name, media if kind is None else pa.type_for_alias(kind)))
        features[name] = {"_type": decoded} if kind is None else {"dtype": kind, "_type": "Value"}
    about: dict[str | bytes, Any] = {"huggingface": json.dumps({"info": {"features": features}})}
    about[KEY] = mark(PAIRS_KIND)
    return pa.schema(fields, metadata=about)


def _kind(values: Sequence[Any]) -> str:
    """The type of a column, by Arrow's and the datasets library's common name.

    Mixed values become JSON text, a string.
    """
    present = frozenset(type(value) for value in values if value is not None)
    kinds = {
        frozenset({float}): "float64",
        frozenset({int, float}): "float64",
        frozenset({int}): "int64",
        frozenset({bool}): "bool",
    }
    return kinds.get(present, "string")


def _cell(value: Any, kind: str | None) -> Any:
    as_json = kind == "string" and value is not None and not isinstance(value, str)
    return json.dumps(value) if as_json else value


def _embedded(folder: Path, name: object, checked: dict[str, bytes]) -> dict[str, Any]:
    """The struct of one media file, once the file is known to be readable."""
    file = _media_name(folder, name, str(folder))
    if file not in checked:
        # A pair that cannot be decoded would stop a training run much later.
        try:
            MediaFile(file, path=folder / file).read()
        except UnreadablePicture as error:
            raise UserError(
                f"{folder / file}: {error}; want every picture of a pair readable"
            ) from error
        checked[file] = (folder / file).read_bytes()
    return {"bytes": checked[file], "path": file}


# --- reading --------------------------------------------------------------------------------------


def read_pairs(path: str | Path) -> Pairs:
    """Read what ``write_pairs`` wrote, a Parquet file like it, or a folder with metadata.jsonl.

    A row has "prompt", ``MediaFile`` for "chosen" and "rejected", and the file's other columns. In
    a folder, the keys may be called "chosen_file_name" and "rejected_file_name", as the datasets
    library has them.

    Raises:
        UserError: nothing there, broken, or a row without a prompt or without one of the two; the
            message names the row.
    """
    path = Path(path)
    if path.is_dir():
        pairs = _read_folder(path)
    elif path.is_file():
        pairs = _read_parquet(path)
    else:
        raise UserError(f"{path}: no such file; want pairs as Parquet, or a folder with {METADATA}")
    if not pairs:
        raise UserError(f"{path}: no pairs in it")
    return pairs


def _read_parquet(path: Path) -> Pairs:
    import pyarrow as pa

    try:
        with parquet_reader(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file of pairs ({one_line(error, 120)})") from error

    def media(value: Any, where: str) -> MediaFile:
        return _from_struct(path.parent, value, where)

    return Pairs(_checked(row, f"{path} row {number}", media) for number, row in enumerate(rows))


def _read_folder(folder: Path) -> Pairs:
    metadata = folder / METADATA
    if not metadata.is_file():
        raise UserError(f"{folder}: no {METADATA} in it; want one, or a Parquet file of pairs")

    def media(value: Any, where: str) -> MediaFile:
        return _from_name(folder, value, where)

    pairs = Pairs()
    for number, line in lines_of(metadata):
        where = f"{metadata} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON ({error})") from error
        if not isinstance(row, dict):
            example = '{"prompt": "…", "chosen": "0.png", "rejected": "1.png"}'
            raise UserError(f"{where}: want an object like {example}")
        # The datasets library's spelling of a media file in metadata.jsonl.
        for side in SIDES:
            if f"{side}_file_name" in row:
                row.setdefault(side, row.pop(f"{side}_file_name"))
        pairs.append(_checked(row, where, media))
    return pairs


def _checked(row: Row, where: str, media: Callable[[Any, str], MediaFile]) -> Row:
    """A row with both sides as ``MediaFile``; UserError where prompt or a side is missing."""
    if not isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: prompt is {row.get('prompt')!r}, want text")
    return {**row, **{side: media(row.get(side), f"{where}, {side}") for side in SIDES}}


def _from_struct(folder: Path, value: Any, where: str) -> MediaFile:
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        raise UserError(f"{where}: want bytes and path, as the datasets library keeps pictures")
    data = value["bytes"]
    name = value["path"]
    if data is None:
        return _from_name(folder, name, where)
    if not isinstance(data, bytes):
        raise UserError(f"{where}: bytes are {type(data).__name__}, want bytes")
    # The suffix says how to decode; bytes without a name say it by their first bytes.
    named = isinstance(name, str) and Path(name).suffix
    return MediaFile(name if named else f"unnamed{suffix_of(data)}", data)


def _from_name(folder: Path, value: Any, where: str) -> MediaFile:
    name = _media_name(folder, value, where)
    return MediaFile(name, path=folder / name)


def _media_name(folder: Path, value: object, where: str) -> str:
    """The name of a file that lies in the folder, links followed; UserError otherwise."""
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{where}: file_name is {value!r}, want the name of a picture in the folder"
        )
    return inside(folder, value, where)
