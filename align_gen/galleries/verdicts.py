"""Verdicts on a comparison in words, and conditions for a gate."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from align_gen.errors import UserError
from align_gen.galleries.intervals import Change
from align_gen.galleries.table import ScoresTable

if TYPE_CHECKING:
    from align_gen.galleries.comparison import Comparison

LEAST_PROMPTS = 10  # the interval of fewer is too narrow, as a bootstrap of few clusters is
LEVEL = 0.05  # of p

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def verdict(comparison: Comparison, optimised: Sequence[str], held_out: Sequence[str]) -> str:
    """What the changes say, by the first row of this table that holds.

    ==========================  ====================================================================
    verdict                     where
    ==========================  ====================================================================
    "reward hacking suspected"  an optimised column's interval is above 0, and a held-out one fell
    "worse"                     a held-out column fell
    "too few prompts"           fewer than LEAST_PROMPTS prompts, or no column is named
    "worse"                     an optimised column fell
    "improved"                  a held-out column rose
    "not confirmed"             an optimised column rose, and no held-out one
    "unchecked"                 an optimised column rose, and nothing is held out
    "no change"                 anything else
    ==========================  ====================================================================

    ``fell`` and ``rose`` say what these words mean: a warning needs less than praise. A column that
    is optimised checks nothing, also where it is named as held out.

    Raises:
        UserError: a column was not compared.
    """
    aims = [_change(comparison, name) for name in optimised]
    guards = [_change(comparison, name) for name in held_out if name not in optimised]

    # Warnings come first: few prompts are no reason to keep quiet.
    if any(map(fell, guards)):
        above = any(change.ci_low > 0 for change in aims)
        return "reward hacking suspected" if above else "worse"
    if any(change.prompts < LEAST_PROMPTS for change in aims + guards) or not aims + guards:
        return "too few prompts"
    if any(map(fell, aims)):
        return "worse"

    # What was optimised may rise by luck or by a trick; only what was not shows a better model.
    if any(map(rose, guards)):
        return "improved"
    if any(map(rose, aims)):
        return "not confirmed" if guards else "unchecked"
    return "no change"


def independent(
    scores: ScoresTable, held_out: Sequence[str], optimised: Sequence[str]
) -> list[str]:
    """The held-out columns that are not an optimised one under another name.

    Columns of equal provenance (weights, preprocessing, dtype, options) are one reward; where the
    scores name none, the columns are taken as they are named.
    """
    aims = [scores.provenance.get(name) for name in optimised]
    origins = {name: scores.provenance.get(name) for name in held_out}
    return [name for name, origin in origins.items() if not origin or origin not in aims]


def rose(change: Change) -> bool:
    """Whether a column rose: interval above 0, p below LEVEL, and LEAST_PROMPTS prompts or more."""
    return change.ci_low > 0 and change.p < LEVEL and change.prompts >= LEAST_PROMPTS


def fell(change: Change) -> bool:
    """Whether a column fell: its interval is below 0. This is a warning, so it needs no more."""
    return change.ci_high < 0


def parse_condition(text: str) -> Callable[[Comparison], bool]:
    """Make a test of a comparison from "COLUMN.FIELD OP NUMBER", as in "heldout.ci_low < 0".

    OP is one of < <= > >=, FIELD one of ``Change``.

    Raises:
        UserError: the text reads otherwise. Also from the test itself, where the column was not
            compared or the field is not a number (an interval of one prompt): a gate that cannot
            measure must not pass.
    """
    # The column comes first and may hold dots itself: its name ends at the last one.
    names = [field.name for field in fields(Change)]
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    match = re.fullmatch(rf"\s*(.+)\.(\w+)\s*(<=|>=|<|>)\s*({number})\s*", text)
    if not match or match[2] not in names:
        known = ", ".join(names)
        raise UserError(
            f"condition {text!r}: want COLUMN.FIELD OP NUMBER, FIELD of {known}, OP < <= > >="
        )
    column, field, sign, limit = match.groups()

    def holds(comparison: Comparison) -> bool:
        value = float(getattr(_change(comparison, column), field))
        if math.isnan(value):
            raise UserError(
                f"condition {text!r}: {column}.{field} is not a number; want more than one prompt"
            )
        return OPERATORS[sign](value, float(limit))

    return holds


def _change(comparison: Comparison, name: str) -> Change:
    if name not in comparison.columns:
        known = ", ".join(comparison.columns)
        raise UserError(f"column {name!r}: not compared; want one of {known}")
    return comparison.columns[name]
