"""Choose preference pairs by scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import UserError
from ..losses import choice_probabilities
from ..pipelines.seeding import generator
from .pairs import Pairs, Row

if TYPE_CHECKING:
    from .table import ScoresTable

Index = tuple[int, int]  # rows of the chosen and of the rejected

By = Literal["margin", "best_worst", "bradley_terry"]

BY: tuple[By, ...] = get_args(By)


def pairs(
    scores: ScoresTable,
    *,
    by: By = "margin",
    column: str | None = None,
    min_margin: float = 0.0,
    per_prompt: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Pairs:
    """Pairs of pictures of one prompt, the better one chosen.

    A row has "prompt", "chosen" and "rejected" (media, relative to the gallery), "margin" (above
    zero), "agreement" (the share of heads that would choose alike, ties half) and "margin/HEAD" for
    every head.

    Args:
        scores: of a gallery with prompts.
        by: "margin": all pairs, the widest first. "best_worst": the best with the worst, then the
            second best with the second worst. "bradley_terry": the chosen drawn by
            ``choice_probabilities`` of those that are not worst, the rejected likewise by the
            negated scores of those below it; temperature 0 is in the limit the best and the worst,
            infinity any pair.
        column: the head to choose by, its margins in its own units. None: all heads, each in units
            of its standard deviation over the gallery, averaged.
        min_margin: pairs that are not wider are left out, as ties are.
        per_prompt: at most so many pairs of a prompt. None: all by "margin", else one.
        temperature: of "bradley_terry", in units of the margin.
        seed: of "bradley_terry".

    Raises:
        UserError: an option that is none, a row without a prompt, or no pair at all.
    """
    _check(scores, by, column, min_margin, per_prompt, temperature)
    heads = {name: [_number(value) for value in values] for name, values in scores.heads.items()}
    judged = (
        {column: heads[column]}
        if column is not None
        else {n: _in_deviations(v) for n, v in heads.items()}
    )
    value = [
        _mean(each) for each in zip(*judged.values(), strict=True)
    ]  # None where any head has none
    found = Pairs(unreadable=sum(each is None for each in value))
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(scores.rows):
        if value[index] is not None:
            groups.setdefault(_prompt(row, index), []).append(index)
    for prompt, members in groups.items():
        level = {index: each for index in members if (each := value[index]) is not None}
        if by == "bradley_terry":
            chosen, ties = _drawn(level, min_margin, per_prompt or 1, temperature, seed, prompt)
        else:
            candidates = _all_pairs(level) if by == "margin" else _opposites(level)
            limit = 1 if by == "best_worst" and per_prompt is None else per_prompt
            wide = [pair for pair in candidates if level[pair[0]] - level[pair[1]] > min_margin]
            chosen = list(islice(wide, limit))
            ties = len(candidates) - len(wide)
        found.ties += ties
        found += [_row(scores, heads, prompt, level, pair) for pair in chosen]
    if not found:
        told = (
            f"{len(groups)} prompts, {found.unreadable} pictures without a score, {found.ties} ties"
        )
        raise UserError(
            f"no pairs: {told}; want two pictures of one prompt that differ by more than {min_margin}"
        )
    return found


def _check(
    scores: ScoresTable,
    by: str,
    column: str | None,
    min_margin: float,
    per_prompt: int | None,
    temperature: float,
) -> None:
    if by not in BY:
        raise UserError(f"by: {by!r}, want one of {', '.join(BY)}")
    if not scores.heads or (column is not None and column not in scores.heads):
        raise UserError(
            f"column: {column!r} was not scored; want one of {', '.join(scores.heads) or 'none'}"
        )
    if not 0 <= min_margin < math.inf:
        raise UserError(f"min_margin: {min_margin}, want a number from 0")
    if per_prompt is not None and per_prompt < 1:
        raise UserError(f"per_prompt: {per_prompt}, want 1 or more")
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature: {temperature}, want a number above 0")


def _prompt(row: Mapping[str, Any], index: int) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise UserError(
            f"row {index} ({row.get('file_name')}): has no prompt; pairs are of pictures of one prompt"
        )
    return prompt


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _in_deviations(values: Sequence[float | None]) -> list[float | None]:
    """In units of their own standard deviation; a head that never differs says nothing."""
    present = [value for value in values if value is not None]
    spread = statistics.pstdev(present) if present else 0.0
    return [None if value is None else value / spread if spread > 0 else 0.0 for value in values]


def _all_pairs(level: Mapping[int, float]) -> list[Index]:
    """Every pair, better first, the widest first."""
    ordered = [(i, j) if level[i] >= level[j] else (j, i) for i, j in combinations(level, 2)]
    return sorted(ordered, key=lambda pair: level[pair[1]] - level[pair[0]])


def _opposites(level: Mapping[int, float]) -> list[Index]:
    """The best with the worst, the second best with the second worst, and so on."""
    ranked = sorted(level, key=lambda index: -level[index])
    return list(zip(ranked[: len(ranked) // 2], ranked[::-1], strict=False))


def _drawn(
    level: Mapping[int, float],
    min_margin: float,
    count: int,
    temperature: float,
    seed: int,
    prompt: str,
) -> tuple[list[Index], int]:
    """(Up to ``count`` different pairs, ties): the chosen by Bradley-Terry, then one that lies far
    enough below it.
    """
    g = generator(seed, "pairs", 0, prompt)
    possible = [pair for pair in _all_pairs(level) if level[pair[0]] - level[pair[1]] > min_margin]
    ties = len(level) * (len(level) - 1) // 2 - len(possible)
    drawn = list[Index]()
    while possible and len(drawn) < count:
        better = list(dict.fromkeys(pair[0] for pair in possible))
        chosen = _draw(better, [level[index] for index in better], temperature, g)
        worse = [pair[1] for pair in possible if pair[0] == chosen]
        rejected = _draw(worse, [-level[index] for index in worse], temperature, g)
        drawn.append((chosen, rejected))
        possible.remove((chosen, rejected))
    return drawn, ties


def _draw(items: Sequence[int], scores: Sequence[float], temperature: float, g: Any) -> int:
    import torch

    values = torch.tensor(scores, dtype=torch.float64)
    weights = choice_probabilities(values, len(values), temperature)
    return items[int(torch.multinomial(weights, 1, generator=g))]


def _row(
    scores: ScoresTable,
    heads: Mapping[str, Sequence[float | None]],
    prompt: str,
    level: Mapping[int, float],
    pair: Index,
) -> Row:
    chosen, rejected = pair
    margins = {
        name: _difference(values[chosen], values[rejected]) for name, values in heads.items()
    }
    known = [margin for margin in margins.values() if margin is not None]
    return {
        "prompt": prompt,
        "chosen": scores.rows[chosen]["file_name"],
        "rejected": scores.rows[rejected]["file_name"],
        "margin": level[chosen] - level[rejected],
        "agreement": sum((margin > 0) + (margin == 0) / 2 for margin in known) / len(known),
        **{f"margin/{name}": margin for name, margin in margins.items()},
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
