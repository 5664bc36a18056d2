"""Losses of preference pairs against golden values, laws and the probabilities written out."""

import math

import pytest
import torch
from torch import Tensor

from align_gen.losses import bradley_terry, bradley_terry_ties, centring, preference_strength
from align_gen.losses.preference import FIRST, SECOND, TIE

DELTAS = torch.linspace(-6, 6, 41, dtype=torch.float64)


def probabilities(delta: float, theta: float) -> tuple[float, float, float]:
    """Rao-Kupper's, written out with a = e^delta and b = 1: first, tie, second."""
    a = math.exp(delta)
    first, second = a / (a + theta), 1 / (1 + theta * a)
    return first, (theta**2 - 1) * a / ((a + theta) * (1 + theta * a)), second


def ties(delta: float, label: int, theta: float = 5.0) -> float:
    return bradley_terry_ties(
        torch.tensor([delta], dtype=torch.float64), torch.tensor([label]), theta
    ).item()


# --- Bradley-Terry --------------------------------------------------------------------------------


def test_no_lead_costs_the_logarithm_of_two() -> None:
    assert bradley_terry(torch.zeros(3)).tolist() == pytest.approx([math.log(2)] * 3)


def test_the_loss_is_minus_the_log_probability_of_the_choice() -> None:
    """exp(-loss) of a pair and of the same pair swapped sum to 1."""
    torch.testing.assert_close(
        (-bradley_terry(DELTAS)).exp() + (-bradley_terry(-DELTAS)).exp(), torch.ones_like(DELTAS)
    )


def test_a_certain_mistake_is_finite() -> None:
    """-log sigmoid(-1000) = 1000."""
    assert bradley_terry(torch.tensor(-1000.0)).item() == pytest.approx(1000)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_smoothing_rests_at_the_log_odds_of_the_votes(p: float) -> None:
    """The gradient is sigmoid(delta) - (1 - p): zero where delta = log((1 - p) / p), which is 0 at
    p = 1/2.
    """
    delta = torch.tensor(math.log((1 - p) / p), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(bradley_terry(delta, label_smoothing=p), delta)
    assert gradient.item() == pytest.approx(0, abs=1e-12)


def test_smoothing_is_of_each_pair() -> None:
    p = torch.tensor([0.0, 0.25, 1.0])
    found = bradley_terry(torch.ones(3), label_smoothing=p)
    lead, lag = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert found.tolist() == pytest.approx([lead, 0.75 * lead + 0.25 * lag, lag])


def test_a_margin_asks_for_a_lead() -> None:
    """delta = mu costs log 2, as no lead does without a margin."""
    margin = torch.tensor([0.5, 2.0])
    assert bradley_terry(margin.clone(), margin=margin).tolist() == pytest.approx([math.log(2)] * 2)


def test_a_swapped_pair_with_a_swapped_label_costs_the_same() -> None:
    found = bradley_terry(DELTAS, label_smoothing=0.2, margin=0.7)
    torch.testing.assert_close(bradley_terry(-DELTAS, label_smoothing=0.8, margin=0.7), found)


# --- ties -----------------------------------------------------------------------------------------


def test_golden_values() -> None:
    """theta 5, delta 1.3: P = .42325, .05169 (second), .52506 (tie)."""
    assert ties(1.3, FIRST) == pytest.approx(0.85979, abs=5e-6)
    assert ties(1.3, TIE) == pytest.approx(0.64424, abs=5e-6)
    found = [math.exp(-ties(1.3, label)) for label in (FIRST, SECOND, TIE)]
    assert found == pytest.approx([0.42325, 0.05169, 0.52506], abs=5e-6)


def test_no_lead_is_a_tie_two_times_in_three() -> None:
    """theta 5, delta 0: P(first) = 1 / (1 + 5), the same for the second, 24 / 36 is left."""
    found = [math.exp(-ties(0.0, label)) for label in (FIRST, TIE, SECOND)]
    assert found == pytest.approx([1 / 6, 2 / 3, 1 / 6])


@pytest.mark.parametrize("theta", [1.5, 5.0, 20.0])
def test_equals_the_probabilities_written_out(theta: float) -> None:
    for delta in DELTAS.tolist():
        expected = probabilities(delta, theta)
        assert sum(expected) == pytest.approx(1)
        found = [math.exp(-ties(delta, label, theta)) for label in (FIRST, TIE, SECOND)]
        assert found == pytest.approx(expected, rel=1e-9)


def test_without_room_for_ties_it_is_bradley_terry() -> None:
    first = torch.full(DELTAS.shape, FIRST)
    torch.testing.assert_close(bradley_terry_ties(DELTAS, first, 1.0), bradley_terry(DELTAS))
    assert ties(0.3, TIE, 1.0) == math.inf


def test_pairs_that_nobody_could_judge_do_not_dilute_the_mean() -> None:
    """Three of five labels are none: the mean is that of the other two, and the three get no
    gradient.
    """
    delta = torch.tensor([1.3, 9.0, 1.3, -4.0, 2.0], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([FIRST, 22, TIE, 7, math.nan], dtype=torch.float64)
    found = bradley_terry_ties(delta, label)
    assert found.shape == (2,)
    assert found.mean().item() == pytest.approx((0.85979 + 0.64424) / 2, abs=5e-6)
    (gradient,) = torch.autograd.grad(found.mean(), delta)
    assert (gradient != 0).tolist() == [True, False, True, False, False]
    assert bool(gradient.isfinite().all())


def test_several_dimensions_are_judged_apart() -> None:
    """(P, D): one value a valid entry, row by row."""
    delta = torch.tensor([[1.3, 0.0], [0.0, 1.3]], dtype=torch.float64)
    label = torch.tensor([[FIRST, TIE], [9, TIE]])
    expected = [0.85979, math.log(1.5), 0.64424]
    assert bradley_terry_ties(delta, label).tolist() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("label", "theta", "pattern"),
    [
        (torch.zeros(2), 5.0, "of one shape"),
        (torch.zeros(3), 0.5, "theta: want a number from 1, got 0.5"),
    ],
)
def test_a_mistake_is_named(label: Tensor, theta: float, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        bradley_terry_ties(torch.zeros(3), label, theta)


# --- what raters agree on -------------------------------------------------------------------------


def test_strength_of_a_preference_by_hand() -> None:
    """.2, -.5, 1.1, .4: mean .3; squares of .1, .8, .8, .1 sum to 1.3, and sqrt(1.3 / 4) =
    .5701.
    """
    mean, std = preference_strength(
        torch.tensor([[0.2], [-0.5], [1.1], [0.4]], dtype=torch.float64)
    )
    assert mean.item() == pytest.approx(0.3) and std.item() == pytest.approx(0.5701, abs=5e-5)


def test_one_judge_never_disagrees() -> None:
    mean, std = preference_strength(torch.tensor([[0.2, -0.5]]))
    assert mean.tolist() == pytest.approx([0.2, -0.5]) and std.tolist() == [0, 0]


def test_centring_sees_the_offset_alone() -> None:
    """(1, -1) and (2, 0) lead by 2 alike; the second stands 1 too high: (2 + 0)^2 = 4."""
    assert centring(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])).tolist() == [0, 4]
