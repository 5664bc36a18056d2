"""RAFT: who is kept, plain denoising of them, how far one round moves, and the prior that holds
outputs in place.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen.losses import choice_probabilities
from align_gen.methods import raft
from align_gen.methods.batches import Media
from align_gen.methods.denoising import draw_noise, draw_times
from align_gen.pipelines import Model
from tests.kits import methods as kit
from tests.kits.fitting import (
    Averaging,
    distance_moved,
    fitted_mean,
    fitted_shifts,
    sample_std,
    short,
)
from tests.kits.methods import (
    GROUP,
    MIXTURE,
    SAMPLING,
    STEPS,
    cost,
    first_coordinate,
    flat,
    moved,
    prompts_of,
    state_of,
    step_of,
    toy,
)

TEXTS = ("a", "b", "c")
take = partial(kit.take, "raft", texts=TEXTS, images_per_prompt=GROUP, gradient_steps=1)


# --- who is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "chance"), [(1, 0.5), (2, 0.625), (4, 0.69375), (8, 0.72423)])
def test_curation_of_two_atoms(images: int, chance: float) -> None:
    """Rewards 0 and ln 3 with even odds: over all 2^K draws, the mean chance that the kept one has
    ln 3.

    K = 2: both 1/4, one 1/2 with 3/4, none 1/4: 1/4 + 3/8 = .625. Without end it would be 3 / (1 +
    3) = .75.
    """
    draws = torch.tensor(
        list(itertools.product([0.0, math.log(3)], repeat=images)), dtype=torch.float64
    )
    chances = choice_probabilities(draws.flatten(), images, 1.0).view_as(draws)
    assert (chances * (draws > 0)).sum(1).mean().item() == pytest.approx(chance, abs=5e-6)
    torch.testing.assert_close(chances.sum(1), torch.ones(len(draws), dtype=torch.float64))


def test_temperature_is_the_rewards_unit() -> None:
    """r = 0, ln 3: shares 1/4, 3/4; with temperature 2, 1 : sqrt 3; hot, 1/2; cold, the best."""
    rewards, root = torch.tensor([0.0, math.log(3)]), 3**0.5
    for temperature, share in ((1.0, 0.75), (2.0, root / (1 + root)), (1e6, 0.5), (1e-3, 1.0)):
        assert choice_probabilities(rewards, 2, temperature)[1].item() == pytest.approx(
            share, abs=1e-5
        )


def test_the_best_of_each_prompt_is_kept() -> None:
    """The first of equally good ones."""
    reward = torch.tensor([0.3, 0.1, 0.5, 7.0, 9.0, 8.0, 2.0, 2.0, 1.0])
    state, options = state_of(toy()), raft.Options(images_per_prompt=3)
    assert raft.choose(state, reward, [0, 1, 2], options).tolist() == [2, 4, 6]


def test_choices_follow_their_chances_and_their_prompts_id() -> None:
    """Of 2000 prompts with rewards 0, ln 3 in turn 3/4 keep the second, to four deviations of
    .0097; each by its id.
    """
    state, options = state_of(toy()), raft.Options(images_per_prompt=2, temperature=1.0)
    reward, ids = torch.tensor([0.0, math.log(3)]).repeat(2000), list(range(2000))
    chosen = raft.choose(state, reward, ids, options) % 2
    assert chosen.double().mean().item() == pytest.approx(0.75, abs=0.039)
    assert torch.equal(
        raft.choose(state, reward[:1000], ids[500:1000], options) % 2, chosen[500:1000]
    )
    state.step = 1
    assert not torch.equal(raft.choose(state, reward, ids, options) % 2, chosen)


# --- one step -------------------------------------------------------------------------------------


def take_and_look(
    model: Model, rewards: Any = first_coordinate, **more: Any
) -> tuple[dict[str, float], list[Tensor], Tensor]:
    """One step; (metrics, gradients, the pictures that were drawn)."""
    seen: list[Tensor] = []

    def look(media: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(media.clone())
        found: Tensor = rewards(media, prompts)
        return found

    metrics, gradients = take(model, look, **more)
    return metrics, gradients, seen[0]


def plain(model: Model, media: Tensor, ids: Sequence[int]) -> Tensor:
    """Sft's gradient on these pictures of one step, by their ids."""
    texts = ["a"] * len(media)
    batch = Media(texts, model.encode_prompts(texts), ids, media)
    _, (gradient,) = kit.take("sft", model, (), batch=batch)
    return gradient


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_a_step_is_plain_denoising_of_the_best(name: str) -> None:
    """To the last bit; the noise of image j of prompt i is that of row i K + j."""
    metrics, (found,), drawn = take_and_look(toy(name, **MIXTURE))
    best = first_coordinate(drawn, ()).view(3, GROUP).argmax(1) + torch.arange(0, 18, GROUP)
    expected = plain(toy(name, **MIXTURE), drawn[best], best.tolist())
    assert expected.any() and torch.equal(found, expected)
    assert metrics["kept_reward"] == pytest.approx(first_coordinate(drawn[best], ()).mean().item())
    assert metrics["reward/combined"] == pytest.approx(
        first_coordinate(drawn, ()).mean().item(), abs=1e-6
    )


