"""The change between paired scores: a bootstrap interval and a sign-flip test, both by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXACT_PROMPTS = 12  # sign flips are enumerated up to 2^12, sampled beyond


@dataclass(frozen=True)
class Change:
    """How one column moved from A to B, over pairs.

    All but the counts, p and win_rate are in the column's own units.

    Attributes:
        n: pairs.
        prompts: clusters of pairs.
        before: mean of A.
        after: mean of B.
        std: of A over pictures (n - 1); NaN for one.
        delta: mean of B - A.
        ci_low: of the 95 % percentile bootstrap over prompts; NaN for one prompt.
        ci_high: likewise.
        p: two-sided, by flipping the sign of whole prompts; 1 for one prompt.
        win_rate: share of pairs with B > A, ties count half.
    """

    n: int
    prompts: int
    before: float
    after: float
    std: float
    delta: float
    ci_low: float
    ci_high: float
    p: float
    win_rate: float


def paired_change(
    before: Sequence[float],
    after: Sequence[float],
    prompts: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Change:
    """The change of paired scores (n,), where pairs of one prompt are not independent.

    Interval: prompts are drawn with replacement, each with all of its pairs; a resample's mean is
    the sum of differences over the number of pairs. p: the share of sign patterns over prompts
    whose total is at least as far from zero, of all 2^prompts patterns up to EXACT_PROMPTS, else
    (1 + hits) / (1 + resamples) of random ones. The result is a function of the arguments alone.

    Raises:
        ValueError: lengths that differ, no pair, a score that is not finite, or no resample.
    """
    old = np.asarray(before, np.float64)
    new = np.asarray(after, np.float64)
    if not len(old) == len(new) == len(prompts) > 0:
        raise ValueError(
            f"want equally many, not {len(old)} before, {len(new)} after, {len(prompts)} prompts"
        )
    if not (np.isfinite(old).all() and np.isfinite(new).all()) or resamples < 1:
        raise ValueError("want finite scores and at least one resample")

    # Sorted, so that the order of rows does not matter.
    number = {prompt: k for k, prompt in enumerate(sorted(set(prompts)))}
    cluster = [number[prompt] for prompt in prompts]
    difference = new - old
    sums: Floats = np.bincount(cluster, difference).astype(np.float64)
    counts = np.bincount(cluster)

    # Prompts and not pairs are resampled: pictures of one prompt rise and fall together.
    low, high = _bootstrap(sums, counts, resamples, seed)
    return Change(
        n=len(old),
        prompts=len(number),
        before=float(old.mean()),
        after=float(new.mean()),
        std=float(old.std(ddof=1)) if len(old) > 1 else math.nan,
        delta=float(difference.mean()),
        ci_low=low,
        ci_high=high,
        p=_sign_flip(sums, resamples, seed),
        win_rate=float(np.mean(difference > 0) + np.mean(difference == 0) / 2),
    )


def _bootstrap(
    sums: Floats, counts: NDArray[np.int64], resamples: int, seed: int
) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the mean; sums and counts are (prompts,)."""
    k = len(sums)
    if k == 1:
        return math.nan, math.nan
    rng = np.random.default_rng([seed, 0])
    means = []
    for rows in _blocks(resamples, k):
        # (rows, prompts): how often each prompt was drawn.
        times = rng.multinomial(k, np.full(k, 1 / k), size=rows)
        means.append((times @ sums) / (times @ counts))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _sign_flip(sums: Floats, resamples: int, seed: int) -> float:
    """The two-sided p of sums (prompts,) by random signs."""
    k = len(sums)
    # Rounding must not lose a tie.
    bar = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if k <= EXACT_PROMPTS:
        signs = np.array(list(product((-1.0, 1.0), repeat=k)))  # (2^k, k)
        return float(np.mean(np.abs(signs @ sums) >= bar))
    rng = np.random.default_rng([seed, 1])
    hits = 0
    for rows in _blocks(resamples, k):
        signs = 2.0 * rng.integers(0, 2, size=(rows, k)) - 1
        hits += int(np.sum(np.abs(signs @ sums) >= bar))
    return (1 + hits) / (1 + resamples)


def _blocks(resamples: int, width: int) -> Iterator[int]:
    """Rows to draw at a time, so that thousands of prompts stay within 16 MB."""
    # 2^21 float64 numbers are 16 MB.
    size = max(1, 2**21 // width)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
