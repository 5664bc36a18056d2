"""Scores of a gallery: one row a picture, one column a head, and what made them; kept as Parquet."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.gallery import VIDEOS, Gallery, UnreadablePicture, whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from align_gen.reward_heads import RewardSet

FORMAT = 1  # of the Parquet file; raised when an older reader would misread it
KEY = b"align_gen"  # of the schema's metadata
ERROR = "error"  # the column of reasons
PACKAGES = ("align-gen", "torch", "torchvision", "open_clip_torch", "transformers", "numpy", "pillow")
_ABSENT = object()  # a row has no such key: not the same as a null
_NATURAL = {bool: "bool", int: "int64", float: "float64", str: "string"}


@dataclass
class ScoresTable:
    """What each head gave each picture. All columns have as many entries as `rows`."""

    rows: list[dict[str, Any]]  # the gallery's, in its order
    heads: dict[str, list[float | None]]  # higher is better; None where the picture could not be read
    errors: list[str | None]  # why it could not
    provenance: dict[str, dict[str, Any]]  # per head: weights_sha256, preprocessing, dtype, options
    versions: dict[str, str]  # of the packages that took part
    folder: str | None = None  # the gallery; a file keeps it relative where it lies beside or under the file

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.heads.items()} | {ERROR: len(self.errors)}
        for name, length in lengths.items():
            if length != len(self.rows):
                raise ValueError(f"column {name!r} has {length} entries for {len(self.rows)} rows")
        check_names(self.rows, self.heads)

    @classmethod
    def join(cls, parts: Sequence[ScoresTable]) -> ScoresTable:
        """The parts of one gallery, scored by the same heads, as one table, in order."""
        first = parts[0]
        rows = [row for part in parts for row in part.rows]
        heads = {name: [value for part in parts for value in part.heads[name]] for name in first.heads}
        errors = [error for part in parts for error in part.errors]
        return cls(rows, heads, errors, first.provenance, first.versions, first.folder)

    def save(self, path: str | Path) -> None:
        """Write Parquet, whole or not at all. A metadata column of one type keeps it; any other is JSON text."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(dict.fromkeys(key for row in self.rows for key in row))
        columns = {name: [row.get(name, _ABSENT) for row in self.rows] for name in names}
        types = {name: _type_of(values) for name, values in columns.items()}
        arrays = [pa.array(_plain(columns[name], types[name]), _arrow(types[name])) for name in names]
        arrays += [pa.array(values, pa.float64()) for values in self.heads.values()]
        arrays += [pa.array(self.errors, pa.string())]
        about = {"format": FORMAT, "types": types, "heads": list(self.heads), "provenance": self.provenance}
        about |= {"versions": self.versions, "folder": _kept_folder(self.folder, Path(path))}
        schema = pa.schema(
            [pa.field(name, array.type) for name, array in zip([*names, *self.heads, ERROR], arrays, strict=True)],
            metadata={KEY: json.dumps(about).encode()},
        )
        try:
            with whole_file(Path(path)) as file:
                pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); want a file that can") from error

    @classmethod
    def load(cls, path: str | Path) -> ScoresTable:
        """Read what `save` wrote, equal to the last bit; UserError when the file is missing, broken or not ours."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:  # not read_table, which would take a folder of them
                table = file.read()
            about = json.loads((table.schema.metadata or {})[KEY])
            if about["format"] != FORMAT:
                raise UserError(f"{path}: scores of format {about['format']}; this version reads {FORMAT}")
            columns = {name: _typed(table[name].to_pylist(), kind) for name, kind in about["types"].items()}
            keys = list(columns)
            rows = [
                {key: value for key, value in zip(keys, row, strict=True) if value is not _ABSENT}
                for row in (zip(*columns.values(), strict=True) if keys else [()] * table.num_rows)
            ]
            heads = {name: table[name].to_pylist() for name in about["heads"]}
            errors = table[ERROR].to_pylist()
            folder = None if about["folder"] is None else str(Path(path).parent / about["folder"])
            return cls(rows, heads, errors, about["provenance"], about["versions"], folder)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; want scores, as written by `align-gen score`") from error
        except UserError:
            raise
        except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: not a scores file; want Parquet as written by `align-gen score`") from error


def score(
    gallery: str | Path | Gallery,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    *,
    batch_size: int = 64,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoresTable:
    """Give every picture of the gallery to every head; `progress(done, total)` after each batch.

    Pictures are read in threads while the heads run, and batched by shape; rows keep their order. A row without a
    prompt is scored with "". An unreadable picture becomes a null row with the reason; with `strict` it is a UserError
    once all are scored, which names the first.
    """
    import torch

    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}, want 1 or more")
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.load(gallery)
    judges = _judges(rewards)
    check_names(gallery.rows, judges.heads)
    total, done = len(gallery), 0
    heads: dict[str, list[float | None]] = {name: [None] * total for name in judges.heads}
    errors: list[str | None] = [None] * total

    if any(gallery.path(index).suffix.lower() in VIDEOS for index in range(total)):
        batch_size = 1  # each is as large as many pictures
    for batch in _by_shape(_readable(_read_ahead(gallery, 2 * batch_size), errors), batch_size):
        media = torch.stack([picture for _, picture in batch]).to(judges.device)  # (b,3,H,W) or (b,F,3,H,W)
        prompts = [gallery.rows[index].get("prompt", "") for index, _ in batch]
        with torch.no_grad():
            scores = judges(media, prompts).heads
        for name, column in heads.items():
            for (index, _), value in zip(batch, scores[name].tolist(), strict=True):
                column[index] = value
        done += len(batch)
        if progress:
            progress(done, total)

    failed = [index for index, reason in enumerate(errors) if reason is not None]
    if failed and progress:
        progress(total, total)
    if failed and strict:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{gallery.path(failed[0])}: {errors[failed[0]]}{more}; want every picture readable")
    provenance = {name: json.loads(json.dumps(head.provenance(), default=str)) for name, head in judges.heads.items()}
    return ScoresTable(gallery.rows, heads, errors, provenance, _versions(), str(gallery.folder))


def _judges(rewards: RewardSet | Sequence[Any] | Mapping[str, Any]) -> RewardSet:
    """The rewards as a set that needs no more than pictures and prompts; UserError otherwise."""
    from align_gen.reward_heads import reward_set

    try:
        judges = reward_set([rewards] if isinstance(rewards, str) else rewards)
        judges.require(())
    except ValueError as error:
        raise UserError(str(error)) from error
    return judges


def check_names(rows: Iterable[Mapping[str, Any]], heads: Iterable[str]) -> None:
    """UserError where a head's column would stand for one of the gallery's own."""
    taken = {key for row in rows for key in row}
    if ERROR in taken:
        raise UserError(f"column {ERROR!r} of the gallery: the name is kept for why a picture could not be read")
    for name in heads:
        if name in taken or name == ERROR:
            raise UserError(f"reward {name!r}: the gallery has a column of that name; want another name for the reward")


Picture = tuple[int, "Tensor"]  # its row, (3,H,W) or (F,3,H,W)


def _read_ahead(gallery: Gallery, ahead: int) -> Iterator[tuple[int, Tensor | UnreadablePicture]]:
    """Every picture, or why not, in order; at most `ahead` wait in memory."""

    def read(index: int) -> Tensor | UnreadablePicture:
        try:
            return gallery.media(index)
        except UnreadablePicture as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    waiting: deque[tuple[int, Future[Tensor | UnreadablePicture]]] = deque()
    try:
        for index in range(len(gallery)):
            waiting.append((index, pool.submit(read, index)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for index, future in waiting:
            yield index, future.result()
    finally:  # also when a head raises
        pool.shutdown(cancel_futures=True)


def _readable(
    pictures: Iterable[tuple[int, Tensor | UnreadablePicture]], errors: list[str | None]
) -> Iterator[Picture]:
    for index, picture in pictures:
        if isinstance(picture, UnreadablePicture):
            errors[index] = str(picture)
        else:
            yield index, picture


def _by_shape(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """Batches of one shape each. When many shapes fill the memory, the fullest batch goes early."""
    open_batches: dict[tuple[int, ...], list[Picture]] = {}
    for index, picture in pictures:
        batch = open_batches.setdefault(tuple(picture.shape), [])
        batch.append((index, picture))
        if len(batch) == batch_size or sum(map(len, open_batches.values())) >= 4 * batch_size:
            yield open_batches.pop(max(open_batches, key=lambda shape: len(open_batches[shape])))
    yield from open_batches.values()


def _kept_folder(folder: str | None, file: Path) -> str | None:
    """Relative to the file's own folder where the gallery is in it, so that both can be moved; else absolute."""
    if folder is None:
        return None
    place, base = Path(folder).resolve(), file.resolve().parent
    return str(place.relative_to(base) if place.is_relative_to(base) else place)


def _type_of(values: Iterable[object]) -> str:
    """The Parquet type that holds all of them exactly, or "json": mixed, nested, null, or an integer beyond 64 bits."""
    present = [value for value in values if value is not _ABSENT]
    kinds = {type(value) for value in present}
    if len(kinds) != 1 or not kinds <= _NATURAL.keys():
        return "json"
    fits = all(-(2**63) <= value < 2**63 for value in present if isinstance(value, int))
    return _NATURAL[kinds.pop()] if fits else "json"


def _arrow(kind: str) -> Any:
    import pyarrow as pa

    return pa.string() if kind == "json" else pa.type_for_alias(kind)


def _plain(values: Iterable[Any], kind: str) -> list[Any]:
    write = json.dumps if kind == "json" else (lambda value: value)
    return [None if value is _ABSENT else write(value) for value in values]


def _typed(values: Iterable[Any], kind: str) -> list[Any]:
    read = json.loads if kind == "json" else (lambda value: value)
    return [_ABSENT if value is None else read(value) for value in values]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
