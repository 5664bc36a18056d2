"""Prompt lists: a bundled name, text with a prompt a line, or JSON lines or CSV with columns."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import UserError, one_line
from .columns import ERROR, EXTRA
from .csv_rows import header_of, read_csv, text_of

KINDS = (".txt", ".jsonl", ".csv")
MAX_BYTES = 2**28  # of a list: what is larger is no list of prompts
CSV_PROMPTS = ("prompt", "text")  # columns of a CSV file that may be the prompt
MAX_SEED = 2**63 - 1

Row = dict[str, Any]


def load_prompts(source: str | Path) -> list[Row]:
    """Rows with at least "prompt", in file order.

    A .txt file has a prompt a line; a line that begins with "# " is a comment, as in a list that is
    sorted by headings. A .jsonl file has an object a line. A .csv file has a column "prompt" or
    "text", and its other columns stay, as text. A prompt that stands twice is dropped, unless its
    seeds differ.

    Raises:
        UserError: no such list, another kind of file, an empty one, or a line that is no prompt;
            the message names the file and line.
    """
    path = bundled.PROMPTS / f"{source}.jsonl" if str(source) in bundled.prompts() else Path(source)
    _require_list(path, source)
    # By prompt and seed: the first of two equal rows stays.
    rows: dict[tuple[Any, Any], Row] = {}
    for row in _rows(path):
        rows.setdefault((row["prompt"], row.get("seed")), row)
    if not rows:
        raise UserError(f"{path}: no prompts in it; want one a line")
    return list(rows.values())


def require_disjoint(train: list[Row], held_out: list[Row]) -> None:
    """UserError where a prompt is both trained on and measured; case and spaces do not count."""

    def normal(row: Row) -> str:
        return " ".join(row["prompt"].casefold().split())

    both = sorted({normal(row) for row in train} & {normal(row) for row in held_out})
    if both:
        raise UserError(
            f"prompts.train and prompts.eval overlap in {len(both)} prompts, the first: {both[0]!r}"
        )


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row that could be drawn, but then not be written or scored.

    Raises:
        UserError: the message begins with ``where``, and names the column.
    """
    if not isinstance(row.get("prompt"), str):
        raise UserError(f'{where}: want an object with a "prompt"')
    for name in (ERROR, *EXTRA):
        if name in row:
            raise UserError(
                f"{where}: column {name!r}: the name is kept for a column of the scores; "
                "want another"
            )
    seed = row.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UserError(
            f"{where}: seed: want a whole number from 0 to {MAX_SEED}, got {str(seed)[:40]}"
        )
    for name, value in row.items():
        try:
            # Half a surrogate pair parses as JSON, but cannot be written.
            json.dumps({name: value}, ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            reason = one_line(error, 80)
            raise UserError(f"{where}: column {name!r} cannot be written ({reason})") from error


# --- files ----------------------------------------------------------------------------------------


def _require_list(path: Path, source: str | Path) -> None:
    """UserError for anything but a regular file of one of KINDS."""
    if not path.exists() or path.is_dir():
        raise UserError(
            f"prompts {str(source)!r}: no such file in {Path.cwd()}, nor beside the recipe; "
            f"want a .txt, .jsonl or .csv file, or one of {bundled.prompts()}"
        )
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UserError(f'{path}: want .jsonl: an object like {{"prompt": "…"}} on each line')
    if suffix not in KINDS:
        raise UserError(f"{path}: want a list of prompts as .txt, .jsonl or .csv")
    if not path.is_file():
        raise UserError(f"{path}: is a device or a pipe; want a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES} bytes; want a list of prompts")


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a list, each checked."""
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path)
        return
    # Not splitlines, which would cut a prompt in two at U+2028.
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        line = line.strip()
        where = f"{path} line {number}"
        if line and kind == ".jsonl":
            yield _json_row(line, where)
        elif line and line != "#" and not line.startswith("# "):
            yield {"prompt": line}


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({one_line(error, 120)})") from error
    if not isinstance(row, dict):
        raise UserError(f'{where}: want an object with a "prompt"')
    return _checked(row, where)


def _csv_rows(path: Path) -> Iterator[Row]:
    header = header_of(path)
    column = next((name for name in CSV_PROMPTS if name in header), None)
    if column is None:
        names = one_line(", ".join(header), 200)
        raise UserError(f"{path}: want a column 'prompt' or 'text'; it has {names}")
    for where, cells in read_csv(path):
        row: Row = {"prompt": cells.get(column, "")}
        row |= {name: cell for name, cell in cells.items() if name != column}
        if "seed" in row:
            row["seed"] = int(row["seed"]) if row["seed"].strip().isdecimal() else row["seed"]
        yield _checked(row, where)


def _checked(row: Row, where: str) -> Row:
    """The row itself, if it has a prompt and may be drawn; UserError otherwise."""
    check_row(row, where)
    if not row["prompt"].strip():
        raise UserError(f'{where}: want an object with a "prompt"')
    return row
