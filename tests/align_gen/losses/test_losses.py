"""Losses against arithmetic and laws: RDP and the coefficients that replace one big backward,
clipped gradients.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.losses import advantages, clipped_policy_gradient, rdp_coefficients, rdp_loss


def golden() -> dict[str, Any]:
    return {
        "log_probs": torch.tensor(
            [[-1.0, -1.1], [-1.02, -1.05], [-0.98, -1.2]], dtype=torch.float64
        ),
        "log_probs_old": torch.tensor(
            [[-1.01, -1.1], [-1.0, -1.1], [-1.0, -1.15]], dtype=torch.float64
        ),
        "log_probs_ref": torch.tensor(
            [[-1.05, -1.12], [-1.04, -1.08], [-1.0, -1.18]], dtype=torch.float64
        ),
        "rewards": torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64),
        "beta": 10.0,
        "clip": 0.01,
    }


def random_case(seed: int, samples: int = 5, steps: int = 4) -> dict[str, Any]:
    """Log-ratios that move by up to 3 clips and gaps of their size, so that every branch occurs."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    reference = draw(samples, steps)
    old = reference + 0.01 * draw(samples, steps)
    moved = old + 0.01 * draw(samples, steps)
    return {
        "log_probs": moved,
        "log_probs_old": old,
        "log_probs_ref": reference,
        "rewards": (0.02 * draw(samples) * 100).round() / 100,  # rounded: some tie
        "beta": 2.0,
        "clip": 0.007,
    }


def by_hand(case: dict[str, Any]) -> list[float]:
    """Equations 14-21 of the paper with plain numbers, one pair at a time, winners in order."""
    new, old, ref = (case[key].tolist() for key in ("log_probs", "log_probs_old", "log_probs_ref"))
    rewards, clip, losses = case["rewards"].tolist(), case["clip"], []

    def score(i: int, clipped: bool) -> float:
        total = 0.0
        for n, o, r in zip(new[i], old[i], ref[i], strict=True):
            ratio = n - r
            total += min(max(ratio, o - r - clip), o - r + clip) if clipped else ratio
        return total / len(new[i])

    for i, j in itertools.product(range(len(rewards)), repeat=2):
        if rewards[i] > rewards[j]:
            target = (rewards[i] - rewards[j]) / case["beta"]
            losses.append(max((score(i, c) - score(j, c) - target) ** 2 for c in (False, True)))
    return losses


