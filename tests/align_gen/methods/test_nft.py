"""DiffusionNFT: the loss against what it is a square of, its optimum, its gradient, and the policy
it improves on.
"""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from align_gen import Recipe
from align_gen.errors import UserError
from align_gen.losses import nft_loss, optimality
from align_gen.methods import nft
from align_gen.methods.batches import Prompts, Sampling
from align_gen.pipelines import Condition, Flow, Model, rollout
from align_gen.pipelines.seeding import generator
from tests.kits import methods as kit
from tests.kits.methods import (
    GROUP,
    MIXTURE,
    STEPS,
    TEXTS,
    Recorder,
    Taken,
    cost,
    first_coordinate,
    gradients_of,
    moved,
    prompts_of,
    state_of,
    step_of,
    toy,
)

both = pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
DRAWS = 3
ODE = Sampling(num_inference_steps=STEPS, eta=0.0)
SHARED: dict[str, Any] = {
    "images_per_prompt": GROUP,
    "prompts_per_step": 2,
    "times_per_image": DRAWS,
    "beta": 0.7,
    "advantage_limit": 2.0,
}
options_of = partial(nft.Options, **SHARED)


def take(model: Model, rewards: Any = first_coordinate, **more: Any) -> Taken:
    return kit.take("nft", model, rewards, sampling=ODE, **SHARED | more)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, output_old, target (5, 2, 3, 3) and r (5,), float64."""
    g = torch.Generator().manual_seed(seed)
    output, old, target = (
        torch.randn(5, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(3)
    )
    return output.requires_grad_(), old, target, torch.rand(5, generator=g, dtype=torch.float64)


def mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


# --- the loss -------------------------------------------------------------------------------------


def test_optimality_by_hand() -> None:
    """Limit 2: A = -3, -2, -1, 0, 1 gives 0, 0, 1/4, 1/2, 3/4; it is 1 from A = 2 on."""
    found = optimality(torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0]), 2.0)
    assert found.tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_loss_is_its_two_implicit_policies(beta: float) -> None:
    """Equation 5, written with v+ and v- spelled out."""
    output, old, target, r = random_case(0)
    positive, negative = (1 - beta) * old + beta * output, (1 + beta) * old - beta * output
    expected = r * mean((positive - target) ** 2) + (1 - r) * mean((negative - target) ** 2)
    torch.testing.assert_close(nft_loss(output, old, target, r, beta), expected)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_loss_is_a_regression_on_a_moved_target(beta: float) -> None:
    """beta^2 |v_theta - v_old - (2r - 1)(v - v_old) / beta|^2 plus what the network cannot change:
    same gradients.
    """
    output, old, target, r = random_case(1)
    wanted = old + (2 * r - 1)[:, None, None, None] * (target - old) / beta
    (expected,) = torch.autograd.grad((beta**2 * mean((output - wanted) ** 2)).sum(), output)
    (found,) = torch.autograd.grad(nft_loss(output, old, target, r, beta).sum(), output)
    torch.testing.assert_close(found, expected)


def test_at_the_old_policy_it_is_reward_weighted_regression() -> None:
    """With weights beta (2r - 1): negative ones push away; r = 1/2 teaches nothing at all, and
    holds after a move.
    """
    _, old, target, r = random_case(2)
    output = old.clone().requires_grad_()
    weights = 0.7 * (2 * r - 1)
    (expected,) = torch.autograd.grad((weights * mean((output - target) ** 2)).sum(), output)
    (found,) = torch.autograd.grad(nft_loss(output, old, target, r, 0.7).sum(), output)
    torch.testing.assert_close(found, expected)
    half = torch.full((5,), 0.5, dtype=torch.float64)
    (still,) = torch.autograd.grad(nft_loss(output, old, target, half, 0.7).sum(), output)
    assert still.abs().max() < 1e-15
    away = (old + 0.1).requires_grad_()
    (back,) = torch.autograd.grad(nft_loss(away, old, target, half, 0.7).sum(), away)
    torch.testing.assert_close(back, 2 * 0.7**2 * 0.1 / 18 * torch.ones_like(back))


def test_gradient_flows_through_the_trained_network_alone() -> None:
    output, old, target, r = random_case(3)
    old.requires_grad_(), target.requires_grad_()
    nft_loss(output, old, target, r, 1.0).sum().backward()
    assert output.grad is not None and old.grad is None and target.grad is None


def test_its_optimum_is_the_covariance_of_reward_and_velocity() -> None:
    """v_old + (2 / beta) Cov(r, v | x_t) (theorem 3.2): x0 ~ N(0, 1), r = 1/2 + x0 / (2 L), a flow
    at t = 0.6.

    v = (x_t - x0) / t and Var(x0 | x_t) = t^2 / ((1 - t)^2 + t^2) = 0.692, so the x0 that it
    predicts moves by 0.692 / (beta L) whatever x_t is: 0.277 at beta L = 2.5. A line a + b x_t
    fitted to 400 000 samples finds it.
    """
    g, t, beta, limit = torch.Generator().manual_seed(0), 0.6, 0.5, 5.0
    x0, noise = (torch.randn(400_000, generator=g, dtype=torch.float64) for _ in range(2))
    x_t, variance = (1 - t) * x0 + t * noise, t**2 / ((1 - t) ** 2 + t**2)
    old = (x_t - (1 - t) / ((1 - t) ** 2 + t**2) * x_t) / t
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # of the predicted x0's change

    def loss(line: Tensor) -> Tensor:
        output = old - (line[0] + line[1] * x_t) / t
        output, still, target = (part[:, None] for part in (output, old, noise - x0))
        return nft_loss(output, still, target, 0.5 + x0 / (2 * limit), beta).mean()

    (gradient,) = torch.autograd.grad(loss(line), line)
    optimum = -torch.linalg.solve(torch.autograd.functional.hessian(loss, line.detach()), gradient)
    assert optimum.tolist() == pytest.approx([variance / (beta * limit), 0.0], abs=0.005)


# --- the step -------------------------------------------------------------------------------------


def drawn(model: Model) -> tuple[Tensor, Tensor]:
    """The pictures of ``take``'s step by the weights as they are, and their r."""
    generators = [generator(0, "rollout", 0, f"{i}/{j}") for i in range(2) for j in range(GROUP)]
    condition = model.encode_prompts(TEXTS).repeat(GROUP)
    x0 = rollout(model, condition, num_inference_steps=STEPS, eta=0.0, generator=generators).final
    reward = first_coordinate(x0, ()).view(2, GROUP)
    standard = (reward - reward.mean(1, keepdim=True)) / reward.std(1, correction=0, keepdim=True)
    return x0, 0.5 + 0.25 * standard.clamp(-2, 2).flatten()