def test_one_image_a_prompt_is_self_distillation() -> None:
    """K = 1, no prior: plain denoising of what was drawn, whatever the reward says."""
    metrics, (found,), drawn = take_and_look(toy(**MIXTURE), images_per_prompt=1)
    assert torch.equal(found, plain(toy(**MIXTURE), drawn, [0, 1, 2]))
    assert metrics["kept_reward"] == pytest.approx(metrics["reward/combined"])


def test_one_picture_is_a_step() -> None:
    metrics, (found,) = take(toy(**MIXTURE), images_per_prompt=1, texts=("a",))
    assert (
        found.any()
        and metrics["reward/std"] == 0
        and all(math.isfinite(value) for value in metrics.values())
    )


def by_prompt(media: Tensor, prompts: Sequence[str]) -> Tensor:
    """10 for a, 30 for b, 20 for c, and a little for the picture."""
    return (
        torch.tensor([{"a": 10.0, "b": 30.0, "c": 20.0}[prompt] for prompt in prompts])
        + media[:, 0, 0, 0]
    )


@pytest.mark.parametrize(
    ("share", "kept"), [(0.3, [1]), (0.7, [1, 2]), (1.0, [0, 1, 2]), (0.01, [1])]
)
def test_only_the_best_prompts_stay(share: float, kept: list[int]) -> None:
    """Of three a share of .3 is one, of .7 two, and one stays always: the mean is over those that
    stay.
    """
    metrics, (found,), drawn = take_and_look(toy(**MIXTURE), by_prompt, prompt_share=share)
    best = (first_coordinate(drawn, ()).view(3, GROUP).argmax(1) + torch.arange(0, 18, GROUP))[kept]
    assert torch.equal(found, plain(toy(**MIXTURE), drawn[best], best.tolist()))
    levels = torch.tensor([10.0, 30.0, 20.0])[kept] + first_coordinate(drawn[best], ())
    assert metrics["kept_reward"] == pytest.approx(levels.mean().item())


def test_where_all_processes_must_call_other_prompts_run_and_weigh_nothing() -> None:
    """A network in shards: the same update and metrics, though all three kept images are
    denoised.
    """
    more: dict[str, Any] = {"prompt_share": 0.3, "prior_weight": 0.5, "gradient_steps": 2}
    metrics, found = take(toy(**MIXTURE), by_prompt, sharded=True, **more)
    expected, wanted = take(toy(**MIXTURE), by_prompt, **more)
    assert metrics == pytest.approx(expected, rel=1e-6)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_prompts_that_score_alike_stay_together() -> None:
    metrics, (found,), drawn = take_and_look(toy(**MIXTURE), flat, prompt_share=0.3)
    assert torch.equal(
        found, plain(toy(**MIXTURE), drawn[[0, GROUP, 2 * GROUP]], [0, GROUP, 2 * GROUP])
    )
    assert metrics["zero_variance"] == 1


def test_every_gradient_step_has_noise_of_its_own() -> None:
    """With the weights held still, two draws are two gradients, the first that of one step."""
    _, (one,) = take(toy(**MIXTURE), lr=0.0)
    _, (first, second) = take(toy(**MIXTURE), lr=0.0, gradient_steps=2)
    assert torch.equal(one, first) and not torch.equal(first, second)


# --- what it converges to -------------------------------------------------------------------------


