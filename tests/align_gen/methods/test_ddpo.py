"""DDPO's step: the gradient at theta_old against autograd, what the clip does after it, and what
has no gradient.
"""

from functools import partial

import pytest
import torch

from align_gen.losses import advantages
from align_gen.methods import ddpo
from align_gen.methods.batches import Prompts, Sampling
from align_gen.pipelines import rollout
from align_gen.pipelines.sampling import step_log_prob
from align_gen.pipelines.seeding import generator
from tests.kits import methods as kit
from tests.kits.methods import (
    GROUP,
    MIXTURE,
    TEXTS,
    cost,
    first_coordinate,
    require,
    state_of,
    step_of,
    toy,
)

options_of = partial(ddpo.Options, images_per_prompt=GROUP, prompts_per_step=2)
take = partial(kit.take, "ddpo", images_per_prompt=GROUP, prompts_per_step=2, clip=1e-3)


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
@pytest.mark.parametrize("micro_batch", [100, 5])
def test_the_gradient_at_theta_old(name: str, micro_batch: int) -> None:
    """-sum A_i log pi(step t of i) / (B S), by autograd with the graph of all steps alive, to 1e-6
    of the largest.
    """
    metrics, (found,) = take(toy(name, **MIXTURE), micro_batch=micro_batch)
    model = toy(name, **MIXTURE)
    condition = model.encode_prompts(TEXTS).repeat(GROUP)
    generators = [generator(0, "rollout", 0, f"{i}/{j}") for i in range(2) for j in range(GROUP)]
    drawn = rollout(model, condition, num_inference_steps=4, generator=generators)
    advantage = advantages(first_coordinate(drawn.final, ()), GROUP, 5.0)
    columns = [
        step_log_prob(model, drawn, i, condition, eta=1.0, guidance_scale=5.0)
        for i in drawn.stochastic.tolist()
    ]
    (expected,) = torch.autograd.grad(
        -(advantage[:, None] * torch.stack(columns, 1)).mean(), model.parameters()
    )
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["clip_fraction"] == 0 and metrics["log_prob_change"] < 1e-6
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)  # advantages of a group add up to 0


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_to_learn_from_the_drawing_itself_is_the_same_step(name: str) -> None:
    """The graph kept while drawing has the gradient that a second pass has, to 1e-6, and the same
    metrics.
    """
    twice, once = (
        take(toy(name, **MIXTURE), micro_batch=5, keep_graph=keep) for keep in (False, True)
    )
    (expected, (a,)), (metrics, (b,)) = twice, once
    assert (a - b).abs().max() <= 1e-6 * a.abs().max()
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_the_graph_serves_one_gradient_step() -> None:
    options = ddpo.Options(keep_graph=True, gradient_steps=2)
    with pytest.raises(ValueError, match=r"method\.keep_graph: .* want gradient_steps 1"):
        require(options, Sampling())
    calls = cost(options_of(keep_graph=True), Sampling(), 2)
    assert calls["forwards"] == calls["backwards"] == 12 * 50 * 2


def test_the_clip_binds_from_the_second_gradient_step_on() -> None:
    """After a large step some ratios have left their range; with a wide clip none has, and the
    gradient is another.
    """
    narrow, wide = (take(toy(), lr=1.0, gradient_steps=2, clip=clip) for clip in (1e-3, 10.0))
    assert 0 < narrow[0]["clip_fraction"] <= 1 and wide[0]["clip_fraction"] == 0
    (_, (first, second)), (_, (same, other)) = narrow, wide
    assert torch.equal(first, same) and not torch.equal(second, other)


def test_the_reward_rises() -> None:
    """Ten rounds: the first coordinate of what is drawn from the same noise has moved up, as there
    is nothing else.
    """
    model = toy()
    state = state_of(model, torch.optim.Adam(model.parameters(), lr=0.05), micro_batch=16)
    condition = model.encode_prompts(TEXTS)
    options = options_of(images_per_prompt=16, clip=0.1)

    def mean() -> float:
        four = condition.repeat(2)
        drawn = rollout(
            model, four, num_inference_steps=4, generator=torch.Generator().manual_seed(5)
        )
        return first_coordinate(drawn.final, ()).mean().item()

    before = mean()
    for state.step in range(10):
        batch = Prompts(TEXTS, condition, [2 * state.step, 2 * state.step + 1])
        step_of(state, batch, options, first_coordinate)
    assert mean() > before + 0.2


def test_the_table_of_calls() -> None:
    """2 prompts x 6 images, 4 steps, guidance: 12 * 4 * 2 = 96 rows to draw, 96 to learn from, each
    gradient step.
    """
    calls = cost(options_of(gradient_steps=2), Sampling(num_inference_steps=4), 2)
    assert calls == {"forwards": 96 * 3, "backwards": 96 * 2, "images": 12}


def test_eta_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling\.eta"):
        require(ddpo.Options(), Sampling(eta=0.0))
