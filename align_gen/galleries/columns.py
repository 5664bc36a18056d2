"""Columns of a Parquet file of scores: values of any JSON type, and rows that lack some keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align_gen.errors import UserError

ERROR = "error"  # the column of reasons
COMBINED = "combined"
UNCERTAINTY = "uncertainty"
CONTENT = "sha256"

# Columns besides the heads', and their types.
EXTRA = {
    COMBINED: "float64",
    UNCERTAINTY: "float64",
    CONTENT: "string",
}

ABSENT = object()  # a row has no such key: not the same as a null
NATURAL = {bool: "bool", int: "int64", float: "float64", str: "string"}


def check_names(rows: Iterable[Mapping[str, Any]], heads: Iterable[str]) -> None:
    """UserError where a column of the scores would have the name of one of the gallery's."""
    taken = {key for row in rows for key in row}
    for name in (ERROR, *EXTRA):
        if name in taken:
            raise UserError(
                f"column {name!r} of the gallery: the name is kept for a column of the scores"
            )
    for name in heads:
        if name in taken or name in (ERROR, *EXTRA):
            raise UserError(
                f"reward {name!r}: there is a column of that name; want another name for the reward"
            )


def rows_of(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """Columns -> rows; a row lacks the keys whose value is absent."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in columns.items():
        for row, value in zip(rows, column, strict=True):
            if value is not ABSENT:
                row[name] = value
    return rows


def type_of(values: Iterable[object]) -> str:
    """The Parquet type that holds all values exactly.

    "json" for mixed, nested or null values, and for integers beyond 64 bits.
    """
    # bool is an int in Python, and must not become one in the file: types are compared exactly.
    present = [value for value in values if value is not ABSENT]
    kinds = {type(value) for value in present}
    if len(kinds) != 1 or not kinds <= NATURAL.keys():
        return "json"
    fits = all(-(2**63) <= value < 2**63 for value in present if isinstance(value, int))
    return NATURAL[kinds.pop()] if fits else "json"


def arrow_type(kind: str) -> Any:
    """The pyarrow type of a column; JSON is kept as text."""
    import pyarrow as pa

    return pa.string() if kind == "json" else pa.type_for_alias(kind)


def to_column(values: Iterable[Any], kind: str) -> list[Any]:
    """Values as the file has them; null stands for an absent one."""
    write = json.dumps if kind == "json" else (lambda value: value)
    return [None if value is ABSENT else write(value) for value in values]


def from_column(values: Iterable[Any], kind: str) -> list[Any]:
    """The inverse of ``to_column``; ValueError for text that is no JSON, or is nested too deep."""
    read = json.loads if kind == "json" else (lambda value: value)
    try:
        return [ABSENT if value is None else read(value) for value in values]
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


def plain(value: Any) -> Any:
    """A value as a JSON file gives it back: tuples become lists, other objects their text."""
    return json.loads(json.dumps(value, default=str))
