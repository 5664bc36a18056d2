"""Rules from many scores to one: golden values, laws, and what a wrong setting is told."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.reward_heads import reward_set
from align_gen.reward_heads.combine import Combination, Rule, Scale, aggregate, within_groups

HEADS = torch.tensor(
    [[1, 2, 0], [1.5, -1, 0], [0.5, 0.5, 0.5], [1.2, 0.4, -3]]
)  # four heads, three samples
NAMES = ("a", "b", "c", "d")
PROMPTS = ["p", "p", "q"]


def scores(values: Tensor = HEADS) -> dict[str, Tensor]:
    return dict(zip(NAMES, values, strict=False))


def combination(**options: Any) -> Combination:
    return Combination(dict.fromkeys(NAMES, 1.0), **options)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [4.2, 1.9, -2.5]),
        ("mean", [1.05, 0.475, -0.625]),
        ("median", [1.1, 0.45, 0.0]),
        ("min", [0.5, -1.0, -3.0]),
        ("mean_minus_std", [0.6860, -0.5865, -2.0113]),
    ],
)
def test_golden_values(rule: Rule, expected: list[float]) -> None:
    """Of the first sample: mean (1 + 1.5 + .5 + 1.2)/4 = 1.05; deviations -.05 .45 -.55 .15, so std
    sqrt(.5300/4).
    """
    torch.testing.assert_close(aggregate(HEADS, rule), torch.tensor(expected), rtol=0, atol=5e-5)
    torch.testing.assert_close(
        combination(rule=rule)(scores(), PROMPTS), torch.tensor(expected), rtol=0, atol=5e-5
    )


def test_a_soft_minimum_lies_between_minimum_and_mean() -> None:
    """-T log mean exp(-r/T) goes to the minimum (+ T log H at most) as T falls, to the mean as it
    grows.
    """
    low, high = HEADS.amin(0), HEADS.mean(0)
    for temperature in (0.05, 1.0, 20.0):
        soft = aggregate(HEADS, "soft_min", temperature=temperature)
        assert (soft >= low - 1e-6).all() and (soft <= high + 1e-6).all()
        assert (soft <= low + temperature * math.log(4) + 1e-6).all()
    torch.testing.assert_close(
        aggregate(HEADS, "soft_min", temperature=1e4), high, rtol=0, atol=1e-2
    )
    by_hand = -math.log((math.exp(-1) + math.exp(-1.5) + math.exp(-0.5) + math.exp(-1.2)) / 4)
    assert aggregate(HEADS, "soft_min")[0].item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("rule", ["sum", "mean", "median", "min", "mean_minus_std", "soft_min"])
def test_one_member_is_itself(rule: Rule) -> None:
    torch.testing.assert_close(
        aggregate(HEADS[:1], rule, temperature=0.3), HEADS[0], rtol=0, atol=1e-6
    )


def test_a_weighted_mean_does_not_depend_on_the_size_of_the_weights() -> None:
    """(1 r_a + 3 r_b)/4 however they are scaled; of the first sample (1 + 4.5)/4."""
    for factor in (1.0, 10.0):
        rule = Combination({"a": factor, "b": 3 * factor}, "mean")
        found = rule({"a": HEADS[0], "b": HEADS[1]}, PROMPTS)
        torch.testing.assert_close(found, torch.tensor([1.375, -0.25, 0.0]))


def test_calibration_takes_off_each_prompts_mean_and_one_deviation() -> None:
    """p: 1, 3 (mean 2), q: 10, 14 (mean 12): centred -1 1 -2 2, so std sqrt(10/4); an unknown
    prompt has mean 7.
    """
    scale = Scale.of([1, 3, 10, 14], ["p", "p", "q", "q"])
    assert scale.mean == 7.0 and scale.std == pytest.approx(math.sqrt(2.5))
    found = scale(torch.tensor([3.0, 12.0, 7.0]), ["p", "q", "new"])
    torch.testing.assert_close(found, torch.tensor([1 / math.sqrt(2.5), 0.0, 0.0]))


def test_calibrated_rules_do_not_see_offsets_of_prompts_or_scales() -> None:
    """r and 7 r + f(prompt) are the same reward: the same combination, under any rule."""
    reference = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    prompts = ["p", "q"] * 20
    offset = torch.tensor([5.0, -3.0] * 20)
    values = [reference, torch.stack([reference[0], 7 * reference[1] + offset, *reference[2:]])]
    found = []
    for each in values:
        scales = {
            name: Scale.of(row.tolist(), prompts) for name, row in zip(NAMES, each, strict=True)
        }
        found.append(combination(rule="min", scales=scales)(scores(each), prompts))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_reference_without_differences_is_no_scale() -> None:
    with pytest.raises(ValueError, match="do not differ within any prompt"):
        Scale.of([1, 2], ["p", "q"])


def test_within_a_prompt_heads_of_any_spread_count_alike() -> None:
    """p: 1, 3 -> -1, 1; q alone -> 0. A head times 100, plus 5, does the same as before."""
    torch.testing.assert_close(
        within_groups(torch.tensor([1.0, 3.0, 8.0]), PROMPTS), torch.tensor([-1.0, 1.0, 0.0])
    )
    small, large = torch.tensor([0.0, 0.01, 1.0]), torch.tensor([50.0, -50.0, 3.0])
    plain = Combination({"a": 1.0, "b": 1.0})({"a": small, "b": large}, PROMPTS)
    assert plain[0] > plain[1]  # the small one starves
    grouped = Combination({"a": 2.0, "b": 1.0}, normalise="group")
    assert grouped({"a": small, "b": large}, PROMPTS)[1] > 0  # its weight decides
    torch.testing.assert_close(
        grouped({"a": small, "b": large}, PROMPTS),
        grouped({"a": 100 * small + 5, "b": large}, PROMPTS),
    )


def test_to_pass_a_gate_is_never_worse() -> None:
    """Gate a >= 1: others count 0 where it is missed, and at least 0 where it is passed."""
    rule = Combination({"a": 0.5, "b": 1.0}, gates={"a": 1.0})
    found = rule({"a": torch.tensor([1.0, 0.9, 1.0]), "b": torch.tensor([2.0, 2.0, -4.0])}, PROMPTS)
    torch.testing.assert_close(found, torch.tensor([2.5, 0.45, 0.5]))


def test_a_gate_looks_at_the_head_as_it_scored() -> None:
    """Not at the calibrated score, which is 0 at the mean."""
    scales = {"a": Scale({}, 10.0, 2.0), "b": Scale({}, 0.0, 1.0)}
    rule = Combination({"a": 0.0, "b": 1.0}, gates={"a": 9.0}, scales=scales)
    torch.testing.assert_close(
        rule({"a": torch.tensor([9.5]), "b": torch.tensor([2.0])}, ["p"]), torch.tensor([2.0])
    )


def test_gradients_flow_through_every_rule() -> None:
    for rule in ("sum", "mean", "median", "min", "mean_minus_std", "soft_min"):
        values = HEADS.clone().requires_grad_()
        combination(rule=rule, normalise="group")(scores(values), ["p", "p", "p"]).sum().backward()
        assert values.grad is not None and values.grad.isfinite().all()


def test_uncertainty_of_a_sum_adds_in_squares_and_of_an_ensemble_is_its_disagreement() -> None:
    spreads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    values = {"a": torch.tensor([1.0]), "b": torch.tensor([5.0])}
    assert Combination({"a": 1.0, "b": 1.0}).spread(values, spreads, ["p"]) == torch.tensor([5.0])
    assert Combination({"a": 1.0, "b": -2.0}).spread(
        values, {"b": spreads["b"]}, ["p"]
    ) == torch.tensor([8.0])
    assert Combination({"a": 1.0, "b": 1.0}, "mean").spread(values, spreads, ["p"]) == torch.tensor(
        [2.5]
    )
    assert Combination({"a": 1.0, "b": 1.0}, "min").spread(values, {}, ["p"]) == torch.tensor([2.0])
    assert Combination({"a": 1.0, "b": 1.0}).spread(values, {}, ["p"]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "max"}, "combine.rule: want one of"),
        ({"temperature": 0.0}, "combine.temperature"),
        ({"gates": {"z": 1.0}}, "combine.gates: no reward 'z'; have"),
        ({"gates": dict.fromkeys(NAMES, 0.0)}, "every reward is a gate"),
        ({"scales": {"a": Scale({}, 0, 1)}}, "the reference has no scores of 'b'"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combination(**options)


def test_ensemble_rules_want_weights_of_one() -> None:
    with pytest.raises(ValueError, match="median takes each reward alike"):
        Combination({"a": 1.0, "b": 2.0}, "median")


def test_a_set_combines_as_it_is_told() -> None:
    rewards = reward_set(
        {"low": {"name": lambda m, p: [1.0, 5.0]}, "high": {"name": lambda m, p: [3.0, 2.0]}}
    )
    lowest = rewards.with_combination(Combination(rewards.weights, "min"))
    assert rewards.combination is None
    found = lowest(torch.zeros(2, 3, 4, 4), ["p", "q"])
    assert found.combined.tolist() == [1.0, 2.0] and found.uncertainty is not None
    assert found.uncertainty.tolist() == [1.0, 1.5]