def m_step(
    model: Model, prompts: int, *, draws: int, rate: float = STEPS / 2, **more: Any
) -> dict[str, float]:
    """One round from the reference, r = x, whose regression is taken to its end."""
    state = state_of(model, Averaging(model.parameters(), lr=rate))
    batch = prompts_of(model, *["a"] * prompts)
    return step_of(state, batch, raft.Options(gradient_steps=draws, **more), first_coordinate)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "known"), [(1, 0.0), (2, 0.564), (4, 1.029), (8, 1.424)])
def test_a_round_moves_by_the_expected_maximum(images: int, known: float) -> None:
    """In deviations of what the sampler draws, E[max of K normals]; every time's denoiser moves to
    that mean, to 0.03.

    The mean of 2000 maxima is known to .62 x .85 / sqrt 2000 = .011, and the noise of learning is
    smaller.
    """
    model = short()
    metrics = m_step(model, 2000, images_per_prompt=images, draws=20)
    mean = known * sample_std(model)
    assert metrics["kept_reward"] == pytest.approx(mean, abs=0.03)
    assert model.denoiser.shift[:STEPS, 0].tolist() == pytest.approx(
        fitted_shifts(model, mean), abs=0.03
    )
    assert distance_moved(model) == pytest.approx(fitted_mean(model, mean), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0, 1e4])
def test_a_prior_holds_the_shift_back(weight: float) -> None:
    """E|x0 - x0hat - s|^2 + lambda s^2 is least at s = (where it was without) / (1 + lambda): 1e4
    keeps it at 0.
    """
    model = short()
    metrics = m_step(
        model,
        1000,
        images_per_prompt=4,
        draws=20,
        rate=STEPS / 2 / (1 + weight),
        prior_weight=weight,
    )
    mean = metrics["kept_reward"]
    expected = [shift / (1 + weight) for shift in fitted_shifts(model, mean)]
    assert max(expected) > 0.25 / (1 + weight)
    assert model.denoiser.shift[:STEPS, 0].tolist() == pytest.approx(expected, abs=0.03)
    if weight == 1e4:
        assert model.denoiser.shift.abs().max() < 1e-3 and abs(distance_moved(model)) < 1e-3


# --- the prior ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_at_the_reference_the_prior_has_no_gradient(name: str) -> None:
    metrics, (found,) = take(toy(name, **MIXTURE), prior_weight=1e6)
    free, (expected,) = take(toy(name, **MIXTURE))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (
        metrics["prior"] == 0
        and metrics["loss"] == pytest.approx(free["loss"])
        and "prior" not in free
    )


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_the_gradient_is_that_of_error_and_prior(name: str) -> None:
    """mean of |output - target|^2 + 3 |output - reference's|^2 at the same x_t, t, by autograd, to
    1e-6.
    """
    metrics, (found,), drawn = take_and_look(moved(name, 0.3), prior_weight=3.0)
    model = moved(name, 0.3)
    best = first_coordinate(drawn, ()).view(3, GROUP).argmax(1) + torch.arange(0, 18, GROUP)
    generators = state_of(model).generators("denoising", best.tolist())
    x0 = drawn[best]
    t = draw_times(model, generators)
    x1, condition = draw_noise(x0, generators), model.encode_prompts(TEXTS)
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.process.coefficients(t))
    x_t = alpha * x0 + sigma * x1
    with model.as_reference():
        reference = model.predict(x_t, t, condition, 1.0)
    output, target = (
        model.predict(x_t, t, condition, 1.0),
        x1 if name == "toy-diffusion" else x1 - x0,
    )
    prior = (output - reference).square().mean()
    (expected,) = torch.autograd.grad(
        (output - target).square().mean() + 3 * prior, model.parameters()
    )
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["prior"] == pytest.approx(prior.item(), rel=1e-5) and prior > 0


# --- options --------------------------------------------------------------------------------------


def test_the_table_of_calls() -> None:
    """4 prompts x 6 images, 4 steps, guidance: 192 rows to draw; two images are kept, three draws
    of noise: 6.
    """
    options: dict[str, Any] = {
        "images_per_prompt": 6,
        "prompts_per_step": 4,
        "gradient_steps": 3,
        "prompt_share": 0.5,
    }
    assert cost(raft.Options(**options), SAMPLING, 2) == {
        "forwards": 192 + 6,
        "backwards": 6,
        "images": 2,
    }
    prior = raft.Options(prior_weight=0.1, **options)
    assert cost(prior, SAMPLING, 2) == {"forwards": 192 + 12, "backwards": 6, "images": 2}
