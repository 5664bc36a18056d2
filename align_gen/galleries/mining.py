"""Mine preference pairs from a scored gallery: two pictures of a prompt, the better one chosen."""

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
            second best with the second worst. "bradley_terry": the chosen is drawn by
            ``losses.choice_probabilities`` from those that are not worst, the rejected likewise by
            the negated scores of those below it. Towards temperature 0 these are the best and the
            worst, towards infinity any pair.
        column: the head to choose by, its margins in its own units. None: all heads, each in units
            of its standard deviation over the gallery, averaged.
        min_margin: pairs that are not wider are left out, as ties are.
        per_prompt: at most so many pairs of a prompt. None: all by "margin", else one.
        temperature: of "bradley_terry", in units of the margin.
        seed: of "bradley_terry".

    Raises:
        UserError: an option out of range, a row without a prompt, or no pair at all.
    """
    _check(scores, by, column, min_margin, per_prompt, temperature)
    heads = {name: [_finite(value) for value in values] for name, values in scores.heads.items()}
    # A picture without a score of a head that counts has no level, and is in no pair.
    level = _levels(heads, column)
    result = Pairs(unreadable=sum(each is None for each in level))
    prompts = _by_prompt(scores, level)
    for prompt, levels in prompts.items():
        # Which pairs of this prompt, and how many were too narrow.
        if by == "bradley_terry":
            count = per_prompt or 1
            chosen, ties = _drawn(levels, min_margin, count, temperature, seed, prompt)
        else:
            candidates = _all_pairs(levels) if by == "margin" else _opposites(levels)
            limit = 1 if by == "best_worst" and per_prompt is None else per_prompt
            wide = [pair for pair in candidates if levels[pair[0]] - levels[pair[1]] > min_margin]
            chosen = list(islice(wide, limit))
            ties = len(candidates) - len(wide)
        result.ties += ties
        result += [_row(scores, heads, prompt, levels, pair) for pair in chosen]
    if not result:
        unreadable = f"{_count(result.unreadable, 'picture')} without a score"
        counts = f"{_count(len(prompts), 'prompt')}, {unreadable}, {_count(result.ties, 'tie')}"
        wanted = f"two pictures of one prompt that differ by more than {min_margin}"
        raise UserError(f"no pairs: {counts}; want {wanted}")
    return result


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check(
    scores: ScoresTable,
    by: str,
    column: str | None,
    min_margin: float,
    per_prompt: int | None,
    temperature: float,
) -> None:
    """Check the options of ``pairs``; raises UserError."""
    if by not in BY:
        raise UserError(f"by: {by!r}, want one of {', '.join(BY)}")
    if not scores.heads or (column is not None and column not in scores.heads):
        known = ", ".join(scores.heads) or "none"
        raise UserError(f"column: {column!r} was not scored; want one of {known}")
    if not 0 <= min_margin < math.inf:
        raise UserError(f"min_margin: {min_margin}, want a number from 0")
    if per_prompt is not None and per_prompt < 1:
        raise UserError(f"per_prompt: {per_prompt}, want 1 or more")
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature: {temperature}, want a number above 0")


# --- levels ---------------------------------------------------------------------------------------


def _levels(heads: Mapping[str, list[float | None]], column: str | None) -> list[float | None]:
    """The number that each picture is compared by; None where a head that counts has no score."""
    if column is not None:
        return [_mean([value]) for value in heads[column]]
    columns = [_in_deviations(values) for values in heads.values()]
    return [_mean(values) for values in zip(*columns, strict=True)]


def _by_prompt(scores: ScoresTable, level: Sequence[float | None]) -> dict[str, dict[int, float]]:
    """The levels of each prompt's pictures by row, without those that have none."""
    prompts: dict[str, dict[int, float]] = {}
    for index, row in enumerate(scores.rows):
        value = level[index]
        if value is not None:
            prompts.setdefault(_prompt(row, index), {})[index] = value
    return prompts


def _prompt(row: Mapping[str, Any], index: int) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        name = row.get("file_name")
        raise UserError(f"row {index} ({name}): has no prompt; pairs are of pictures of one prompt")
    if not isinstance(row.get("file_name"), str):
        raise UserError(f"row {index}: has no file_name; want scores of a gallery's pictures")
    return prompt


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where any value is missing."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _in_deviations(values: Sequence[float | None]) -> list[float | None]:
    """Scores in units of their own standard deviation; 0 for a head that never differs."""
    present = [value for value in values if value is not None]
    std = statistics.pstdev(present) if present else 0.0
    return [None if value is None else value / std if std > 0 else 0.0 for value in values]


# --- choosing -------------------------------------------------------------------------------------


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
    """Up to ``count`` different pairs drawn by Bradley-Terry, and the number of ties.

    The chosen is drawn first, then one that lies far enough below it.
    """
    # Seeded by the prompt, so that pairs of one prompt do not depend on the others.
    rng = generator(seed, "pairs", 0, prompt)
    possible = [pair for pair in _all_pairs(level) if level[pair[0]] - level[pair[1]] > min_margin]
    ties = len(level) * (len(level) - 1) // 2 - len(possible)
    drawn = list[Index]()
    while possible and len(drawn) < count:
        better = list(dict.fromkeys(pair[0] for pair in possible))
        chosen = _draw(better, [level[index] for index in better], temperature, rng)
        worse = [pair[1] for pair in possible if pair[0] == chosen]
        rejected = _draw(worse, [-level[index] for index in worse], temperature, rng)
        drawn.append((chosen, rejected))
        possible.remove((chosen, rejected))
    return drawn, ties


def _draw(items: Sequence[int], scores: Sequence[float], temperature: float, rng: Any) -> int:
    import torch

    values = torch.tensor(scores, dtype=torch.float64)
    weights = choice_probabilities(values, len(values), temperature)
    return items[int(torch.multinomial(weights, 1, generator=rng))]


# --- rows -----------------------------------------------------------------------------------------


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
