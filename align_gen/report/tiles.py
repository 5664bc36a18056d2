"""The tiles of the page: a column's change, or its mean, as rounded text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from align_gen.galleries.comparison import Comparison
from align_gen.galleries.intervals import Change
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.verdicts import LEAST_PROMPTS, fell, rose
from align_gen.report.words import ROLES, counted, digits_of, number


@dataclass(frozen=True)
class Tile:
    """One column's change, ready to print.

    Attributes:
        direction: "rose" or "fell", as ``verdicts`` defines these words; else "too few prompts" or
            "no clear change".
        drawing: low end, change and high end of the interval, in per cent of the tile's width; None
            without an interval.
    """

    name: str
    role: str
    direction: str
    delta: str
    interval: str
    means: str
    win_rate: str
    counts: str
    p: str
    effect: str
    drawing: list[float] | None


@dataclass(frozen=True)
class MeanTile:
    """One column of a single gallery, ready to print."""

    name: str
    mean: str
    std: str
    counts: str


def tiles(comparison: Comparison, optimised: Sequence[str], held_out: Sequence[str]) -> list[Tile]:
    """The columns' tiles: optimised ones first, then held-out ones, then the rest.

    Their intervals are drawn on one scale, in standard deviations before.
    """
    # A role is said once; what was optimised counts as that, also if it is held out too.
    columns = comparison.columns
    roles = dict.fromkeys(columns, "")
    roles |= dict.fromkeys(held_out, "held out") | dict.fromkeys(optimised, "optimised")
    names = sorted(columns, key=lambda name: ROLES.index(roles[name]))
    ends = [abs(value) for change in columns.values() for value in _in_std(change)]
    limit = max(filter(math.isfinite, ends), default=0) or 1
    return [_tile(name, roles[name], columns[name], limit) for name in names]


def mean_tiles(table: ScoresTable) -> list[MeanTile]:
    """The mean of every column of a single gallery, over the pictures that could be read."""
    means = []
    for name in table.heads:
        # Pictures without a score are left out, and counted.
        values = table.known(name)
        digits = digits_of(values)
        counts = counted(len(values), "picture")
        if len(values) < len(table.rows):
            counts = f"{len(values)} of {counted(len(table.rows), 'picture')}"
        mean = number(statistics.fmean(values), digits) if values else "–"
        std = number(statistics.stdev(values), digits) if len(values) > 1 else "–"
        means.append(MeanTile(name, mean, std, counts))
    return means


def _tile(name: str, role: str, change: Change, limit: float) -> Tile:
    # As many decimals as a column of this standard deviation has; the pair (0, x) has it too.
    spread = change.std if math.isfinite(change.std) and change.std > 0 else abs(change.delta)
    digits = digits_of([0.0, spread * math.sqrt(2)]) if spread else 3
    low = number(change.ci_low, digits, signed=True)
    high = number(change.ci_high, digits, signed=True)
    known = math.isfinite(change.ci_low)

    # As in the verdict: one page does not say two things of a column.
    direction = "no clear change"
    if rose(change):
        direction = "rose"
    elif fell(change):
        direction = "fell"
    elif change.prompts < LEAST_PROMPTS:
        direction = "too few prompts"

    # The drawing's middle is 50; 46 leaves a margin at both ends.
    in_std = _in_std(change)
    drawn = known and all(map(math.isfinite, in_std))
    return Tile(
        name=name,
        role=role,
        direction=direction,
        delta=number(change.delta, digits, signed=True),
        interval=f"{low} to {high}" if known else "none (one prompt)",
        means=f"{number(change.before, digits)} → {number(change.after, digits)}",
        win_rate=f"{100 * change.win_rate:.0f} %",
        counts=f"{counted(change.n, 'pair')}, {counted(change.prompts, 'prompt')}",
        p="< 0.001" if change.p < 0.001 else f"{change.p:.3f}",
        effect=f"{number(in_std[1], 2, signed=True)} std" if math.isfinite(in_std[1]) else "–",
        drawing=[50 + 46 * value / limit for value in in_std] if drawn else None,
    )


def _in_std(change: Change) -> tuple[float, float, float]:
    """Low end, change and high end in standard deviations before; NaN where that is 0."""
    scale = change.std if change.std > 0 else math.nan
    return change.ci_low / scale, change.delta / scale, change.ci_high / scale
