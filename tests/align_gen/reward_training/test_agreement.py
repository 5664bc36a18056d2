"""Accuracy, ties and calibration, by hand and against a search."""

import math

import pytest
import torch

from align_gen.reward_training.agreement import (
    accuracy,
    calibration_error,
    measure,
    tie_calibrated_accuracy,
    worse_than_base,
)

NAN = math.nan


def test_accuracy_by_hand() -> None:
    """Right, wrong, right (the second is better and leads), no lead: (1 + 0 + 1 + 1/2) / 4."""
    assert (
        accuracy(torch.tensor([2.0, -1.0, -3.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, 1.0])) == 0.625
    )
    assert accuracy(torch.tensor([]), torch.tensor([])) is None


def test_tie_calibration_by_hand() -> None:
    """|delta| .1 (tie), .2 (tie), .3 (right), .4 (tie), .9 (wrong), 1.5 (right).

    Threshold 0: 2 right of 6. .1: 3. .2: 4 of 6. .3: 3. .4: 2 ties and... (.1, .2, .4) = 3 and 1.5
    is right: 4. The smaller of the two that reach 4 / 6 is .2.
    """
    delta = torch.tensor([0.9, 0.1, -0.3, 0.2, 1.5, -0.4])
    label = torch.tensor([-1.0, 0.0, -1.0, 0.0, 1.0, 0.0])
    share, threshold = tie_calibrated_accuracy(delta, label)
    assert share == pytest.approx(4 / 6) and threshold == pytest.approx(0.2)


def test_tie_calibration_equals_a_search() -> None:
    """All thresholds tried one by one, also where many deltas are of one size."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        delta = (torch.randn(30, generator=g) * 3).round() / 3
        label = torch.randint(-1, 2, (30,), generator=g).float()
        reached = []
        for threshold in [-1.0, *delta.abs().unique().tolist()]:
            guess = torch.where(delta.abs() <= threshold, 0.0, delta.sign())
            # below all, a lead of nothing is no tie either, and right about nothing
            right = (guess == label) & ~((delta == 0) & (threshold < 0))
            reached.append(right.double().mean().item())
        assert tie_calibrated_accuracy(delta, label)[0] == pytest.approx(max(reached))


def test_without_ties_the_threshold_is_zero() -> None:
    share, threshold = tie_calibrated_accuracy(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0])
    )
    assert share == pytest.approx(2 / 3) and threshold == 0


def test_calibration_error_by_hand() -> None:
    """Four pairs at confidence .8, two of them right: |.5 - .8|. Two at .55, both right: |1 - .55|.

    (4 (.3) + 2 (.45)) / 6 = .35.
    """
    sure, hardly = math.log(0.8 / 0.2), math.log(0.55 / 0.45)
    lead = torch.tensor([sure, sure, -sure, -sure, hardly, hardly], dtype=torch.float64)
    assert calibration_error(lead) == pytest.approx(0.35)


def test_a_reward_that_knows_its_chances_is_calibrated() -> None:
    """Labels drawn from sigmoid(delta) themselves: an error of sampling noise; twice the deltas:
    overconfident.
    """
    g = torch.Generator().manual_seed(0)
    delta = torch.randn(20_000, generator=g, dtype=torch.float64) * 2
    lead = torch.where(torch.rand(20_000, generator=g) < delta.sigmoid(), delta, -delta)
    honest, bold = calibration_error(lead), calibration_error(3 * lead)
    assert honest is not None and bold is not None and honest < 0.015 and bold > 0.05


def test_measuring_leaves_out_what_nobody_knows() -> None:
    found = measure(torch.tensor([1.0, 5.0, -1.0]), torch.tensor([1.0, NAN, -1.0]))
    assert found["decided pairs"] == 2 and found["accuracy"] == 1
    assert measure(torch.tensor([1.0]), torch.tensor([9.0]))["accuracy with ties"] is None


def test_a_dimension_that_fell_below_its_base_is_named() -> None:
    """Of three dimensions one fell, one rose and one has no pair: one sentence."""
    base = {"a": {"accuracy": 0.75}, "b": {"accuracy": 0.5}, "c": {"accuracy": None}}
    trained = {
        "a": {"accuracy": 0.5, "decided pairs": 12},
        "b": {"accuracy": 0.625, "decided pairs": 8},
        "c": {"accuracy": None, "decided pairs": 0},
    }
    assert worse_than_base({"base": base, "trained": trained}) == [
        "a: worse than its base: right on 50.0% of 12 held-out pairs, the base on 75.0%"
    ]
    equal = {"a": {"accuracy": 0.75, "decided pairs": 12}}
    assert worse_than_base({"base": base, "trained": equal}) == []
