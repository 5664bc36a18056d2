"""Scores of a gallery: one row a picture, one column a head, and what made them; kept as
Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from align_gen.errors import UserError, writing_to
from align_gen.files import whole_file

FORMAT = 1  # of the Parquet file; raised when an older reader would misread it
KEY = b"align_gen"  # of the schema's metadata
SCORES = "scores.parquet"  # in a gallery's folder
ERROR = "error"  # the column of reasons
COMBINED = "combined"
UNCERTAINTY = "uncertainty"
CONTENT = "sha256"
OWN = {
    COMBINED: "float64",
    UNCERTAINTY: "float64",
    CONTENT: "string",
}  # columns besides the heads', and their types
PACKAGES = (
    "align-gen",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "numpy",
    "pillow",
)
_ABSENT = object()  # a row has no such key: not the same as a null
_NATURAL = {bool: "bool", int: "int64", float: "float64", str: "string"}


@dataclass
class ScoresTable:
    """What each head gave each picture. All columns have as many entries as `rows`."""

    rows: list[dict[str, Any]]  # the gallery's, in its order
    heads: dict[
        str, list[float | None]
    ]  # higher is better; None where the picture could not be read
    errors: list[str | None]  # why it could not
    provenance: dict[str, dict[str, Any]]  # per head: weights_sha256, preprocessing, dtype, options
    versions: dict[str, str]  # of the packages that took part
    folder: str | None = (
        None  # the gallery; a file keeps it relative where it lies beside or under the file
    )
    own: dict[str, list[Any]] = field(default_factory=dict)  # of OWN, those that are known
    combination: dict[str, Any] | None = None  # what made COMBINED of the heads

    def __post_init__(self) -> None:
        columns = self.heads | self.own | {ERROR: self.errors}
        for name, column in columns.items():
            if len(column) != len(self.rows):
                raise ValueError(
                    f"column {name!r} has {len(column)} entries for {len(self.rows)} rows"
                )
        check_names(self.rows, self.heads)

    @property
    def combined(self) -> list[float | None] | None:
        """What the heads combine to, where that was kept."""
        return self.own.get(COMBINED)

    @property
    def uncertainty(self) -> list[float | None] | None:
        """A deviation of it, where some head or rule told one."""
        return self.own.get(UNCERTAINTY)

    @classmethod
    def of(cls, source: str | Path) -> ScoresTable:
        """From a scores file, or from a gallery with scores.parquet in it; UserError otherwise."""
        path = Path(source)
        if path.is_dir() and not (path / SCORES).is_file():
            raise UserError(
                f"{path}: no {SCORES} in it; want it from `align-gen score`, or rewards to score with"
            )
        return cls.load(path / SCORES if path.is_dir() else path)

    @classmethod
    def join(cls, parts: Sequence[ScoresTable]) -> ScoresTable:
        """The parts of one gallery, scored by the same heads, as one table, in order."""
        first = parts[0]
        rows = [row for part in parts for row in part.rows]
        heads = {
            name: [value for part in parts for value in part.heads[name]] for name in first.heads
        }
        errors = [error for part in parts for error in part.errors]
        names = dict.fromkeys(name for part in parts for name in part.own)
        own = {
            name: [x for part in parts for x in part.own.get(name, [None] * len(part.rows))]
            for name in names
        }
        return cls(
            rows,
            heads,
            errors,
            first.provenance,
            first.versions,
            first.folder,
            own,
            first.combination,
        )

    def save(self, path: str | Path) -> None:
        """Write Parquet, whole or not at all. A metadata column of one type keeps it; any other is
        JSON text.
        """
        save_parts(lambda: iter([self]), path)

    @classmethod
    def load(cls, path: str | Path) -> ScoresTable:
        """Read what `save` wrote, equal to the last bit; UserError when the file is missing, broken
        or not ours.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:  # not read_table, which would take a folder of them
                table = file.read()
            about = json.loads((table.schema.metadata or {})[KEY])
            if about["format"] != FORMAT:
                raise UserError(
                    f"{path}: scores of format {about['format']}; this version reads {FORMAT}"
                )
            columns = {
                name: _typed(table[name].to_pylist(), kind) for name, kind in about["types"].items()
            }
            keys = list(columns)
            rows = [
                {key: value for key, value in zip(keys, row, strict=True) if value is not _ABSENT}
                for row in (zip(*columns.values(), strict=True) if keys else [()] * table.num_rows)
            ]
            heads = {name: table[name].to_pylist() for name in about["heads"]}
            own = {name: table[name].to_pylist() for name in about.get("own", [])}
            errors = table[ERROR].to_pylist()
            folder = None if about["folder"] is None else str(Path(path).parent / about["folder"])
            return cls(
                rows,
                heads,
                errors,
                about["provenance"],
                about["versions"],
                folder,
                own,
                about.get("combination"),
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: no such file; want scores, as written by `align-gen score`"
            ) from error
        except UserError:
            raise
        except (
            pa.ArrowException,
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
        ) as error:
            raise UserError(
                f"{path}: not a scores file; want Parquet as written by `align-gen score`"
            ) from error


