"""What the page says of a comparison, in words and rounded numbers; and of its provenance."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from align_gen.galleries.comparison import Comparison, verdict
from align_gen.galleries.intervals import Change

ROLES = ("optimised", "held out", "")  # of columns, in the order they are shown


@dataclass(frozen=True)
class Summary:
    """The head of the verdict strip."""

    state: str  # "good", "bad" or "neutral": how it is coloured
    verdict: str  # a word or three
    reason: str  # one sentence


@dataclass(frozen=True)
class Tile:
    """One column's change, ready to print; places are per cent of the interval's drawing."""

    name: str
    role: str
    direction: str  # "rose", "fell" or "no clear change", by the interval
    delta: str
    interval: str
    means: str
    win_rate: str
    counts: str
    p: str
    effect: str
    places: list[float] | None  # low, delta, high; None without an interval


@dataclass(frozen=True)
class Fact:
    """One entry of the foot: short text, rows of name and text, or a long text."""

    name: str
    kind: str  # "text", "rows" or "long"
    content: Any


def summary(
    comparison: Comparison,
    optimised: Sequence[str],
    held_out: Sequence[str],
    alarm: str | None = None,
) -> Summary:
    """The verdict of `compare.verdict` and the columns it rests on; UserError for a column that was
    not compared.

    An `alarm` of the run comes before all of it.
    """
    if alarm is not None:
        said = summary(comparison, optimised, held_out)
        return Summary(
            "bad",
            "Held-out rewards fell",
            f"{alarm} {said.verdict}: {said.reason[:1].lower()}{said.reason[1:]}",
        )
    word = verdict(comparison, optimised, held_out)
    roles = dict.fromkeys(optimised, "the optimised") | dict.fromkeys(held_out, "the held-out")
    judged = {
        f"{role} {name}": comparison.columns[name] for name, role in roles.items()
    } or comparison.columns
    rose = _listed([name for name, change in judged.items() if change.ci_low > 0])
    fell = _listed([name for name, change in judged.items() if change.ci_high < 0])
    if all(math.isnan(change.ci_low) for change in judged.values()):
        return Summary("neutral", "No verdict", "An interval needs pairs of more than one prompt.")
    moved = "; ".join(part for part in (rose and f"{rose} rose", fell and f"{fell} fell") if part)
    if not roles:
        moved = moved or "No interval excludes zero"
        return Summary(
            "neutral",
            "No verdict",
            f"{_capital(moved)}. No column was named as optimised or held out.",
        )
    if word == "reward hacking suspected":
        return Summary(
            "bad", "Reward hacking suspected", f"{_capital(rose)} rose while {fell} fell."
        )
    if word == "worse":
        return Summary("neutral", "Worse", f"{_capital(moved)}.")
    if word == "improved":
        rest = "nothing held out fell" if held_out else "no held-out column checks it"
        return Summary("good", "Improved", f"{_capital(rose)} rose; {rest}.")
    return Summary(
        "neutral", "No clear change", f"{_capital(moved) or 'Every interval includes zero'}."
    )


def towards(comparison: Comparison, lowered: Sequence[str]) -> Comparison:
    """With the columns that a run drives down turned round, as "−NAME": what rises in them is what
    was wanted.
    """
    columns = {
        f"−{name}" if name in lowered else name: change
        for name, change in comparison.columns.items()
    }
    return replace(
        comparison,
        columns={name: _turned(c) if name[0] == "−" else c for name, c in columns.items()},
    )


def _turned(change: Change) -> Change:
    return replace(
        change,
        before=-change.before,
        after=-change.after,
        delta=-change.delta,
        ci_low=-change.ci_high,
        ci_high=-change.ci_low,
        win_rate=1 - change.win_rate,
    )


def tiles(comparison: Comparison, optimised: Sequence[str], held_out: Sequence[str]) -> list[Tile]:
    """Optimised columns first, then held-out ones, then the rest; intervals drawn on one scale, in
    std of before.
    """
    roles = dict.fromkeys(comparison.columns, "")
    roles |= dict.fromkeys(held_out, "held out") | dict.fromkeys(optimised, "optimised")
    names = sorted(comparison.columns, key=lambda name: ROLES.index(roles[name]))
    limit = (
        max(
            (abs(v) for c in comparison.columns.values() for v in _in_std(c) if math.isfinite(v)),
            default=0,
        )
        or 1
    )
    return [_tile(name, roles[name], comparison.columns[name], limit) for name in names]


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """As it is printed: a true minus sign; a sign on zero only if it is left after rounding; "–"
    for no number.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "−" if value < 0 else "+" if signed else ""
    return sign + text


def digits_of(values: Sequence[float]) -> int:
    """Decimals that show a hundredth of the values' standard deviation."""
    known = [value for value in values if math.isfinite(value)]
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    size = spread or max(map(abs, known), default=0.0) or 1.0
    return max(0, min(8, math.ceil(-math.log10(size / 100) - 1e-9)))


def facts(provenance: Mapping[str, Any]) -> list[Fact]:
    """The foot: mappings become rows, with a.b for what lies deeper; texts of several lines are
    folded away.
    """
    return [
        _fact(str(name), content)
        for name, content in provenance.items()
        if content not in (None, "", {}, [])
    ]


def _fact(name: str, content: Any) -> Fact:
    if isinstance(content, Mapping):
        return Fact(name, "rows", _rows(content))
    text = (
        content
        if isinstance(content, str)
        else json.dumps(content, default=str, ensure_ascii=False)
    )
    return Fact(name, "long" if "\n" in text.strip() else "text", text)


def _rows(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += _rows(value, f"{prefix}{key}.")
        else:
            text = (
                value
                if isinstance(value, str)
                else json.dumps(value, default=str, ensure_ascii=False)
            )
            rows.append((f"{prefix}{key}", text))
    return rows


def _tile(name: str, role: str, change: Change, limit: float) -> Tile:
    spread = change.std if math.isfinite(change.std) and change.std > 0 else abs(change.delta)
    digits = (
        digits_of([0.0, spread * math.sqrt(2)]) if spread else 3
    )  # the pair's standard deviation is `spread`
    low, high = (number(value, digits, signed=True) for value in (change.ci_low, change.ci_high))
    known = math.isfinite(change.ci_low)
    in_std = _in_std(change)
    drawn = known and all(map(math.isfinite, in_std))
    return Tile(
        name=name,
        role=role,
        direction="rose"
        if change.ci_low > 0
        else "fell"
        if change.ci_high < 0
        else "no clear change",
        delta=number(change.delta, digits, signed=True),
        interval=f"{low} to {high}" if known else "none (one prompt)",
        means=f"{number(change.before, digits)} → {number(change.after, digits)}",
        win_rate=f"{100 * change.win_rate:.0f} %",
        counts=f"{change.n} pairs, {change.prompts} prompt{'s' if change.prompts != 1 else ''}",
        p="< 0.001" if change.p < 0.001 else f"{change.p:.3f}",
        effect=f"{number(in_std[1], 2, signed=True)} std" if math.isfinite(in_std[1]) else "–",
        places=[50 + 46 * value / limit for value in in_std] if drawn else None,
    )


def _in_std(change: Change) -> tuple[float, float, float]:
    scale = change.std if change.std > 0 else math.nan
    return change.ci_low / scale, change.delta / scale, change.ci_high / scale


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
