"""A comparison, its verdict and its provenance in the words and rounded numbers of the page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from align_gen.galleries.comparison import Comparison
from align_gen.galleries.intervals import Change
from align_gen.galleries.verdicts import LEAST_PROMPTS, fell, rose, verdict

ROLES = ("optimised", "held out", "")  # of columns, in the order they are shown


@dataclass(frozen=True)
class Summary:
    """The head of the verdict strip.

    Attributes:
        state: "good", "bad" or "neutral": how the strip is coloured.
        verdict: a few words.
        reason: one sentence.
    """

    state: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Fact:
    """One entry of the foot.

    Attributes:
        name: its heading.
        kind: "text" for a short text, "rows" for (name, text) pairs, or "long" for a long text.
        content: by kind.
    """

    name: str
    kind: str
    content: Any


def run_summary(
    comparison: Comparison,
    optimised: Sequence[str],
    held_out: Sequence[str],
    lowered: Sequence[str] = (),
    alarm: str | None = None,
) -> Summary:
    """The summary of a run, whose optimised columns in ``lowered`` are wanted low: −NAME."""
    aims = [f"−{name}" if name in lowered else name for name in optimised]
    return summary(towards(comparison, lowered), aims, held_out, alarm)


def summary(
    comparison: Comparison,
    optimised: Sequence[str],
    held_out: Sequence[str],
    alarm: str | None = None,
) -> Summary:
    """The verdict of ``verdicts.verdict``, and the columns it rests on.

    An ``alarm`` of the run comes before all of it.

    Raises:
        UserError: a column was not compared.
    """
    if alarm is not None:
        said = summary(comparison, optimised, held_out)
        reason = said.reason[:1].lower() + said.reason[1:]
        return Summary("bad", "Held-out rewards fell", f"{alarm} {said.verdict}: {reason}")

    # Which columns count, and how each of them moved.
    word = verdict(comparison, optimised, held_out)
    roles = dict.fromkeys(held_out, "the held-out") | dict.fromkeys(optimised, "the optimised")
    order = dict.fromkeys([*optimised, *held_out])
    named = {f"{roles[name]} {name}": comparison.columns[name] for name in order}
    changes = named or comparison.columns
    up = listed([name for name, change in changes.items() if rose(change)])
    above = listed([name for name, change in changes.items() if change.ci_low > 0])
    down = listed([name for name, change in changes.items() if fell(change)])
    moved = "; ".join(part for part in (up and f"{up} rose", down and f"{down} fell") if part)

    if not named:
        moved = _capital(moved or "no column changed clearly")
        reason = f"{moved}. No column was named as optimised or held out."
        return Summary("neutral", "No verdict", reason)

    # One sentence for each verdict; the columns that it rests on are named in it.
    prompts = min(change.prompts for change in changes.values())
    few = f" Only {counted(prompts, 'prompt')} were measured." if prompts < LEAST_PROMPTS else ""
    if word == "reward hacking suspected":
        reason = f"{_capital(above)} rose while {down} fell.{few}"
        return Summary("bad", "Reward hacking suspected", reason)
    if word == "worse":
        return Summary("neutral", "Worse", f"{_capital(moved)}.{few}")
    if word == "too few prompts":
        title = f"Too few prompts to say ({prompts} of at least {LEAST_PROMPTS})"
        return Summary("neutral", title, "Measure on more held-out prompts.")
    if word == "improved":
        reason = f"{_capital(up)} rose; nothing optimised or held out fell."
        return Summary("good", "Improved", reason)
    if word == "not confirmed":
        title = "Reward rose; not confirmed by a held-out reward"
        return Summary("neutral", title, f"{_capital(up)} rose; no held-out column rose clearly.")
    if word == "unchecked":
        title = "Reward rose; nothing held out checks it"
        return Summary("neutral", title, f"{_capital(up)} rose; no column is held out.")
    if above:
        reason = f"Interval and p of {above} disagree."
        return Summary("neutral", "No clear change", reason)
    return Summary("neutral", "No clear change", "Every interval includes zero.")


def towards(comparison: Comparison, lowered: Sequence[str]) -> Comparison:
    """Turn the columns that a run drives down round, as "−NAME": what rises is what was wanted."""
    columns = {
        f"−{name}" if name in lowered else name: change
        for name, change in comparison.columns.items()
    }
    turned = {
        name: _negated(change) if name[0] == "−" else change for name, change in columns.items()
    }
    return replace(comparison, columns=turned)


def _negated(change: Change) -> Change:
    return replace(
        change,
        before=-change.before,
        after=-change.after,
        delta=-change.delta,
        ci_low=-change.ci_high,
        ci_high=-change.ci_low,
        win_rate=1 - change.win_rate,
    )


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 picture", "2 pictures"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A rounded number as the page prints it; "–" for NaN.

    The minus sign is a true one, and what rounds to zero has no sign.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "−" if value < 0 else "+" if signed else ""
    return sign + text


def digits_of(values: Sequence[float]) -> int:
    """Decimals that show a hundredth of the values' standard deviation."""
    known = [value for value in values if math.isfinite(value)]
    # Equal values have no deviation: their own size says how many decimals they need.
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    size = std or max(map(abs, known), default=0.0) or 1.0
    return max(0, min(8, math.ceil(-math.log10(size / 100) - 1e-9)))


def facts(provenance: Mapping[str, Any]) -> list[Fact]:
    """The entries of the foot; empty ones are left out.

    Mappings become rows, named a.b where they are nested; texts of several lines are folded away.
    """
    return [
        _fact(str(name), content)
        for name, content in provenance.items()
        if content not in (None, "", {}, [])
    ]


def _fact(name: str, content: Any) -> Fact:
    if isinstance(content, Mapping):
        return Fact(name, "rows", _rows(content))
    text = _text(content)
    return Fact(name, "long" if "\n" in text.strip() else "text", text)


def _rows(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def listed(names: Sequence[str]) -> str:
    """Join names as "a, b and c"; empty for no name."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
