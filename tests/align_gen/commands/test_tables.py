"""Aligned text: widths by the widest cell, or, of rows that come one by one, by the columns."""

from collections.abc import Iterator
from typing import Any

import pytest

from align_gen.commands.tables import Column, print_table

COLUMNS = (Column("name"), Column("mean", ".2f"), Column("note"))


def test_a_list_is_aligned_to_its_widest_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", 1.0, "x"), ("longer", -1000.125, None), ("b", "none", "y"), ("[a long group]",)]
    print_table(COLUMNS, rows)
    assert capsys.readouterr().out.splitlines() == [
        "name        mean  note",
        "a           1.00  x",
        "longer  -1000.12",
        "b           none  y",
        "[a long group]",
    ]


def test_an_iterators_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def rows() -> Iterator[Any]:
        yield "a", 1.0, ""
        seen.append(capsys.readouterr().out)
        yield "b", "out of memory, 3 GiB"

    print_table((Column("name", width=6), *COLUMNS[1:]), rows())
    assert seen == ["name    mean  note\na       1.00\n"]
    assert capsys.readouterr().out == "b       out of memory, 3 GiB\n"


def test_nothing_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [])
    assert not capsys.readouterr().out
