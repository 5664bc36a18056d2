"""Verdicts: praise only where a column that was not optimised rose; warnings at once."""

import math
from dataclasses import replace
from itertools import product

import pytest

from align_gen.errors import UserError
from align_gen.galleries.comparison import Comparison
from align_gen.galleries.intervals import Change, paired_change
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.verdicts import LEAST_PROMPTS, fell, independent, rose, verdict

PLAIN = Change(
    n=40, prompts=20, before=0.0, after=0.0, std=1.0, delta=0.0, ci_low=-1.0, ci_high=1.0, p=0.5,
    win_rate=0.5,
)  # fmt: skip
UP = replace(PLAIN, ci_low=1.0, ci_high=2.0, p=0.001)
DOWN = replace(PLAIN, ci_low=-2.0, ci_high=-1.0, p=0.001)
FLAT = PLAIN
UNKNOWN = replace(PLAIN, ci_low=math.nan, ci_high=math.nan, p=1.0, prompts=1)
UNSURE = replace(UP, p=0.05)  # interval and p disagree
FEW_UP = replace(UP, prompts=LEAST_PROMPTS - 1)
FEW_DOWN = replace(DOWN, prompts=LEAST_PROMPTS - 1)


def said(optimised: Change | None, held_out: Change | None) -> str:
    columns = {"clip": optimised, "heldout": held_out}
    known = {name: change for name, change in columns.items() if change is not None}
    aims = ["clip"] if optimised else []
    return verdict(Comparison(known, {}, {}, (0, 0)), aims, ["heldout"] if held_out else [])


@pytest.mark.parametrize(
    ("optimised", "held_out", "says"),
    [
        (UP, UP, "improved"),
        (UP, FLAT, "not confirmed"),
        (UP, UNSURE, "not confirmed"),
        (UP, None, "unchecked"),
        (UP, DOWN, "reward hacking suspected"),
        (FLAT, DOWN, "worse"),
        (FLAT, UP, "improved"),
        (FLAT, FLAT, "no change"),
        (FLAT, None, "no change"),
        (DOWN, UP, "worse"),
        (DOWN, DOWN, "worse"),
        (DOWN, None, "worse"),
        (UNSURE, FLAT, "no change"),
        (UNSURE, None, "no change"),
        (None, UP, "improved"),
        (None, FLAT, "no change"),
        (None, DOWN, "worse"),
        (None, None, "too few prompts"),
        (UNKNOWN, UNKNOWN, "too few prompts"),
        (FEW_UP, FEW_UP, "too few prompts"),
        (FEW_UP, None, "too few prompts"),
        (FEW_DOWN, FEW_UP, "too few prompts"),
        (FEW_UP, FEW_DOWN, "reward hacking suspected"),
        (None, FEW_DOWN, "worse"),
    ],
)
def test_verdicts(optimised: Change | None, held_out: Change | None, says: str) -> None:
    assert said(optimised, held_out) == says


def test_praise_needs_a_column_that_was_not_optimised() -> None:
    """Of all combinations: improved exactly where the held-out column rose and the optimised one
    did not fall.
    """
    kinds = (UP, DOWN, FLAT, UNSURE, FEW_UP, UNKNOWN)
    for optimised, held_out in product((*kinds, None), repeat=2):
        praised = held_out is UP and optimised in (UP, FLAT, UNSURE, None)
        assert (said(optimised, held_out) == "improved") == praised


def test_what_shuffled_rewards_moved_is_no_improvement() -> None:
    """The demo's placebo, docs/results.md: +0.07 [0.01, 0.13] and +0.03 [-0.03, 0.09]."""
    reward = replace(PLAIN, prompts=80, delta=0.07, ci_low=0.01, ci_high=0.13, p=0.0235)
    held_out = replace(PLAIN, prompts=80, delta=0.03, ci_low=-0.03, ci_high=0.09, p=0.4071)
    assert said(reward, held_out) == "not confirmed"
    assert said(reward, None) == "unchecked"


def test_five_prompts_cannot_say_that_a_model_improved() -> None:
    """A collapsed model: each of 5 prompts rose, by 1 to 5. All signs agree, so p is 2 of 2^5
    patterns, and the interval is far above zero.
    """
    change = paired_change([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], list("abcde"))
    assert change.p == 2 / 2**5 and change.ci_low > 0
    assert said(change, None) == said(change, change) == "too few prompts"
    assert not rose(change) and not fell(change)


def test_a_column_that_is_optimised_checks_nothing() -> None:
    both = Comparison({"clip": UP}, {}, {}, (0, 0))
    assert verdict(both, ["clip"], ["clip"]) == "unchecked"


def test_an_optimised_reward_under_another_name_is_not_independent() -> None:
    """Equal weights and options are one reward; without a provenance the names are believed."""
    blue = {"weights_sha256": None, "options": {"hue": 240.0}}
    origins = {"blue": blue, "alias": dict(blue), "hue": {**blue, "options": {"hue": 0.0}}}
    for known, left in ((origins, ["hue", "new"]), ({}, ["alias", "hue", "new"])):
        scores = ScoresTable([], {}, [], known, {})
        assert independent(scores, ["alias", "hue", "new"], ["blue"]) == left


def test_one_fallen_column_of_several_is_enough() -> None:
    columns = Comparison({"a": UP, "b": DOWN}, {}, {}, (0, 0))
    assert verdict(columns, [], ["a", "b"]) == "worse"


def test_a_column_that_was_not_compared_is_named() -> None:
    with pytest.raises(UserError, match="column 'clip': not compared; want one of heldout"):
        verdict(Comparison({"heldout": UP}, {}, {}, (0, 0)), ["clip"], ["heldout"])
