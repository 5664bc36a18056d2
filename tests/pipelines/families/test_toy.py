"""The toy is what closed forms are tested on, so it is tested against numerical integration and
torch.distributions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from align_gen.pipelines import Diffusion, Flow, LoraOptions, rollout, sample
from align_gen.pipelines.families.toy import Toy, toy_diffusion, toy_flow
from align_gen.pipelines.sampling import step_log_prob
from tests.tiny.parts import ddim

MAKERS: dict[str, Callable[..., Toy]] = {"diffusion": toy_diffusion, "flow": toy_flow}
MIXTURE: dict[str, Any] = {"means": [[-1.0], [1.5]], "stds": [0.3, 0.5], "weights": [0.6, 1.4]}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def column(*values: float) -> Tensor:
    """(B, 1, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def time_of(model: Toy, fraction: float) -> Tensor:
    return torch.tensor(
        fraction if isinstance(model.process, Flow) else round(fraction * 999), dtype=torch.float64
    )


@both
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7, 1.0])
def test_the_denoiser_is_the_posterior_mean(make: Callable[..., Toy], fraction: float) -> None:
    """E[x0 | x_t] = int x0 p(x0) N(x_t; a x0, s^2) / int p(x0) N(x_t; a x0, s^2), on a grid of 200
    001 points.
    """
    model = make(**MIXTURE)
    t = time_of(model, fraction)
    x_t = column(-2.0, -0.4, 0.0, 0.3, 1.7)
    with torch.no_grad():
        output = model.predict(x_t, t, model.encode_prompts([""] * 5), 1.0)
        found, noise = model.process.split(x_t, output, t)
    alpha, sigma = model.process.coefficients(t)
    x0 = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    prior = 0.3 * Normal(-1.0, 0.3).log_prob(x0).exp() + 0.7 * Normal(1.5, 0.5).log_prob(x0).exp()
    weight = prior * Normal(alpha * x0, sigma).log_prob(x_t.view(-1, 1).double()).exp()
    wanted = (weight * x0).sum(1) / weight.sum(1)
    assert torch.allclose(found.flatten().double(), wanted, atol=2e-4)
    assert torch.allclose(model.process.add_noise(found, noise, t), x_t, atol=1e-5)


