"""Compare two scored galleries picture by picture: pairs, intervals clustered by prompt, slices,
regressions.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.scoring import score
from align_gen.galleries.table import ScoresTable

from .intervals import Change, paired_change

if TYPE_CHECKING:
    from align_gen.reward_heads import RewardSet

Source = str | Path | ScoresTable
Row = dict[str, Any]

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """B against A; all columns over the same pairs."""

    columns: dict[str, Change]
    slices: dict[str, dict[str, Change]]  # value of the `by` column -> column -> change
    regressions: dict[str, list[Row]]  # column -> the pairs that fell most, worst first
    unmatched: tuple[
        int, int
    ]  # rows of A and of B left out: no partner, or one of the two could not be read

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; what is not a number (NaN) becomes null, as JSON has no word for
        it.
        """
        result: dict[str, Any] = _without_nan(asdict(self))
        return result


@dataclass(frozen=True)
class Pair:
    """A row of A and its partner in B, with the compared columns of both."""

    key: str
    a: Row
    b: Row
    before: dict[str, float]
    after: dict[str, float]


def compare(
    a: Source,
    b: Source,
    *,
    on: Sequence[str] = ("prompt", "seed"),
    by: str | None = None,
    columns: Sequence[str] | None = None,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any] | None = None,
    worst: int = 8,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Pair the rows of A and B that agree in the columns `on`, and measure each reward's change.

    a, b: scores, a scores file, a gallery with scores.parquet in it, or a run directory, which
    stands for its final samples; the same run directory twice compares its start with its end. With
    `rewards`, galleries are scored anew. Pairs cluster by "prompt", or stand alone where there is
    none. Raises UserError when nothing pairs, a key occurs twice on one side, or the sides of a
    column differ in provenance: weights, preprocessing, dtype or options.
    """
    paths = [Path(source).resolve() for source in (a, b) if not isinstance(source, ScoresTable)]
    same_run = len(paths) == 2 and paths[0] == paths[1]
    left = _table(a, rewards, "before" if same_run else "samples/final")
    right = _table(b, rewards, "samples/final")
    names = _columns(left, right, columns)
    pairs = _pairs(left, right, names, on)
    groups = {} if by is None else _slices(pairs, by)

    def changes(chosen: Sequence[Pair]) -> dict[str, Change]:
        prompts = [pair.a.get("prompt", pair.key) for pair in chosen]
        return {
            name: paired_change(
                [pair.before[name] for pair in chosen],
                [pair.after[name] for pair in chosen],
                prompts,
                resamples=resamples,
                seed=seed,
            )
            for name in names
        }

    return Comparison(
        columns=changes(pairs),
        slices={value: changes(chosen) for value, chosen in sorted(groups.items())},
        regressions={name: _regressions(name, pairs, on, worst) for name in names},
        unmatched=(len(left.rows) - len(pairs), len(right.rows) - len(pairs)),
    )


def verdict(comparison: Comparison, optimised: Sequence[str], held_out: Sequence[str]) -> str:
    """One of "improved", "no change", "worse" and "reward hacking suspected", by the 95 %
    intervals.

    Hacking: an optimised column rose while a held-out one fell. Worse: anything fell. Improved: an
    optimised column rose (a held-out one, if none was optimised) and nothing fell. UserError for a
    column that was not compared.
    """
    aim = [_change(comparison, name) for name in optimised]
    guard = [_change(comparison, name) for name in held_out]
    rose = any(change.ci_low > 0 for change in aim or guard)
    if aim and rose and any(change.ci_high < 0 for change in guard):
        return "reward hacking suspected"
    if any(change.ci_high < 0 for change in aim + guard):
        return "worse"
    return "improved" if rose else "no change"


def parse_condition(text: str) -> Callable[[Comparison], bool]:
    """A test of a comparison from "COLUMN.FIELD OP NUMBER", as in "heldout.ci_low < 0". OP is one
    of < <= > >=.

    UserError when it reads otherwise; and, from the test, when the column was not compared or the
    field is not a number (an interval of one prompt), for a gate that cannot measure must not pass.
    """
    names = [field.name for field in fields(Change)]
    match = re.fullmatch(
        r"\s*(.+)\.(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text
    )
    if not match or match[2] not in names:
        raise UserError(
            f"condition {text!r}: want COLUMN.FIELD OP NUMBER, FIELD of {', '.join(names)}, OP < <= > >="
        )
    column, field, sign, number = match.groups()

    def holds(comparison: Comparison) -> bool:
        value = float(getattr(_change(comparison, column), field))
        if math.isnan(value):
            raise UserError(
                f"condition {text!r}: {column}.{field} is not a number; want more than one prompt"
            )
        return OPERATORS[sign](value, float(number))

    return holds


def _table(source: Source, rewards: Any, of_run: str) -> ScoresTable:
    if isinstance(source, ScoresTable):
        return source
    path = Path(source)
    if path.is_file():
        return ScoresTable.load(path)
    if (path / "recipe.yaml").is_file():
        path = path / of_run
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; want a run that has finished, or one of its galleries"
            )
    if rewards is not None:
        return score(path, rewards)
    return ScoresTable.of(path)


def _columns(a: ScoresTable, b: ScoresTable, wanted: Sequence[str] | None) -> list[str]:
    shared = [name for name in a.heads if name in b.heads]
    names = shared if wanted is None else list(wanted)
    for name in names:
        if name not in shared:
            raise UserError(
                f"column {name!r}: not scored on both sides; want one of {', '.join(shared) or 'none'}"
            )
        mine = a.provenance.get(name, {})
        other = b.provenance.get(name, {})
        for key in mine | other:
            if mine.get(key) != other.get(key):
                values = f"{mine.get(key)!r} in A and {other.get(key)!r} in B"
                raise UserError(
                    f"column {name!r}: {key} differs, {values}; want both scored by the same reward"
                )
    if not names:
        raise UserError(
            f"no reward in common: A has {', '.join(a.heads)}; B has {', '.join(b.heads)}"
        )
    return names


def _pairs(a: ScoresTable, b: ScoresTable, names: Sequence[str], on: Sequence[str]) -> list[Pair]:
    """The rows of A and B that agree in `on` and have every column on both sides, in A's order."""
    found_a = _index(a, on, "A")
    found_b = _index(b, on, "B")
    pairs = []
    for key, i in found_a.items():
        if key in found_b:
            before = _numbers(a, names, i)
            after = _numbers(b, names, found_b[key])
            if len(before) == len(after) == len(names):
                pairs.append(Pair(key, a.rows[i], b.rows[found_b[key]], before, after))
    if not pairs:
        raise UserError(
            f"nothing to compare: no readable row of A agrees with one of B in {', '.join(on)}"
        )
    return pairs