def noised(model: Model, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every picture's noisings, with plain formulas: (x_t, t, target), DRAWS x B rows."""
    generators = [
        generator(0, f"denoising/{n}", 0, i) for n in range(DRAWS) for i in range(len(x0))
    ]
    flow = isinstance(model.process, Flow)
    times = []
    noise = []
    for one in generators:
        uniform = torch.rand(1, generator=one, dtype=torch.float64)
        times.append(uniform if flow else (1000 * uniform).floor())
        noise.append(torch.randn(x0.shape[1:], generator=one))
    t, x1, x0 = torch.cat(times), torch.stack(noise), x0.repeat(DRAWS, 1, 1, 1)
    alpha, sigma = (part.float().view(-1, 1, 1, 1) for part in model.process.coefficients(t))
    return alpha * x0 + sigma * x1, t, x1 - x0 if flow else x1


def regression(
    model: Model, old: Tensor, at: tuple[Tensor, Tensor, Tensor], r: Tensor, beta: float = 0.7
) -> Tensor:
    """beta^2 |v_theta - v_old - (2r - 1)(v - v_old) / beta|^2, a mean over all."""
    x_t, t, target = at
    output = model.predict(x_t, t, model.encode_prompts([""] * len(t)), 1.0)
    wanted = old + (2 * r.repeat(DRAWS) - 1)[:, None, None, None] * (target - old) / beta
    return beta**2 * ((output - wanted) ** 2).mean()


@both
@pytest.mark.parametrize(("micro_batch", "kl"), [(100, 0.0), (5, 0.2)])
def test_the_gradient_at_theta_old(name: str, micro_batch: int, kl: float) -> None:
    """By autograd of the regression it equals, on samples noised by plain formulas, to 1e-6 of the
    largest.

    Away from the reference, with its squared distance; at theta_old the outputs have not moved.
    """
    metrics, (found,) = take(moved(name), micro_batch=micro_batch, kl=kl)
    model, start = moved(name), toy(name, **MIXTURE)
    x0, r = drawn(model)
    x_t, t, _ = at = noised(model, x0)
    with torch.no_grad():
        many = model.encode_prompts([""] * len(t))
        old, reference = (each.predict(x_t, t, many, 1.0) for each in (model, start))
    distance = ((model.predict(x_t, t, many, 1.0) - reference) ** 2).mean()
    (expected,) = torch.autograd.grad(
        regression(model, old, at, r) + kl * distance, model.parameters()
    )
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["output_change"] == 0
    assert metrics.get("kl", 0) == pytest.approx(distance.item() if kl else 0, rel=1e-4)


class Newton(Recorder):
    """Divides each gradient by its curvature: one step lands where a loss without cross terms is
    least.
    """

    curvature: Tensor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (parameter,) = self.param_groups[0]["params"]
        super().step()  # with lr 0: to be seen
        with torch.no_grad():
            parameter -= parameter.grad / self.curvature.clamp(min=1e-12)


@both
def test_where_a_round_comes_to_rest(name: str) -> None:
    """x0 of a time moves by the mean of (2r - 1)(x0 - x0_old) / beta over that time's samples, and
    there it stays.

    The toy's shifts are one for each time, so the loss is a sum of parabolas, each 2 beta^2 w / (N
    D) curved, where w = (d output / d x0)^2 is (alpha / sigma)^2 of epsilon and 1 / t^2 of a flow:
    one Newton step is at its bottom, and the second gradient step finds no slope. That it uses the
    round's first outputs as v_old is seen by the same.
    """
    model = moved(name)
    x0, r = drawn(model)
    x_t, t, _ = noised(model, x0)
    alpha, sigma = model.process.coefficients(t)
    with torch.no_grad():
        output = model.predict(x_t, t, model.encode_prompts([""] * len(t)), 1.0)
        predicted, _ = model.process.split(x_t, output, t)
    flow = isinstance(model.process, Flow)
    weight = (1 / sigma if flow else alpha / sigma).float() ** 2
    bins, wide = (1000 * t if flow else t).round().long(), torch.zeros(1001)
    wanted = (
        (2 * r.repeat(DRAWS) - 1)[:, None]
        * (x0.repeat(DRAWS, 1, 1, 1) - predicted).flatten(1)
        / 0.7
    )
    total = wide.index_add(0, bins, weight)[:, None]
    best = torch.zeros(1001, 2).index_add(0, bins, weight[:, None] * wanted) / total.clamp(
        min=1e-12
    )

    before = model.parameters()[0].detach().clone()
    optimizer = Newton(model.parameters(), lr=0.0)
    optimizer.curvature = 2 * 0.7**2 * total / (len(t) * 2)
    state = state_of(model, optimizer)
    batch = prompts_of(model, *TEXTS)
    metrics = step_of(state, batch, options_of(gradient_steps=2), first_coordinate, ODE)
    torch.testing.assert_close(model.parameters()[0].detach() - before, best, rtol=0, atol=2e-5)
    first, second = gradients_of(state)
    assert second.abs().max() < 1e-5 * first.abs().max()
    assert metrics["output_change"] > 0


@both
def test_the_average_can_be_the_old_policy(name: str) -> None:
    """It draws, and its outputs are regressed from; the weights in training are others, and come
    back.
    """
    model, average = moved(name), toy(name, **MIXTURE)
    state = state_of(model, lr=0.0)
    state.ema = EMAModel(average.parameters(), decay=0.9)
    before, seen = model.parameters()[0].detach().clone(), []

    def look(media: Tensor, prompts: Any) -> Tensor:
        seen.append(media.clone())
        return first_coordinate(media, prompts)

    batch = prompts_of(model, *TEXTS)
    metrics = step_of(state, batch, options_of(old="average"), look, ODE)
    (found,) = gradients_of(state)
    x0, r = drawn(average)
    torch.testing.assert_close(seen[0], x0)
    assert torch.equal(model.parameters()[0], before)
    x_t, t, _ = at = noised(model, x0)
    with torch.no_grad():
        old = average.predict(x_t, t, model.encode_prompts([""] * len(t)), 1.0)
    (expected,) = torch.autograd.grad(regression(model, old, at, r), model.parameters())
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["output_change"] > 0


def test_an_average_must_be_there() -> None:
    method = {"name": "nft", "images_per_prompt": 4, "prompts_per_step": 2, "old": "average"}
    recipe = Recipe.load("emoji-sd-prdp")
    recipe.replace(method=method)
    with pytest.raises(UserError, match=r"optim\.ema: method\.old: average wants it; it is null"):
        recipe.replace(method=method, optim={"ema": None})


def test_captions_are_dropped_and_guidance_is_off_while_learning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 36 noisings all, none or about half are without caption; pictures are drawn with the run's
    guidance.
    """
    shares = []
    for dropout in (0.0, 0.5, 1.0):
        model, seen = toy(), list[tuple[tuple[str, ...], Any]]()
        monkeypatch.setattr(model, "rows_per_sample", lambda guidance: 2)

        def watched(
            x: Tensor,
            t: Tensor,
            condition: Condition,
            guidance: Any,
            model: Any = model,
            seen: Any = seen,
        ) -> Tensor:
            seen.append((condition.prompts, guidance))
            return type(model).predict(model, x, t, condition, guidance)

        monkeypatch.setattr(model, "predict", watched)
        take(model, dropout=dropout)
        assert [guidance for _, guidance in seen] == STEPS * [5.0] + DRAWS * [1.0]
        texts = [prompt for prompts, guidance in seen for prompt in prompts if guidance == 1.0]
        shares.append(texts.count("") / len(texts))
    assert shares[0] == 0 and 0.2 < shares[1] < 0.8 and shares[2] == 1


@pytest.mark.slow
def test_the_reward_rises() -> None:
    """Ten rounds: the first coordinate of what is drawn from the same noise has moved up."""
    model = toy("toy-flow")
    state = state_of(model, torch.optim.Adam(model.parameters(), lr=0.1))
    condition = model.encode_prompts(TEXTS)

    def level() -> float:
        four = condition.repeat(2)
        found = rollout(
            model, four, num_inference_steps=50, eta=0.0, generator=torch.Generator().manual_seed(5)
        )
        return first_coordinate(found.final, ()).mean().item()

    before = level()
    for state.step in range(10):
        batch = Prompts(TEXTS, condition, [2 * state.step, 2 * state.step + 1])
        options = options_of(images_per_prompt=32, times_per_image=8)
        step_of(state, batch, options, first_coordinate, ODE)
    assert level() > before + 0.2


# --- options --------------------------------------------------------------------------------------


def test_the_table_of_calls() -> None:
    """12 images: 4 guided steps are 96 rows to draw; 3 noisings of each are 36 to learn from,
    without guidance.
    """
    sampling = Sampling(num_inference_steps=4)
    plain, full = (
        cost(options_of(gradient_steps=2, **more), sampling, 2)
        for more in ({}, {"kl": 0.1, "old": "average"})
    )
    assert plain == {"forwards": 96 + 36 * 2, "backwards": 36 * 2, "images": 12}
    assert full == {"forwards": 96 + 36 * (2 * 2 + 1), "backwards": 36 * 2, "images": 12}
