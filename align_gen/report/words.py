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
from align_gen.galleries.verdicts import verdict

ROLES = ("optimised", "held out", "")  # of columns, in the order they are shown


@dataclass(frozen=True)
class Summary:
    """The head of the verdict strip.

    Attributes:
        state: "good", "bad" or "neutral": how the strip is coloured.
        verdict: a word or three.
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
    roles = dict.fromkeys(optimised, "the optimised") | dict.fromkeys(held_out, "the held-out")
    named = {f"{role} {name}": comparison.columns[name] for name, role in roles.items()}
    changes = named or comparison.columns
    rose = _listed([name for name, change in changes.items() if change.ci_low > 0])
    fell = _listed([name for name, change in changes.items() if change.ci_high < 0])
    moved = "; ".join(part for part in (rose and f"{rose} rose", fell and f"{fell} fell") if part)

    # Without intervals or roles there is nothing to judge by.
    if all(math.isnan(change.ci_low) for change in changes.values()):
        return Summary("neutral", "No verdict", "An interval needs pairs of more than one prompt.")
    if not roles:
        moved = _capital(moved or "no interval excludes zero")
        reason = f"{moved}. No column was named as optimised or held out."
        return Summary("neutral", "No verdict", reason)

    # One sentence for each verdict; the columns that it rests on are named in it.
    if word == "reward hacking suspected":
        return Summary(
            "bad", "Reward hacking suspected", f"{_capital(rose)} rose while {fell} fell."
        )
    if word == "worse":
        return Summary("neutral", "Worse", f"{_capital(moved)}.")
    if word == "improved":
        rest = "nothing held out fell" if held_out else "no held-out column checks it"
        return Summary("good", "Improved", f"{_capital(rose)} rose; {rest}.")
    reason = _capital(moved or "every interval includes zero")
    return Summary("neutral", "No clear change", f"{reason}.")


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


def _listed(names: Sequence[str]) -> str:
    """Join names as "a, b and c"; empty for no name."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