def test_golden_value() -> None:
    """Mean log-ratios .035, .025, 0; clipped .035, .010, .015. Pairs (0,1), (0,2), (2,1) with
    targets .02, .01, .01:

    u = .010-.02, .035-.01, -.025-.01 = -.010, .025, -.035; v = .025-.02, .020-.01, .005-.01 = .005,
    .010, -.005; so max(u^2, v^2) = 1e-4, 6.25e-4, 12.25e-4, with mean 19.5e-4 / 3 = 6.5e-4.
    """
    loss = rdp_loss(**golden())
    torch.testing.assert_close(
        loss, torch.tensor([1e-4, 6.25e-4, 12.25e-4], dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert loss.mean().item() == pytest.approx(6.5e-4, rel=1e-9)


def test_golden_value_in_single_precision() -> None:
    """Same arithmetic in the engine's own dtype."""
    case: dict[str, Any] = {
        k: v.float() if isinstance(v, Tensor) else v for k, v in golden().items()
    }
    assert rdp_loss(**case).mean().item() == pytest.approx(6.5e-4, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_formula_written_out(seed: int) -> None:
    case = random_case(seed)
    torch.testing.assert_close(rdp_loss(**case).tolist(), by_hand(case), rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize(
    ("rewards", "pairs"),
    [([1.0, 2.0, 3.0], 3), ([1.0, 1.0, 3.0], 2), ([1.0, 1.0, 1.0], 0)],
    ids=["all differ", "one tie", "all tie"],
)
def test_one_value_a_pair_with_a_gap(rewards: list[float], pairs: int) -> None:
    """3 samples are 3 unordered pairs; each tie removes one."""
    case = golden() | {"rewards": torch.tensor(rewards, dtype=torch.float64)}
    assert rdp_loss(**case).shape == (pairs,)
    assert bool(rdp_coefficients(**case).isfinite().all())
    assert bool(rdp_coefficients(**case).any()) == (pairs > 0)


def test_one_sample_is_no_pair() -> None:
    case: dict[str, Any] = {k: v[:1] if isinstance(v, Tensor) else v for k, v in golden().items()}
    assert rdp_loss(**case).shape == (0,)
    assert rdp_coefficients(**case).tolist() == [[0.0, 0.0]]


def test_before_learning_the_loss_is_the_squared_target() -> None:
    """theta = old = ref: all log-ratios are 0, each pair has ((r_i - r_j) / beta)^2: (.02, .01,
    .01)^2, mean 2e-4.
    """
    case = golden()
    case |= {"log_probs": case["log_probs_ref"], "log_probs_old": case["log_probs_ref"]}
    assert rdp_loss(**case).mean().item() == pytest.approx((4e-4 + 1e-4 + 1e-4) / 3, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_constant_added_to_the_rewards_changes_nothing(seed: int) -> None:
    case = random_case(seed)
    shifted = case | {"rewards": case["rewards"] + 8.0}
    torch.testing.assert_close(rdp_loss(**shifted), rdp_loss(**case), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        rdp_coefficients(**shifted), rdp_coefficients(**case), rtol=0, atol=1e-14
    )


def test_zero_at_the_tilted_optimum_of_three_categories() -> None:
    """ref = (.5, .3, .2), r = (0, 1, 2), beta = 1: pi* ~ ref exp(r) = (.1790, .2919, .5291), log
    pi*/ref = r + c.
    """
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    optimum = reference * rewards.exp() / (reference * rewards.exp()).sum()
    torch.testing.assert_close(
        optimum, torch.tensor([0.1790, 0.2919, 0.5291], dtype=torch.float64), rtol=0, atol=5e-5
    )
    at = optimum.log()[:, None]
    case: dict[str, Any] = {
        "log_probs_old": at,
        "log_probs_ref": reference.log()[:, None],
        "rewards": rewards,
    }
    assert rdp_loss(at, **case, beta=1.0, clip=1e-3).max() < 1e-12
    beside = rdp_loss(reference.log()[:, None], **case, beta=1.0, clip=1e-3)
    assert beside.min() > 0.5  # gaps of 1 and 2, not yet learned


def gradient(case: dict[str, Any]) -> Tensor:
    log_probs = case["log_probs"].clone().requires_grad_()
    rdp_loss(**case | {"log_probs": log_probs}).mean().backward()
    assert log_probs.grad is not None
    return log_probs.grad


def pair_at(winner: float, loser: float) -> dict[str, Any]:
    """One pair that started at log-ratio 0, target 1, clip .1, two steps each."""
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    return {
        "log_probs": torch.tensor([[winner] * 2, [loser] * 2], dtype=torch.float64),
        "log_probs_old": zeros,
        "log_probs_ref": zeros,
        "rewards": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "beta": 1.0,
        "clip": 0.1,
    }


def test_no_gradient_where_the_clipped_branch_is_the_maximum_and_flat() -> None:
    """At (.45, -.45): u = .9 - 1 = -.1, v = .2 - 1 = -.8: the clip decides and every step is
    outside. Exactly 0.
    """
    case = pair_at(0.45, -0.45)
    assert rdp_loss(**case).item() == pytest.approx(0.64)
    assert gradient(case).eq(0).all() and rdp_coefficients(**case).eq(0).all()


def test_every_step_learns_where_the_unclipped_branch_is_the_maximum() -> None:
    """At (-.45, .45): u = -1.9, v = -1.2. Every step, though outside, gets 2 u / S = +-1.9."""
    case = pair_at(-0.45, 0.45)
    assert rdp_loss(**case).item() == pytest.approx(1.9**2)
    expected = torch.tensor([[-1.9, -1.9], [1.9, 1.9]], dtype=torch.float64)
    torch.testing.assert_close(gradient(case), expected)
    torch.testing.assert_close(rdp_coefficients(**case), expected)


def test_a_step_inside_its_range_still_learns_in_the_clipped_branch() -> None:
    """Winner (.45, .05), loser (-.45, -.05): u = .5 - 1, v = .15 - 1 = -.85; inner steps get 2 v /
    S = -.85.
    """
    case = pair_at(0, 0) | {
        "log_probs": torch.tensor([[0.45, 0.05], [-0.45, -0.05]], dtype=torch.float64)
    }
    expected = torch.tensor([[0, -0.85], [0, 0.85]], dtype=torch.float64)
    torch.testing.assert_close(gradient(case), expected)
    torch.testing.assert_close(rdp_coefficients(**case), expected)


def test_coefficients_equal_autograd() -> None:
    """To 1e-10 over random cases, among which both branches decide and steps lie on both sides of
    the clip.
    """
    decided = {"clipped": 0, "free": 0, "outside": 0, "inside": 0}
    for seed in range(40):
        case = random_case(seed)
        expected, found = gradient(case), rdp_coefficients(**case)
        assert (expected - found).abs().max() <= 1e-10 * expected.abs().max()
        unclipped = rdp_loss(**case | {"clip": 1e9})
        decided["clipped"] += int((rdp_loss(**case) > unclipped).sum())
        decided["free"] += int((rdp_loss(**case) == unclipped).sum())
        outside = (case["log_probs"] - case["log_probs_old"]).abs() > case["clip"]
        decided["outside"] += int(outside.sum())
        decided["inside"] += int((~outside).sum())
    assert min(decided.values()) > 50, decided


def test_gradient_flows_through_the_trained_policy_alone() -> None:
    case = random_case(0)
    keys = ("log_probs", "log_probs_old", "log_probs_ref", "rewards")
    leaves = {key: case[key].clone().requires_grad_() for key in keys}
    rdp_loss(**case | leaves).sum().backward()
    assert [leaves[key].grad is not None for key in keys] == [True, False, False, False]


@pytest.mark.parametrize(
    "broken", [{"log_probs": torch.zeros(3)}, {"rewards": torch.zeros(4)}], ids=["steps", "rewards"]
)
def test_wrong_shapes_are_named(broken: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"want log_probs \(B, S\) and rewards \(B,\)"):
        rdp_loss(**golden() | broken)


# --- clipped policy gradients ---------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """1, 2, 3, 2: mean 2, variance (1 + 0 + 1 + 0) / 4 = 1/2, so -sqrt 2, 0, sqrt 2, 0. Ties
    are 0.
    """
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0] + 4 * [0.1 + 0.2])
    root = 2**0.5
    assert advantages(rewards, 4, 5.0).tolist() == pytest.approx([-root, 0, root, 0, 0, 0, 0, 0])
    assert advantages(rewards, 4, 1.0).tolist() == [-1, 0, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="multiple of 3"):
        advantages(rewards, 3, 5.0)


def test_advantages_do_not_see_a_prompts_scale_or_offset() -> None:
    """Another unit and another zero of the reward, prompt by prompt, teach the same."""
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = torch.cat([3 * rewards[:4] + 1, 0.1 * rewards[4:8], rewards[8:] - 7])
    assert torch.allclose(advantages(moved, 4, 5.0), advantages(rewards, 4, 5.0))


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"),
    [
        (2.0, 1.0, -2.0), (2.0, 1.05, -2.0 * 1.05), (2.0, 0.5, -2.0 * 0.5), (2.0, 1.2, 0.0),
        (-2.0, 1.0, 2.0), (-2.0, 0.95, 2.0 * 0.95), (-2.0, 1.5, 2.0 * 1.5), (-2.0, 0.8, 0.0),
        (0.0, 1.5, 0.0),
    ],
)  # fmt: skip
def test_the_gradient_stops_on_the_side_it_pushes_to(
    advantage: float, ratio: float, gradient: float
) -> None:
    """clip .1: zero beyond 1.1 for A > 0 and below .9 for A < 0, -A rho everywhere else (d rho / d
    log pi = rho).
    """
    log_prob = torch.tensor(ratio).log().requires_grad_()
    loss = clipped_policy_gradient(log_prob, torch.tensor(0.0), torch.tensor(advantage), 0.1)
    (found,) = torch.autograd.grad(loss, log_prob)
    assert found.item() == pytest.approx(gradient, rel=1e-5)
    assert loss.item() == pytest.approx(
        max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.1)), rel=1e-5
    )
