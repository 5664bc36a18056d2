"""Rows of a CSV file, all of them text: prompts, or the metadata of a folder of pictures."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from align_gen.errors import UserError, one_line


def header_of(path: Path) -> list[str]:
    """The columns of a CSV file; UserError where it cannot be read."""
    return next((cells for _, cells in _lines(path)), [])


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, in words, and its cells by column; empty cells are left out.

    Raises:
        UserError: not a CSV file, a column without a name or with another's, or a row with more
            cells than there are columns; the message names the line.
    """
    lines = _lines(path)
    where, header = next(lines, (f"{path} line 1", []))
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise UserError(f"{where}: column {(twice or [''])[0]!r}; want names, each once")
    for where, cells in lines:
        if len(cells) > len(header):
            want = f"want {len(header)}; a text with commas stands in quotes"
            raise UserError(f"{where}: has {len(cells)} cells, {want}")
        if cells:
            yield where, {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def text_of(path: Path) -> str:
    """The text of a file, no more than its size: files of the kernel's, as environ, have none.

    Raises:
        UserError: not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(os.fstat(file.fileno()).st_size)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands, and its cells."""
    lines = csv.reader(StringIO(text_of(path), newline=""))
    try:
        for cells in lines:
            yield f"{path} line {lines.line_num}", cells
    except csv.Error as error:
        line = f"{path} line {lines.line_num}"
        raise UserError(f"{line}: not CSV ({one_line(error, 80)})") from error
