"""Scores of a gallery, kept as Parquet: a row per picture, a column per head, and their origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align_gen.errors import UserError, writing_to
from align_gen.files import whole_file
from align_gen.galleries.columns import (
    ABSENT,
    COMBINED,
    CONTENT,
    ERROR,
    EXTRA,
    UNCERTAINTY,
    arrow_type,
    check_names,
    from_column,
    rows_of,
    to_column,
    type_of,
)
from align_gen.galleries.parquet_files import FORMAT, KEY, SCORES, parquet_writer
from align_gen.galleries.scores_file import (
    followed,
    reading,
    require_kinds,
    require_parquet,
    saved_folder,
)
from align_gen.galleries.signing import SIGNATURE, is_signed, signature


@dataclass
class ScoresTable:
    """What each head gave each picture. All columns have as many entries as ``rows``.

    Attributes:
        rows: the gallery's rows, in its order.
        heads: scores by head, higher is better; None where the picture could not be read.
        errors: why a picture could not be read; None where it could.
        provenance: of each head: weights_sha256, preprocessing, dtype, options.
        versions: of the packages that took part.
        folder: the gallery. A file keeps the path where the gallery is the file's own folder or
            lies below it, relative to it; a path that leads elsewhere is not followed.
        extra: the columns of EXTRA that are known.
        combination: the rule that made COMBINED of the heads that are not in ``kept``.
        kept: heads of earlier calls, and the versions that they were scored under.
        unsigned: those of ``kept`` that came from a file which was not written here.
    """

    rows: list[dict[str, Any]]
    heads: dict[str, list[float | None]]
    errors: list[str | None]
    provenance: dict[str, dict[str, Any]]
    versions: dict[str, str]
    folder: str | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    combination: dict[str, Any] | None = None
    kept: dict[str, dict[str, str]] = field(default_factory=dict)
    unsigned: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = self.heads | self.extra | {ERROR: self.errors}
        for name, column in columns.items():
            if len(column) != len(self.rows):
                raise ValueError(
                    f"column {name!r} has {len(column)} entries for {len(self.rows)} rows"
                )
        check_names(self.rows, self.heads)

    def versions_of(self, head: str) -> dict[str, str]:
        """The versions that a head was scored under."""
        return self.kept.get(head, self.versions)

    def __repr__(self) -> str:
        means = ", ".join(f"{head} {self.mean(head):.4f}" for head in self.heads)
        return f"ScoresTable({self.folder!r}, {len(self.rows)} rows; {means})"

    @property
    def combined(self) -> list[float | None] | None:
        """The combined reward of each picture; None where the table does not have it."""
        return self.extra.get(COMBINED)

    @property
    def uncertainty(self) -> list[float | None] | None:
        """The standard deviation of the combined reward, where a head or the rule gave one."""
        return self.extra.get(UNCERTAINTY)

    def known(self, head: str) -> list[float]:
        """The scores of a head, without those of pictures that could not be read."""
        return [value for value in self.heads[head] if value is not None]

    def mean(self, head: str) -> float:
        """Mean over the pictures that could be read; 0 where there is none."""
        values = self.known(head)
        return sum(values) / max(len(values), 1)

    def std(self, head: str) -> float:
        """Standard deviation over the pictures that could be read (n - 1); 0 for fewer than two."""
        import torch

        # In float64: runs are stopped by this number.
        values = torch.tensor(self.known(head), dtype=torch.float64)
        return values.std().item() if len(values) > 1 else 0.0

    def at(self, folder: str | Path) -> ScoresTable:
        """A copy whose gallery is ``folder``, whatever the file says."""
        return replace(self, folder=str(folder))

    def require_same_rewards(self, other: ScoresTable, head: str) -> None:
        """UserError where the two tables' scores of ``head`` have another provenance.

        The message calls this table A and the other one B.
        """
        ours = self.provenance.get(head, {})
        theirs = other.provenance.get(head, {})
        for key in differing_keys(ours, theirs):
            values = f"{ours.get(key)!r} in A and {theirs.get(key)!r} in B"
            raise UserError(
                f"column {head!r}: {key} differs, {values}; want both scored by the same reward"
            )

    @classmethod
    def of(cls, source: str | Path) -> ScoresTable:
        """Load a scores file, or the scores.parquet of a gallery; UserError otherwise."""
        path = Path(source)
        if path.is_dir() and not (path / SCORES).is_file():
            raise UserError(
                f"{path}: no {SCORES} in it; "
                "want it from `align-gen score`, or rewards to score with"
            )
        return cls.load(path / SCORES if path.is_dir() else path)

    @classmethod
    def join(cls, parts: Sequence[ScoresTable]) -> ScoresTable:
        """Join the parts of one gallery, scored by the same heads, in order."""
        # Heads, provenance and folder are the same in all parts of one scoring.
        first = parts[0]
        heads = {
            name: [value for part in parts for value in part.heads[name]] for name in first.heads
        }
        # A part in which no picture could be read may lack a column of EXTRA.
        extra: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for part in parts for name in part.extra):
            columns = [part.extra.get(name, [None] * len(part.rows)) for part in parts]
            extra[name] = [value for column in columns for value in column]
        return cls(
            [row for part in parts for row in part.rows],
            heads,
            [error for part in parts for error in part.errors],
            first.provenance,
            first.versions,
            first.folder,
            extra,
            first.combination,
            first.kept,
            first.unsigned,
        )

    def save(self, path: str | Path) -> None:
        """Write Parquet, whole or not at all.

        A metadata column whose values are all of one type keeps that type; any other is JSON text.
        """
        save_parts(lambda: iter([self]), path)

    @classmethod
    def load(cls, path: str | Path) -> ScoresTable:
        """Read what ``save`` wrote, equal to the last bit.

        Raises:
            UserError: the file is missing, broken, of another format, or no scores file.
        """
        with reading(path) as file:
            return cls._from_arrow(file.read(), Path(path))

    @classmethod
    def load_signed(cls, path: str | Path) -> tuple[ScoresTable, bool]:
        """Load a file, and whether this user's own align-gen wrote it; errors as ``load``."""
        with reading(path) as file:
            content = file.read()
            table = cls._from_arrow(content, Path(path))
        about = content.schema.metadata
        return table, is_signed(about.get(SIGNATURE), about[KEY], table._claims())

    @classmethod
    def _from_arrow(cls, table: Any, path: Path) -> ScoresTable:
        about = json.loads((table.schema.metadata or {})[KEY])
        if about["format"] != FORMAT:
            raise UserError(
                f"{path}: scores of format {about['format']}; this version reads {FORMAT}"
            )
        require_kinds(about)
        columns = {
            name: from_column(table[name].to_pylist(), kind)
            for name, kind in about["types"].items()
        }
        own = {name: table[name] for name in about.get("own", [])}
        for name in about["heads"]:
            # Numbers alone: an older file's column of nulls has no other type.
            table[name].cast("float64")
        return cls(
            rows_of(columns, table.num_rows),
            {name: table[name].to_pylist() for name in about["heads"]},
            table[ERROR].to_pylist(),
            about["provenance"],
            about["versions"],
            followed(about["folder"], path),
            {name: column.to_pylist() for name, column in own.items()},
            about.get("combination"),
            about.get("kept", {}),
            about.get("unsigned", []),
        )

    def _claims(self) -> Iterator[str]:
        """What each row claims, as JSON: picture, prompt, error and every score exactly."""
        empty: list[Any] = [None] * len(self.rows)
        contents = self.extra.get(CONTENT, empty)
        numbers: list[list[float | None]] = [
            *self.heads.values(),
            self.combined or empty,
            self.uncertainty or empty,
        ]
        for index, row in enumerate(self.rows):
            values = [each[index] for each in numbers]
            scores = [None if value is None else float(value) for value in values]
            claim = [contents[index], row.get("prompt"), self.errors[index], scores]
            yield json.dumps(claim, default=str)


