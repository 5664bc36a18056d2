"""Compare two scored galleries picture by picture: changes, slices, the worst regressions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import UserError
from align_gen.galleries.intervals import Change, paired_change
from align_gen.galleries.table import ScoresTable
from align_gen.run_folder import RunFolder

if TYPE_CHECKING:
    from align_gen.reward_heads import RewardSet

Source = str | Path | ScoresTable
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """B against A; all columns over the same pairs.

    Attributes:
        columns: the change of every compared column.
        slices: value of the ``by`` column -> column -> change.
        regressions: column -> the pairs that fell most, worst first.
        unmatched: rows of A and of B left out: without a partner, or one of the two could not be
            read.
        pairs: row numbers in A and in B that belong together, in A's order, also of pictures that
            could not be read.
    """

    columns: dict[str, Change]
    slices: dict[str, dict[str, Change]]
    regressions: dict[str, list[Row]]
    unmatched: tuple[int, int]
    pairs: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        changes = ", ".join(f"{name} {each.delta:+.4f}" for name, each in self.columns.items())
        return f"Comparison({len(self.pairs)} pairs; {changes})"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, without ``pairs``; NaN becomes null, as JSON has no NaN."""
        # They are row numbers, of use only beside the two tables.
        values = asdict(self)
        del values["pairs"]
        result: dict[str, Any] = _without_nan(values)
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
    """Pair the rows of A and B that agree in the columns ``on``, and measure each reward's change.

    Pairs cluster by "prompt", or stand alone where there is none.

    Args:
        a: scores, a scores file, a gallery with scores.parquet in it, or a run directory, which
            stands for its final samples.
        b: likewise. The same run directory twice compares the run's start with its end.
        on: columns that a pair has in common; together they name one row of each side.
        by: a column of A to slice by.
        columns: heads to compare; None: all that both sides have.
        rewards: to score galleries anew.
        worst: how many regressions of each column to list.
        resamples: of the bootstrap and of the sign-flip test.
        seed: of both.

    Raises:
        UserError: nothing pairs, a key occurs twice on one side, or the sides of a column differ in
            provenance: weights, preprocessing, dtype or options.
    """
    # One run named twice is its start against its end; two runs are compared at their ends.
    paths = [Path(source).resolve() for source in (a, b) if not isinstance(source, ScoresTable)]
    same_run = len(paths) == 2 and paths[0] == paths[1]
    left = _table(a, rewards, start=same_run)
    right = _table(b, rewards)

    # All columns are measured over the same pairs, so that their changes can be set side by side.
    names = _columns(left, right, columns)
    matched = _matched(left, right, on)
    pairs = _pairs(left, right, names, matched, on)
    groups = {} if by is None else _slices(pairs, by)

    def changes(chosen: Sequence[Pair]) -> dict[str, Change]:
        # Without a prompt a pair is its own cluster.
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
        pairs=tuple(matched.values()),
    )


# --- tables ---------------------------------------------------------------------------------------


def _table(source: Source, rewards: Any, start: bool = False) -> ScoresTable:
    """The scores of a source; of a run, those of its end, or of its start."""
    if isinstance(source, ScoresTable):
        return source
    path = Path(source)
    if path.is_file():
        return ScoresTable.load(path)
    run = RunFolder(path)
    if run.exists():
        path = run.before if start else run.final
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; want a run that has finished, or one of its galleries"
            )
    if rewards is None:
        return ScoresTable.of(path)
    # Only here: all that scoring takes is loaded for one who wants it.
    from align_gen.galleries.scoring import score

    return score(path, rewards)


def _columns(a: ScoresTable, b: ScoresTable, wanted: Sequence[str] | None) -> list[str]:
    """The heads to compare: scored on both sides, by the same rewards."""
    shared = [name for name in a.heads if name in b.heads]
    names = shared if wanted is None else list(wanted)
    for name in names:
        if name not in shared:
            known = ", ".join(shared) or "none"
            raise UserError(f"column {name!r}: not scored on both sides; want one of {known}")
        a.require_same_rewards(b, name)
    if not names:
        raise UserError(
            f"no reward in common: A has {', '.join(a.heads)}; B has {', '.join(b.heads)}"
        )
    return names


# --- pairs ----------------------------------------------------------------------------------------


def _matched(a: ScoresTable, b: ScoresTable, on: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Row numbers of A and B that agree in ``on``, by their key, in A's order."""
    rows_a = _index(a, on, "A")
    rows_b = _index(b, on, "B")
    return {key: (row, rows_b[key]) for key, row in rows_a.items() if key in rows_b}


def _index(table: ScoresTable, on: Sequence[str], side: str) -> dict[str, int]:
    """Row numbers by the values of ``on``; UserError where a row lacks them or repeats others."""
    index: dict[str, int] = {}
    for number, row in enumerate(table.rows):
        missing = [name for name in on if name not in row]
        if missing:
            columns = ", ".join(row)
            raise UserError(
                f"{side} row {number}: no column {missing[0]!r} to pair on; "
                f"it has {columns}, and --on names others"
            )
        # Text, as values may be lists.
        key = json.dumps({name: row[name] for name in on}, ensure_ascii=False)
        if index.setdefault(key, number) != number:
            raise UserError(f"{side}: {key} occurs twice; want one row for each {', '.join(on)}")
    return index


def _pairs(
    a: ScoresTable,
    b: ScoresTable,
    names: Sequence[str],
    matched: Mapping[str, tuple[int, int]],
    on: Sequence[str],
) -> list[Pair]:
    """The matched rows that have every column on both sides."""
    pairs = []
    for key, (row_a, row_b) in matched.items():
        before = _scores_of(a, names, row_a)
        after = _scores_of(b, names, row_b)
        if len(before) == len(after) == len(names):
            pairs.append(Pair(key, a.rows[row_a], b.rows[row_b], before, after))
    if not pairs:
        raise UserError(
            f"nothing to compare: no readable row of A agrees with one of B in {', '.join(on)}"
        )
    return pairs


def _scores_of(table: ScoresTable, names: Sequence[str], row: int) -> dict[str, float]:
    """The scores of one row, without those that are missing."""
    return {name: value for name in names if (value := table.heads[name][row]) is not None}


def _slices(pairs: Sequence[Pair], by: str) -> dict[str, list[Pair]]:
    known = dict.fromkeys(key for pair in pairs for key in pair.a)
    if by not in known:
        raise UserError(f"by: no column {by!r}; want one of {', '.join(known)}")
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(str(pair.a.get(by, "(none)")), []).append(pair)
    return groups


def _regressions(name: str, pairs: Sequence[Pair], on: Sequence[str], worst: int) -> list[Row]:
    """The pairs whose column fell most, worst first."""
    fallen = [pair for pair in pairs if pair.after[name] < pair.before[name]]
    # Ties keep the order of A, so that the list does not depend on the machine.
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


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
