"""`align-gen compare`: what changed between two scored galleries."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import printable
from .arguments import Json, PairedOn, columns_of
from .tables import Column, print_table

if TYPE_CHECKING:
    from ..galleries.comparison import Comparison

EXAMPLE = "align-gen compare runs/demo runs/demo --by group --fail-if 'heldout.ci_low < 0'"
WORST = 3  # regressions of each column that are printed; --json has more
OF_REGRESSION = ("prompt", "seed", "before", "after", "delta", "file_name", "before_file_name")
COLUMNS = (
    Column("", width=16),
    Column("before", ".5f", 10),
    Column("after", ".5f", 10),
    Column("change", "+.5f", 10),
    Column("95 % interval", "s", 24),
    Column("wins", ".1%", 6),
    Column("p", ".4f", 8),
    Column("pairs", "d", 6),
)


def compare(
    a: Annotated[Path, typer.Argument(help="Scores file, scored gallery or run directory.")],
    b: Annotated[
        Path,
        typer.Argument(help="The same. Two runs: end against end. One run twice: start and end."),
    ],
    on: PairedOn = None,
    by: Annotated[str | None, typer.Option(help="Slice by a metadata column.")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Exit 1 when true: 'COLUMN.FIELD < NUMBER'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two galleries pair by pair: change, 95 % interval, win rate, worst regressions.

    Intervals are clustered by prompt. Of two runs the last galleries are compared, end against end;
    of one run given twice, its first gallery and its last.
    """
    from ..galleries.comparison import compare as run_compare
    from ..galleries.verdicts import parse_condition

    # First of all: a gate with a mistake in it must not wait for a long comparison.
    conditions = [(text, parse_condition(text)) for text in fail_if or []]
    result = run_compare(a, b, on=columns_of(on), by=by)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        for line in _differences(a, b):
            print(printable(line))
        print_comparison(result)
    # Last of all, so that whoever reads the log of a failed gate sees the figures.
    met = [text for text, condition in conditions if condition(result)]
    for text in met:
        print(f"align-gen: failed: {printable(text)}", file=sys.stderr)
    if met:
        raise typer.Exit(1)


def print_comparison(result: "Comparison") -> None:
    """Print what was compared, every column's change, by group if asked, and what fell most."""
    if any(result.unmatched):
        print(_counts(result))
    rows = [_row(name, change) for name, change in result.columns.items()]
    for group, columns in result.slices.items():
        rows.append((f"[{group}]",))
        rows += [_row(name, change) for name, change in columns.items()]
    print_table(COLUMNS, rows)
    for name, fallen in result.regressions.items():
        for row in fallen[:WORST]:
            print(f"fell most in {printable(name)}: {_regression(row)}")


def _counts(result: "Comparison") -> str:
    """How many pictures of each side were compared, where some were not."""
    pairs = next(iter(result.columns.values())).n
    before, after = (f"{pairs} of {pairs + left_out}" for left_out in result.unmatched)
    compared = f"compared: {before} pictures before, {after} after"
    return f"{compared}; the others have no partner or cannot be read"


def _row(name: str, change: Any) -> tuple[Any, ...]:
    interval = f"[{change.ci_low:+.5f}, {change.ci_high:+.5f}]"
    # A bootstrap over prompts wants two of them.
    if change.prompts == 1:
        interval = "one prompt: no interval"
    means = (change.before, change.after, change.delta)
    return name, *means, interval, change.win_rate, change.p, change.n


def _regression(row: Mapping[str, Any]) -> str:
    """A pair's scores and what it is known by: prompt and seed, or else its file."""
    names = []
    if row.get("prompt") is not None:
        names.append(printable(repr(row["prompt"])))
    if row.get("seed") is not None:
        names.append(f"seed {printable(row['seed'])}")
    others = {key: value for key, value in row.items() if key not in OF_REGRESSION}
    names += [printable(f"{key} {value}") for key, value in others.items()]
    pair = ", ".join(names) or printable(row.get("file_name"))
    return f"{row['before']:.5f} -> {row['after']:.5f}  {pair}"


def _differences(a: Path, b: Path) -> list[str]:
    """What the two sides are, where that is not plain, and whether they were drawn alike."""
    left, right = _galleries(a, b)
    lines = []
    # A run's folder stands for one of its galleries: say which.
    if (left, right) != (a, b):
        lines.append(f"before: {left}; after: {right}")
    before = _steps_of(left)
    after = _steps_of(right)
    # Fewer steps draw other pictures: the change is then not of the model alone.
    if before and after and before != after:
        lines.append(f"drawn in different numbers of steps: {before} before, {after} after")
    return lines


def _galleries(a: Path, b: Path) -> tuple[Path, Path]:
    """The gallery that each side stands for: a run's last one, or its first beside itself."""
    from ..run_folder import RunFolder

    left = RunFolder(a)
    right = RunFolder(b)
    same_run = a.resolve() == b.resolve()
    start = left.before if same_run else left.final
    return (start if left.exists() else a, right.final if right.exists() else b)


def _steps_of(source: Path) -> str:
    """The numbers of denoising steps in a gallery's rows, as text; empty where none is known."""
    from ..galleries.table import ScoresTable

    steps = set()
    for row in ScoresTable.of(source).rows:
        # Galleries of other programs say nothing of how they were drawn.
        origin = row.get("made")
        if isinstance(origin, Mapping) and "steps" in origin:
            steps.add(origin["steps"])
    return ", ".join(str(number) for number in sorted(steps))