def save_parts(parts: Callable[[], Iterator[ScoresTable]], path: str | Path) -> None:
    """Write the tables of one gallery, in order, as one Parquet file.

    One part is in memory at a time. ``parts`` is called three times: to find the columns and types
    of all rows, to sign, and to write.

    Raises:
        UserError: there is something else than a scores file, or the path cannot be written.
    """
    import pyarrow as pa

    target = Path(path)
    require_parquet(target)
    first, types, extra = _survey(parts())

    # What the reader must know before it reads a row; see ``_from_arrow``.
    about = {
        "format": FORMAT,
        "types": types,
        "heads": list(first.heads),
        "provenance": first.provenance,
        "versions": first.versions,
        "folder": saved_folder(first.folder, target),
        "own": extra,
        "combination": first.combination,
        "kept": first.kept,
        "unsigned": first.unsigned,
    }
    described = json.dumps(about).encode()
    signed = signature(described, (claim for part in parts() for claim in part._claims()))
    metadata = {KEY: described} | ({} if signed is None else {SIGNATURE: signed})

    # The order of columns in the file: the gallery's, the heads', EXTRA, and the reasons.
    fields = [pa.field(name, arrow_type(kind)) for name, kind in types.items()]
    fields += [pa.field(name, pa.float64()) for name in first.heads]
    fields += [pa.field(name, getattr(pa, EXTRA[name])()) for name in extra]
    fields += [pa.field(ERROR, pa.string())]
    schema = pa.schema(fields, metadata=metadata)

    with writing_to(path), whole_file(target) as file, parquet_writer(file, schema) as writer:
        for part in parts():
            columns = [
                to_column((row.get(name, ABSENT) for row in part.rows), kind)
                for name, kind in types.items()
            ]
            columns += part.heads.values()
            columns += [part.extra.get(name, [None] * len(part.rows)) for name in extra]
            columns += [part.errors]
            arrays = [pa.array(each, kind.type) for each, kind in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys in which two provenances differ; empty where scores may be compared."""
    keys = {**ours, **theirs}
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def _survey(parts: Iterable[ScoresTable]) -> tuple[ScoresTable, dict[str, str], list[str]]:
    """The first part, the type of every metadata column over all parts, and the EXTRA in use."""
    first = None
    kinds: dict[str, set[str]] = {}
    extra: dict[str, None] = {}
    for part in parts:
        first = first or part
        extra |= dict.fromkeys(part.extra)
        for name in dict.fromkeys(key for row in part.rows for key in row):
            values = (row.get(name, ABSENT) for row in part.rows)
            kinds.setdefault(name, set()).add(type_of(values))
    if first is None:
        raise ValueError("no part to save")
    types = {name: each.pop() if len(each) == 1 else "json" for name, each in kinds.items()}
    return first, types, list(extra)