def _numbers(table: ScoresTable, names: Sequence[str], index: int) -> dict[str, float]:
    return {name: value for name in names if (value := table.heads[name][index]) is not None}


def _index(table: ScoresTable, on: Sequence[str], side: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        missing = [name for name in on if name not in row]
        if missing:
            raise UserError(
                f"{side} row {index}: no column {missing[0]!r} to pair on; it has {', '.join(row)}"
            )
        key = json.dumps(
            {name: row[name] for name in on}, ensure_ascii=False
        )  # text, as values may be lists
        if found.setdefault(key, index) != index:
            raise UserError(f"{side}: {key} occurs twice; want one row for each {', '.join(on)}")
    return found


def _slices(pairs: Sequence[Pair], by: str) -> dict[str, list[Pair]]:
    known = dict.fromkeys(key for pair in pairs for key in pair.a)
    if by not in known:
        raise UserError(f"by: no column {by!r}; want one of {', '.join(known)}")
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(str(pair.a.get(by, "(none)")), []).append(pair)
    return groups


def _regressions(name: str, pairs: Sequence[Pair], on: Sequence[str], worst: int) -> list[Row]:
    fallen = [pair for pair in pairs if pair.after[name] < pair.before[name]]
    fallen.sort(key=lambda pair: pair.after[name] - pair.before[name])
    return [
        {
            **{key: pair.a.get(key) for key in dict.fromkeys(("prompt", "seed", *on))},
            "before": pair.before[name],
            "after": pair.after[name],
            "delta": pair.after[name] - pair.before[name],
            "file_name": pair.b.get("file_name"),
            "before_file_name": pair.a.get("file_name"),
        }
        for pair in fallen[:worst]
    ]


def _change(comparison: Comparison, name: str) -> Change:
    if name not in comparison.columns:
        raise UserError(
            f"column {name!r}: not compared; want one of {', '.join(comparison.columns)}"
        )
    return comparison.columns[name]


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