@both
def test_in_several_dimensions_it_is_tweedies_formula(make: Callable[..., Toy]) -> None:
    """E[x0 | x_t] = (x_t + sigma^2 grad log p_t(x_t)) / alpha, p_t of N(alpha m_k, alpha^2 s_k^2 +
    sigma^2).

    In float64, in 3 dimensions, where a component's width counts three times in its density.
    """
    means, stds, weights = (
        [[0.0, 1.0, 0.5], [1.0, -1.0, 0.0], [0.5, 0.5, 2.0]],
        [0.3, 1.0, 2.0],
        [1.0, 2.0, 5.0],
    )
    model = make(means, stds, weights)
    model.denoiser.double()
    t = time_of(model, 0.5)
    alpha, sigma = model.process.coefficients(t)
    x = torch.randn(
        20, 3, generator=Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    widths = (alpha**2 * torch.tensor(stds).double() ** 2 + sigma**2).sqrt()
    parts = Independent(
        Normal(alpha * torch.tensor(means).double(), widths[:, None].expand(3, 3)), 1
    )
    density = MixtureSameFamily(Categorical(torch.tensor(weights).double()), parts).log_prob(x)
    (score,) = torch.autograd.grad(density.sum(), x)
    latents = x.detach().view(20, 3, 1, 1)
    with torch.no_grad():
        found, _ = model.process.split(
            latents, model.predict(latents, t, model.encode_prompts([""] * 20), 1.0), t
        )
    assert torch.allclose(found.flatten(1), (x + sigma**2 * score).detach() / alpha, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_times_go_from_noise_to_clean_data(steps: int) -> None:
    """Flow goes from 1 to 0; diffusion from its last timestep to below 0, where abar is 1; no step
    leaves a gap.
    """
    for model, first in ((toy_flow(), 1.0), (toy_diffusion(), 999.0)):
        times = model.times(steps, (1, 1, 1))
        assert times.shape == (steps, 2)
        assert times.dtype == torch.float64
        assert times[0, 0] == first
        assert torch.equal(times[1:, 0], times[:-1, 1])
        assert model.process.coefficients(times[-1, 1])[1] == 0


def test_log_likelihood_is_the_mixtures() -> None:
    means, stds, weights = [[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], [0.2, 1.0, 3.0], [1.0, 2.0, 5.0]
    model = toy_flow(means, stds, weights)
    parts = Independent(Normal(torch.tensor(means), torch.tensor(stds)[:, None].expand(3, 2)), 1)
    mixture = MixtureSameFamily(Categorical(torch.tensor(weights)), parts)
    x = 3 * torch.randn(50, 2, generator=Generator().manual_seed(0))
    found = model.log_likelihood(x.view(50, 2, 1, 1))
    assert found.shape == (50,)
    assert torch.allclose(found, mixture.log_prob(x), atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@both
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_mixtures_moments(make: Callable[..., Toy], eta: float) -> None:
    """Weights 0.3 and 0.7: mean 0.75, variance 0.3 (0.09 + 1) + 0.7 (0.25 + 2.25) - 0.75^2 =
    1.5145, P(x < 0) = 0.3.

    10 000 draws give the mean to 0.012 and the share to 0.005 (one sigma); 300 steps leave a bias
    of 0.02. It starts from the true law of x_T: Stable Diffusion's schedule leaves 0.068 x0 in it,
    which the ODE never forgets.
    """
    model, count = make(**MIXTURE), 10_000
    g = Generator().manual_seed(0)
    component = (torch.rand(count, generator=g) < 0.7).long()
    x0 = torch.tensor([-1.0, 1.5])[component] + torch.tensor([0.3, 0.5])[component] * torch.randn(
        count, generator=g
    )
    start = model.times(300, (1, 1, 1))[0, 0]
    x_t = model.process.add_noise(x0, torch.randn(count, generator=g), start).view(-1, 1, 1, 1)
    condition = model.encode_prompts([""]).repeat(count)
    drawn = rollout(
        model, condition, num_inference_steps=300, eta=eta, latents=x_t, generator=g
    ).final.flatten()
    assert float(drawn.mean()) == pytest.approx(0.75, abs=0.03)
    assert float(drawn.var()) == pytest.approx(1.5145, abs=0.05)
    left = 0.3 * Normal(-1.0, 0.3).cdf(torch.tensor(0.0)) + 0.7 * Normal(1.5, 0.5).cdf(
        torch.tensor(0.0)
    )
    assert float((drawn < 0).float().mean()) == pytest.approx(float(left), abs=0.015)
    near = drawn[drawn < 0]
    assert float(near.std()) == pytest.approx(0.3, abs=0.03)


@both
def test_the_last_step_lands_on_clean_data(make: Callable[..., Toy]) -> None:
    """So every step but the last has a density; x_T stands first."""
    model = make()
    kept = rollout(
        model,
        model.encode_prompts([""] * 3),
        num_inference_steps=10,
        generator=Generator().manual_seed(0),
    )
    assert kept.stochastic.tolist() == list(range(9))
    assert kept.latents.shape == (3, 11, 1, 1, 1)
    assert kept.log_probs.isfinite().all()
    assert kept.latents.dtype == kept.log_probs.dtype == torch.float32
    with torch.no_grad():
        again = step_log_prob(
            model, kept, 4, model.encode_prompts([""] * 3), eta=1.0, guidance_scale=5.0
        )
    assert torch.allclose(again, kept.log_probs[:, 4], atol=1e-6)


def test_a_toy_in_float64_stays_in_float64() -> None:
    """Gradients are compared to 1e-10 on it, so nothing on the way may round to float32."""
    model = toy_diffusion(**MIXTURE)
    model.denoiser.double()
    condition = model.encode_prompts([""] * 3)
    kept = rollout(model, condition, num_inference_steps=10, generator=Generator().manual_seed(0))
    assert kept.latents.dtype == kept.log_probs.dtype == torch.float64
    assert not torch.equal(kept.final, kept.final.float().double())
    with torch.no_grad():
        again = step_log_prob(model, kept, 4, condition, eta=1.0, guidance_scale=5.0)
    assert torch.allclose(again, kept.log_probs[:, 4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "eta", "mean"), [(10, 1.0, 0.317), (50, 1.0, 0.444), (50, 0.5, 0.325)]
)
def test_what_the_sampler_forgets(steps: int, eta: float, mean: float) -> None:
    """The optimum of E[x0] - beta KL over trajectories has mean V / beta, V = Var_ref(x0 | x_T),
    with beta = 2.

    V <- m_t^2 V + sigma_t^2 along the chain, m_t the slope of the mean; the tilted Gaussian's own
    mean would be 0.5. The values belong to Stable Diffusion 1.5's schedule and grid, and x0 ~ N(0,
    1).
    """
    scheduler = ddim()
    scheduler.set_timesteps(steps)
    process = Diffusion(scheduler.alphas_cumprod.double(), float(scheduler.final_alpha_cumprod))
    model = Toy(toy_diffusion().denoiser, process)
    variance = torch.zeros((), dtype=torch.float64)
    for t in scheduler.timesteps.double():
        s = t - 1000 // steps
        probe = column(0.0, 1.0).double()
        with torch.no_grad():
            output = model.predict(probe, t, model.encode_prompts(["", ""]), 1.0)
        moved, std = model.process.transition(probe, output, t, s, eta)
        variance = (moved[1] - moved[0]).squeeze() ** 2 * variance + std**2
    assert float(variance) / 2 == pytest.approx(mean, abs=5e-4)


# -- training


@both
def test_a_shift_moves_the_clean_sample_of_its_time(make: Callable[..., Toy]) -> None:
    """The trained part: x0 + shift at that time, untouched at others; its gradient is there."""
    model = make(**MIXTURE)
    model.train_full()
    condition = model.encode_prompts(["", ""])
    (early, _), (late, _) = model.times(4, (1, 1, 1))[[0, 2]]
    x = column(0.1, 0.9)

    def clean(t: Tensor) -> Tensor:
        return model.process.split(x, model.predict(x, t, condition, 1.0), t)[0]

    before = clean(early), clean(late)
    assert all(part.grad_fn is not None for part in before)
    row = round(float(early) * (1000 if make is toy_flow else 1))
    with torch.no_grad():
        model.denoiser.shift[row] += 0.25
    assert torch.allclose(clean(early), before[0] + 0.25, atol=1e-5)
    assert torch.equal(clean(late), before[1])
    with model.as_reference():
        assert torch.allclose(clean(early), before[0], atol=1e-6)
    clean(early).sum().backward()
    gradient = model.denoiser.shift.grad
    assert gradient is not None
    assert gradient.flatten().nonzero().flatten().tolist() == [row]
    assert float(gradient[row]) == pytest.approx(2.0)


@both
def test_only_the_shift_is_trained(make: Callable[..., Toy]) -> None:
    model = make(**MIXTURE)
    model.train_full()
    assert [tuple(p.shape) for p in model.parameters()] == [(1001, 1)]
    with pytest.raises(ValueError, match="LoRA"):
        model.train_lora(LoraOptions(2))


@both
def test_an_export_is_read_back(make: Callable[..., Toy], tmp_path: Path) -> None:
    model = make(**MIXTURE)
    model.train_full()
    with torch.no_grad():
        model.denoiser.shift.add_(torch.randn(1001, 1, generator=Generator().manual_seed(0)))
    model.export(tmp_path / "new" / "folder")
    other = make(**MIXTURE)
    other.reload(tmp_path / "new" / "folder")
    assert torch.equal(other.denoiser.shift, model.denoiser.shift)
    with pytest.raises(ValueError, match="changes nothing"):
        other.reload(tmp_path / "new" / "folder")
    with pytest.raises(ValueError, match=str(tmp_path / "none")):
        other.reload(tmp_path / "none")


@both
def test_a_wrapped_denoiser(make: Callable[..., Toy], tmp_path: Path) -> None:
    """As DDP wraps it: shapes, sampling, likelihood and export all still find the mixture
    inside.
    """
    model = make(**MIXTURE)
    model.train_full()
    model.trainable["denoiser"] = nn.DataParallel(model.trainable["denoiser"])
    condition = model.encode_prompts([""] * 2)
    assert sample(model, condition, num_inference_steps=2, generator=Generator()).shape == (
        2,
        1,
        1,
        1,
    )
    assert model.log_likelihood(column(0.0)).shape == (1,)
    model.export(tmp_path)
    assert (tmp_path / "denoiser.safetensors").is_file()


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-flow"])
def test_unknown_inputs_are_refused(name: str) -> None:
    model = MAKERS[name.removeprefix("toy-")]()
    with pytest.raises(ValueError, match="control"):
        model.encode_prompts([""], control=torch.zeros(1))
