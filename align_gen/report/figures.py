"""The numbers that the page's script draws: scores, disagreement and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align_gen.galleries.table import ScoresTable
from align_gen.report.pictures import Json
from align_gen.report.words import ROLES


def values_of(items: Sequence[Json], column: int) -> list[float]:
    """The finite scores of a column, on both sides."""
    sides = [item[side] for item in items for side in ("before", "after") if side in item]
    values = [side["scores"][column] for side in sides]
    return [value for value in values if value is not None and math.isfinite(value)]


def disagreement(items: Sequence[Json], roles: Sequence[str]) -> bool:
    """Give each pair its "disagreement": how far optimised columns rose above held-out ones.

    Changes are in standard deviations of the column before, and averaged over the columns of a
    role. False, and nothing given, unless there are columns of both roles.
    """
    # Without both roles there is nothing that could disagree.
    aims, guards = ([k for k, role in enumerate(roles) if role == wanted] for wanted in ROLES[:2])
    if not aims or not guards:
        return False
    scale = {k: _std(item["before"]["scores"][k] for item in items) for k in aims + guards}

    def change(item: Json, columns: Sequence[int]) -> float:
        return statistics.fmean(
            (item["after"]["scores"][k] - item["before"]["scores"][k]) / scale[k] for k in columns
        )

    # A pair that lacks a score on either side has none.
    for item in items:
        scores = [item[side]["scores"][k] for side in ("before", "after") for k in scale]
        whole = all(score is not None for score in scores)
        item["disagreement"] = change(item, aims) - change(item, guards) if whole else None
    return True


def _std(values: Iterable[float | None]) -> float:
    """The standard deviation of the finite values (n - 1); 1 where there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (statistics.stdev(known) if len(known) > 1 else 0.0) or 1.0


def curves_of(
    metrics: Sequence[Mapping[str, Any]], before: ScoresTable | None, after: ScoresTable
) -> Json:
    """Metric -> [[step, value], …].

    The galleries' own means open and close the curves eval/COLUMN/mean.
    """
    lines = [line for line in metrics if isinstance(line.get("step"), int | float)]
    if lines and before is not None:
        last = max(line["step"] for line in lines)
        lines = [{"step": 0, **_means(before)}, *lines, {"step": last, **_means(after)}]
    # A later line of the same step replaces an earlier one: the galleries' own means come last.
    curves: dict[str, dict[float, float]] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[line["step"]] = float(value)
    return {key: sorted(points.items()) for key, points in curves.items() if len(points) > 1}


def _means(table: ScoresTable) -> dict[str, float]:
    """The means of the heads that have any score, by the names of a run's metrics."""
    known = {name: table.known(name) for name in table.heads}
    return {
        f"eval/{name}/mean": statistics.fmean(values) for name, values in known.items() if values
    }
