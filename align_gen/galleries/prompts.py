"""Prompt lists: a bundled name, a text file with a prompt per line, or JSON lines with columns."""

import json
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import UserError


def load_prompts(source: str | Path) -> list[dict[str, Any]]:
    """Rows with at least "prompt", in file order.

    A prompt that stands twice is dropped, unless its seeds differ.

    Raises:
        UserError: no such list, an empty one, or a line that is no prompt; the message names the
            file and line.
    """
    path = bundled.PROMPTS / f"{source}.jsonl" if str(source) in bundled.prompts() else Path(source)
    if not path.is_file():
        raise UserError(
            f"prompts {str(source)!r}: no such file in {Path.cwd()}, nor beside the recipe; "
            f"want a .txt or .jsonl file, or one of {bundled.prompts()}"
        )
    # By prompt and seed: the first of two equal rows stays.
    rows: dict[tuple[Any, Any], dict[str, Any]] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    # Not splitlines, which would cut a prompt in two at U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _row(line, path, number) if path.suffix == ".jsonl" else {"prompt": line.strip()}
            rows.setdefault((row["prompt"], row.get("seed")), row)
    if not rows:
        raise UserError(f"{path}: no prompts in it; want one a line")
    return list(rows.values())


def require_disjoint(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    """UserError where a prompt is both trained on and measured; case and spaces do not count."""

    def normal(row: dict[str, Any]) -> str:
        return " ".join(row["prompt"].casefold().split())

    both = sorted({normal(row) for row in train} & {normal(row) for row in held_out})
    if both:
        raise UserError(
            f"prompts.train and prompts.eval overlap in {len(both)} prompts, the first: {both[0]!r}"
        )


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} line {number}: not JSON ({error})") from error
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("prompt"), str)
        or not row["prompt"].strip()
    ):
        raise UserError(f'{path} line {number}: want an object with a "prompt"')
    seed = row.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UserError(f"{path} line {number}: seed: want a whole number from 0, got {seed!r}")
    return row