def save_parts(parts: Callable[[], Iterator[ScoresTable]], path: str | Path) -> None:
    """Write tables of one gallery, in order, as one Parquet file, a part in memory at a time.

    ``parts`` is called twice: the columns and their types are those of all rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, set[str]] = {}
    own: dict[str, None] = {}
    first = None
    for part in parts():
        first = first or part
        own |= dict.fromkeys(part.own)
        for name in dict.fromkeys(key for row in part.rows for key in row):
            kinds.setdefault(name, set()).add(_type_of(row.get(name, _ABSENT) for row in part.rows))
    if first is None:
        raise ValueError("no part to save")
    types = {name: found.pop() if len(found) == 1 else "json" for name, found in kinds.items()}
    about = {
        "format": FORMAT,
        "types": types,
        "heads": list(first.heads),
        "provenance": first.provenance,
    }
    about |= {
        "versions": first.versions,
        "folder": _kept_folder(first.folder, Path(path)),
        "own": list(own),
    }
    about |= {"combination": first.combination}
    fields = [pa.field(name, _arrow(kind)) for name, kind in types.items()]
    fields += [pa.field(name, pa.float64()) for name in first.heads]
    fields += [pa.field(name, getattr(pa, OWN[name])()) for name in own] + [
        pa.field(ERROR, pa.string())
    ]
    schema = pa.schema(fields, metadata={KEY: json.dumps(about).encode()})
    with writing_to(path), whole_file(Path(path)) as file, pq.ParquetWriter(file, schema) as writer:
        for part in parts():
            columns = [
                _plain((row.get(name, _ABSENT) for row in part.rows), kind)
                for name, kind in types.items()
            ]
            columns += [
                *part.heads.values(),
                *(part.own.get(name, [None] * len(part.rows)) for name in own),
            ]
            columns.append(part.errors)
            arrays = [pa.array(each, kind.type) for each, kind in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def check_names(rows: Iterable[Mapping[str, Any]], heads: Iterable[str]) -> None:
    """UserError where a head's column would stand for one of the gallery's own."""
    taken = {key for row in rows for key in row}
    for name in (ERROR, *OWN):
        if name in taken:
            raise UserError(
                f"column {name!r} of the gallery: the name is kept for a column of the scores"
            )
    for name in heads:
        if name in taken or name in (ERROR, *OWN):
            raise UserError(
                f"reward {name!r}: there is a column of that name; want another name for the reward"
            )


def _kept_folder(folder: str | None, file: Path) -> str | None:
    """Relative to the file's own folder where the gallery is in it, so that both can be moved; else
    absolute.
    """
    if folder is None:
        return None
    place = Path(folder).resolve()
    base = file.resolve().parent
    return str(place.relative_to(base) if place.is_relative_to(base) else place)


def _type_of(values: Iterable[object]) -> str:
    """The Parquet type that holds all of them exactly, or "json": mixed, nested, null, or an
    integer beyond 64 bits.
    """
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


def versions() -> dict[str, str]:
    """Of the packages that take part in a score."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """As a JSON file gives it back."""
    return json.loads(json.dumps(value, default=str))
