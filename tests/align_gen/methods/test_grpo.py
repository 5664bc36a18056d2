"""GRPO: its gradient against autograd, the price on leaving the reference, the window, and where it
comes to rest.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from align_gen.losses import advantages, gaussian_kl
from align_gen.methods import grpo
from align_gen.methods.batches import Prompts, Sampling
from align_gen.pipelines import FlowSDE, rollout
from align_gen.pipelines.sampling import step_log_prob
from align_gen.pipelines.seeding import generator
from tests.kits import methods as kit
from tests.kits.methods import (
    GROUP,
    MIXTURE,
    TEXTS,
    closed_form,
    cost,
    first_coordinate,
    flat,
    moved,
    require,
    state_of,
    step_of,
    toy,
)

options_of = partial(grpo.Options, images_per_prompt=GROUP, prompts_per_step=2)
take = partial(kit.take, "grpo", images_per_prompt=GROUP, prompts_per_step=2, clip=1e-3)


# --- the parts ------------------------------------------------------------------------------------


def test_the_advantages_of_a_group_add_up_to_zero() -> None:
    """In both units; divided by the step's deviation, groups keep their sizes: 1, 3 and 1, 1.2 by 1
    each, 0.1 each.
    """
    rewards = torch.tensor([1.0, 3.0, 1.0, 1.2, 0.7, 0.7])
    for std in (None, torch.tensor(1.0)):
        found = advantages(rewards, 2, 5.0, std).view(-1, 2)
        torch.testing.assert_close(found.sum(1), torch.zeros(3), rtol=0, atol=1e-6)
    assert found.flatten().tolist() == pytest.approx([-1, 1, -0.1, 0.1, 0, 0], abs=1e-6)
    assert advantages(rewards, 2, 5.0).tolist() == pytest.approx([-1, 1, -1, 1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_divergence_of_gaussians_of_one_width(reduction: Any) -> None:
    """torch.distributions knows it, and its gradient; at the reference both are 0. Widths differ by
    sample.
    """
    g = torch.Generator().manual_seed(0)
    mean, reference = (torch.randn(3, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    std, mean = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64), mean.requires_grad_()
    wide = std[:, None].expand(3, 4)
    known = kl_divergence(
        Independent(Normal(mean.flatten(1), wide), 1),
        Independent(Normal(reference.flatten(1), wide), 1),
    ) / (4 if reduction == "mean" else 1)
    found = gaussian_kl(mean, reference, std, reduction)
    torch.testing.assert_close(found, known)
    (a,), (b,) = (torch.autograd.grad(value.sum(), mean) for value in (found, known))
    torch.testing.assert_close(a, b)
    at_reference = gaussian_kl(mean, mean.detach(), std, reduction)
    assert not at_reference.any() and not torch.autograd.grad(at_reference.sum(), mean)[0].any()


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
@pytest.mark.parametrize(
    ("micro_batch", "std", "reduction"),
    [(100, "group", "mean"), (5, "step", "mean"), (5, "group", "sum")],
)
def test_the_gradient_at_theta_old(name: str, micro_batch: int, std: str, reduction: Any) -> None:
    """Of mean(-A log pi) + kl mean(KL), by autograd with the graph of all steps alive, to 1e-6 of
    the largest.

    KL by torch.distributions, away from the reference; the ratio of the first gradient step is 1.
    """
    options: dict[str, Any] = {"std": std, "kl": 0.3, "log_prob": reduction}
    metrics, (found,) = take(moved(name), micro_batch=micro_batch, **options)
    model, start, settings = moved(name), toy(name, **MIXTURE), {"eta": 1.0, "guidance_scale": 5.0}
    condition = model.encode_prompts(TEXTS).repeat(GROUP)
    generators = [generator(0, "rollout", 0, f"{i}/{j}") for i in range(2) for j in range(GROUP)]
    drawn = rollout(model, condition, num_inference_steps=4, generator=generators)
    reward = first_coordinate(drawn.final, ()).view(2, GROUP)
    width = (
        reward.std(1, correction=0, keepdim=True) if std == "group" else reward.std(correction=0)
    )
    advantage = ((reward - reward.mean(1, keepdim=True)) / width).flatten()
    terms = []
    divergences = []
    for i in drawn.stochastic.tolist():
        log_prob = step_log_prob(model, drawn, i, condition, **settings, reduction=reduction)  # type: ignore[arg-type]
        x, (t, s) = drawn.latents[:, i], drawn.times[i]
        ours, theirs = (
            m.process.transition(x, m.predict(x, t, condition, 5.0), t, s, 1.0)[0]
            for m in (model, start)
        )
        noise = float(model.process.std(t, s, 1.0))
        divergence = kl_divergence(Normal(ours, noise), Normal(theirs.detach(), noise)).flatten(1)
        divergences.append(divergence.mean(1) if reduction == "mean" else divergence.sum(1))
        terms.append(-advantage * log_prob + 0.3 * divergences[-1])
    (expected,) = torch.autograd.grad(torch.stack(terms, 1).mean(), model.parameters())
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["clip_fraction"] == 0 and metrics["log_prob_change"] < 2e-6
    assert metrics["kl"] == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(
        0.3 * metrics["kl"], abs=1e-6
    )  # advantages of a group add up to 0


def test_at_the_reference_the_divergence_changes_nothing() -> None:
    """It is 0 and its gradient is, so the step is the one without it; after an update it is
    felt.
    """
    (plain, first), (priced, second) = (
        take(toy(**MIXTURE), kl=kl, gradient_steps=2, lr=0.5) for kl in (0.0, 50.0)
    )
    assert torch.equal(first[0], second[0]) and "kl" not in plain
    assert not torch.equal(first[1], second[1]) and priced["kl"] > 0
    assert take(toy(**MIXTURE), kl=50.0)[0]["kl"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2])
def test_a_window_is_all_that_is_learned_from(window: int) -> None:
    """Of the toy's shifts, one a time, those of the window's times get a gradient and no others;
    over rounds, all do.

    Four steps, of which the last has no density, leave three, and 4 - window steps to start from.
    What a step teaches is what it teaches among all three, in a mean over fewer.
    """
    learned = toy().times(4, (1, 1, 1))[:3, 0].long().tolist()
    starts = set()
    for step in range(12):
        (_, (gradient,)), (_, (whole,)) = (take(toy(), window=w, step=step) for w in (window, None))
        rows = gradient.flatten().nonzero().flatten().tolist()
        steps = sorted(learned.index(row) for row in rows)
        assert steps == list(range(steps[0], steps[0] + window))
        starts.add(steps[0])
        torch.testing.assert_close(gradient[rows], whole[rows] * 3 / window)
    assert starts == set(range(4 - window))


def test_a_window_as_wide_as_all_is_none() -> None:
    whole, wide, wider = (take(toy(**MIXTURE), window=window) for window in (None, 3, 4))
    assert whole[0] == wide[0] == wider[0]
    assert torch.equal(whole[1][0], wide[1][0])


def test_the_clip_binds_from_the_second_gradient_step_on() -> None:
    """After a large step some ratios have left their range; with a wide clip none has, and the
    gradient is another.
    """
    narrow, wide = (take(toy(), lr=1.0, gradient_steps=2, clip=clip) for clip in (1e-3, 10.0))
    assert 0 < narrow[0]["clip_fraction"] <= 1 and wide[0]["clip_fraction"] == 0
    (_, (first, second)), (_, (same, other)) = narrow, wide
    assert torch.equal(first, same) and not torch.equal(second, other)


def test_prompts_that_tie_are_pulled_back_to_the_reference() -> None:
    """Without kl, a step of ties alone is no update; with kl it is a pull back."""
    _, (gradient,) = take(moved("toy-flow"), flat, kl=0.1)
    shift = moved("toy-flow").parameters()[0].detach()
    felt = gradient != 0
    assert felt.any() and (gradient[felt].sign() == shift[felt].sign()).all()


# --- where it comes to rest -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "a"), [("toy-diffusion", None), ("toy-flow", 0.7)])
def test_it_comes_to_rest_where_the_reward_is_worth_its_price(name: str, a: float | None) -> None:
    """N(0, 1), r = x, kl = 2: the mean moves by b V / (kl s), within .03, where V = Var(x0 | x_T),
    s^2 = Var(x0).

    A shift of step t's mean by d moves E[x0] by G d (G: the slopes of later means, multiplied) and
    costs kl d^2 / (2 v), v the step's variance, wherever it is taken. The advantage is r / s, so d
    = b v G / (kl s), and the mean moves by the sum of G d = b V / (kl s). E[A score] is short of
    Cov(r, score) / s by b = E[std of a group] / s = sqrt(2 / n) gamma(n / 2) / gamma((n - 1) / 2).
    DDPO is the case kl = 0, and never comes to rest.
    """
    model = toy(name)
    steps, rounds, kl, n = 10, 30, 2.0, 512
    if a is not None:
        model.process = FlowSDE(a)
    condition = model.encode_prompts(["a"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.95))
    state = state_of(model, optimizer, micro_batch=8192)
    options = grpo.Options(
        images_per_prompt=n, kl=kl, log_prob="sum", clip=1e6, advantage_limit=1e6
    )
    for state.step in range(rounds):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - state.step / rounds)
        batch = Prompts(["a"], condition, [state.step])
        step_of(state, batch, options, first_coordinate, Sampling(num_inference_steps=steps))

    def drawn(count: int) -> Tensor:
        many = model.encode_prompts(["a"] * count)
        return rollout(
            model, many, num_inference_steps=steps, generator=torch.Generator().manual_seed(5)
        ).final

    with model.as_reference():
        reference, spread = drawn(4), drawn(20_000).std().item()
    b = math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    expected = b * closed_form(model, steps, slope=1.0, beta=kl * spread)
    assert expected > 0.25
    assert (drawn(4) - reference).mean().item() == pytest.approx(expected, abs=0.03)


# --- options --------------------------------------------------------------------------------------


def test_the_table_of_calls() -> None:
    """2 prompts x 6 images, 4 steps, guidance: 96 rows to draw; a window of 1 is 24 rows a gradient
    step, or twice.
    """
    sampling = Sampling(num_inference_steps=4)
    plain, windowed, priced = (
        cost(options_of(gradient_steps=2, **more), sampling, 2)
        for more in ({}, {"window": 1}, {"window": 1, "kl": 0.1})
    )
    assert plain == {"forwards": 96 * 3, "backwards": 96 * 2, "images": 12}
    assert windowed == {"forwards": 96 + 24 * 2, "backwards": 24 * 2, "images": 12}
    assert priced == {"forwards": 96 + 24 * 4, "backwards": 24 * 2, "images": 12}


def test_what_cannot_learn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling\.eta"):
        require(grpo.Options(), Sampling(eta=0.0))
    with pytest.raises(
        ValueError, match=r"method\.window: 9 is more than sampling\.num_inference_steps, 8"
    ):
        require(grpo.Options(window=9), Sampling(num_inference_steps=8))
    require(grpo.Options(window=8), Sampling(num_inference_steps=8))
