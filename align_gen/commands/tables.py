"""Aligned text on stdout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import printable

GAP = "  "  # between columns


@dataclass(frozen=True)
class Column:
    """A column of a table.

    ``form`` is the format of its numbers, as in ``format(value, form)``; a column with one is set
    to the right, others to the left. ``width`` is the least number of characters.
    """

    name: str
    form: str = ""
    width: int = 0

    def text(self, value: Any) -> str:
        """A cell: printable text, nothing for None, a number in the column's format."""
        if value is None:
            return ""
        return printable(value) if isinstance(value, str) else format(value, self.form)

    def aligned(self, text: str, width: int) -> str:
        return text.rjust(width) if self.form else text.ljust(width)


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> None:
    """Print a heading and rows.

    A list is aligned to its widest cells. Of an iterator, which may take minutes for a row, each
    row is printed as it comes, aligned to the columns' own widths. The last cell of a row that is
    shorter than the heading may run on.
    """
    widths = [max(column.width, len(column.name)) for column in columns]
    if isinstance(rows, list):
        widths = _fitted(columns, rows, widths)
    heading = False
    for row in rows:
        # With the first row, so that an iterator that fails at once prints no empty table.
        if not heading:
            print(_line(columns, [column.name for column in columns], widths))
            heading = True
        print(_line(columns, row, widths), flush=True)


def _fitted(
    columns: Sequence[Column], rows: Sequence[Sequence[Any]], least: Sequence[int]
) -> list[int]:
    """The width of every column; the last cell of a short row does not count, as it may run on."""
    widths = list(least)
    for row in rows:
        counted = row if len(row) == len(columns) else row[:-1]
        for index, value in enumerate(counted):
            widths[index] = max(widths[index], len(columns[index].text(value)))
    return widths


def _line(columns: Sequence[Column], row: Sequence[Any], widths: Sequence[int]) -> str:
    cells = []
    for column, value, width in zip(columns, row, widths, strict=False):
        cells.append(column.aligned(column.text(value), width))
    # The last cell of a short row is a remark, which is not set in its column.
    if len(row) < len(columns):
        cells[-1] = columns[len(row) - 1].text(row[-1])
    return GAP.join(cells).rstrip()
