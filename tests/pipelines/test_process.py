"""The transition formula against the schedulers of diffusers, closed forms and
torch.distributions.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from align_gen.pipelines import Diffusion, Flow, FlowSDE, Process, gaussian_log_prob
from tests.tiny.parts import SCHEDULE, ddim

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def diffusion(
    prediction: str = "epsilon", final: float = 1.0, clip: float | None = None
) -> Diffusion:
    return Diffusion(ddim().alphas_cumprod, final, prediction, clip)  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# -- conversions


def processes() -> list[tuple[Process, float]]:
    return [*((diffusion(p), 400.0) for p in PREDICTIONS), (Flow(), 0.4)]


@pytest.mark.parametrize(("process", "unit"), processes())
@pytest.mark.parametrize("per_sample", [False, True])
def test_split_inverts_target(process: Process, unit: float, per_sample: bool) -> None:
    """The output of a perfect network, target(x0, x1), splits into the x0 and x1 that made x_t, in
    every convention.
    """
    x0, x1 = (
        noise(2, 4, 3, 3, seed=1, dtype=torch.float64),
        noise(2, 4, 3, 3, seed=2, dtype=torch.float64),
    )
    t = torch.tensor([unit, 2 * unit], dtype=torch.float64) if per_sample else time(unit)
    x_t = process.add_noise(x0, x1, t)
    found0, found1 = process.split(x_t, process.target(x0, x1, t), t)
    assert torch.allclose(found0, x0, atol=1e-12)
    assert torch.allclose(found1, x1, atol=1e-12)


def test_targets_are_what_diffusers_trains_on() -> None:
    """add_noise and get_velocity of the scheduler, at a time of each sample's own."""
    scheduler, t = ddim(), torch.tensor([10, 700])
    x0, x1 = noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3, seed=2)
    assert torch.allclose(
        diffusion().add_noise(x0, x1, t), scheduler.add_noise(x0, x1, t), atol=1e-6
    )
    assert torch.allclose(
        diffusion("v_prediction").target(x0, x1, t), scheduler.get_velocity(x0, x1, t), atol=1e-6
    )
    assert torch.equal(diffusion("epsilon").target(x0, x1, t), x1)
    assert torch.equal(diffusion("sample").target(x0, x1, t), x0)
    assert torch.equal(Flow().target(x0, x1, time(0.3)), x1 - x0)


def test_flow_runs_from_clean_to_noise() -> None:
    """x_t = (1 - t) x0 + t x1, by hand: 0.75 * 4 + 0.25 * 8 = 5; videos (B, C, F, H, W) too."""
    x_t = Flow().add_noise(
        torch.full((1, 2, 3, 1, 1), 4.0), torch.full((1, 2, 3, 1, 1), 8.0), torch.tensor([0.25])
    )
    assert torch.equal(x_t, torch.full((1, 2, 3, 1, 1), 5.0))


def test_an_unknown_prediction_is_refused() -> None:
    """A scheduler of flow models made DDIM keeps its prediction_type; reading it as x0 would sample
    garbage.
    """
    with pytest.raises(ValueError, match="flow_prediction"):
        diffusion("flow_prediction").split(noise(1, 1), noise(1, 1), time(5))


@pytest.mark.parametrize(("process", "unit"), processes())
def test_half_precision_ends_at_the_networks_output(process: Process, unit: float) -> None:
    """A bfloat16 output is taken at its value; what is computed from it is float32, as x_t is."""
    x_t, output = noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2).bfloat16()
    for half, single in zip(
        process.split(x_t, output, time(unit)),
        process.split(x_t, output.float(), time(unit)),
        strict=True,
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


# -- one step against the schedulers


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_is_ddims(
    prediction: str, clip: float | None, alpha_to_one: bool, eta: float
) -> None:
    """Mean and std of DDIMScheduler.step: the mean with variance_noise 0, the std from the
    difference noise 1 makes.
    """
    scheduler = ddim(
        prediction_type=prediction,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        set_alpha_to_one=alpha_to_one,
    )
    scheduler.set_timesteps(8)
    # In float32 the scheduler's own 1 - abar_s - std^2 loses digits near the end.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    process = diffusion(prediction, float(scheduler.final_alpha_cumprod), clip)
    x, output = noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3, seed=2)
    for t in scheduler.timesteps:
        mean, std = process.transition(x, output, t.double(), t.double() - 125, eta)
        wanted = scheduler.step(
            output, t, x, eta=eta, variance_noise=torch.zeros_like(x)
        ).prev_sample
        moved = scheduler.step(output, t, x, eta=eta, variance_noise=torch.ones_like(x)).prev_sample
        assert torch.allclose(mean, wanted, atol=1e-6)
        assert torch.allclose((moved - wanted).double(), std.expand_as(x), atol=2e-6)
        assert std == pytest.approx(
            eta * float(scheduler._get_variance(int(t), int(t) - 125)) ** 0.5, abs=1e-6
        )


def test_eta_one_is_the_ddpm_posterior() -> None:
    """Variance and mean of DDPMScheduler, all 1000 of its steps but the last, where both end
    without noise.

    Its float32 variance loses digits to 1 - abar, hence the relative tolerance.
    """
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type="fixed_small")
    process, x, output = diffusion(), noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2)
    for t in (1, 2, 10, 500, 999):
        mean, std = process.transition(x, output, time(t), time(t - 1), 1.0)
        assert float(std) ** 2 == pytest.approx(float(scheduler._get_variance(t)), rel=2e-3)
        wanted = scheduler.step(
            output, t, x, generator=torch.Generator().manual_seed(3)
        ).prev_sample
        assert torch.allclose(mean + std.float() * noise(1, 4, 3, 3, seed=3), wanted, atol=1e-4)
    assert process.std(time(0), time(-1), 1.0) == 0


def test_eta_zero_is_flow_match_euler() -> None:
    """The same sigmas, shifted as SD3 does; every step and not only the end."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    x = noise(2, 4, 3, 3, seed=1)
    for i, t in enumerate(scheduler.timesteps):
        output = noise(2, 4, 3, 3, seed=10 + i)
        mean, std = Flow().transition(x, output, scheduler.sigmas[i], scheduler.sigmas[i + 1], 0.0)
        x = scheduler.step(output, t, x).prev_sample
        assert torch.allclose(mean, x, atol=1e-6)
        assert std == 0


# -- the SDE of Flow-GRPO


def test_the_flow_sde_by_hand() -> None:
    """t = .5, s = .4, a = .8, x = 1, v = 2: g^2 = .64 (.5 / .5) = .64, x1 = x + (1 - t) v = 2, mean
    = 1 - .1 (2 + .64 / (2 * .5) * 2) = 1 - .1 * 3.28 = .672, std = .8 sqrt(.1) = .25298. Half the
    noise by eta.
    """
    x, v = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    mean, std = FlowSDE(0.8).transition(x, v, time(0.5), time(0.4), 1.0)
    assert mean.item() == pytest.approx(0.672)
    assert std.item() == pytest.approx(0.252982, abs=1e-6)
    assert FlowSDE(0.8).std(time(0.5), time(0.4), 0.5).item() == pytest.approx(0.126491, abs=1e-6)
    assert FlowSDE(0.8).transition(x, v, time(0.5), time(0.4), 0.5)[0].item() == pytest.approx(
        0.768
    )


def test_the_flow_sde_at_its_ends() -> None:
    """At t = 1 the next time stands in for 1 - t: s = .9, g^2 = .64 / .1 = 6.4, std = sqrt(6.4 *
    .1) = .8. The step to 0, and eta = 0, are the ODE's.
    """
    x, v = noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2)
    assert FlowSDE(0.8).std(time(1.0), time(0.9), 1.0).item() == pytest.approx(0.8)
    for t, s, eta in ((0.3, 0.0, 1.0), (0.7, 0.6, 0.0), (1.0, 0.9, 0.0)):
        mean, std = FlowSDE(0.8).transition(x, v, time(t), time(s), eta)
        assert std == 0
        assert torch.allclose(mean, x + (s - t) * v, atol=1e-6)


@pytest.mark.slow
def test_the_flow_sde_keeps_every_marginal() -> None:
    """Of N(0, 1): x_t has variance (1 - t)^2 + t^2, and v = (2t - 1) x / that. In many small steps
    the variance follows, whatever the noise.
    """
    variance, grid = 1.0, torch.linspace(1, 0.02, 20000, dtype=torch.float64)
    for t, s in pairwise(grid):
        ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        slope, std = FlowSDE(0.7).transition(
            ones, (2 * t - 1) / ((1 - t) ** 2 + t**2) * ones, t, s, 1.0
        )
        variance = slope.item() ** 2 * variance + std.item() ** 2
    assert variance == pytest.approx(0.98**2 + 0.02**2, rel=0.01)


def test_a_flow_sde_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="flow_sde: want a level of noise above 0"):
        FlowSDE(0.0)


# -- the ends


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_flow_is_finite_at_pure_noise(eta: float) -> None:
    """At t = 1, alpha_t = 0: var = eta^2 s^2 (1 - 0) / 1, so std = eta s, mean = (1-s) x0 + s
    sqrt(1-eta^2) x1.
    """
    x, v, s = noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3, seed=2), 0.75
    mean, std = Flow().transition(x, v, time(1), time(s), eta)
    assert float(std) == pytest.approx(eta * s)
    assert torch.allclose(mean, (1 - s) * (x - v) + s * math.sqrt(1 - eta**2) * x, atol=1e-6)
    for other in torch.linspace(
        0.01, 0.99, 99, dtype=torch.float64
    ):  # sqrt(s^2)^2 may exceed s^2 by a rounding
        assert Flow().transition(x, v, time(1), other, eta)[0].isfinite().all()


def test_the_step_to_clean_data_has_no_noise() -> None:
    x, output = noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2)
    mean, std = Flow().transition(x, output, time(0.25), time(0), 1.0)
    assert std == 0
    assert torch.allclose(mean, x - 0.25 * output, atol=1e-6)
    mean, std = diffusion("sample").transition(x, output, time(99), time(-1), 1.0)
    assert std == 0
    assert torch.equal(mean, output)
    first = diffusion(final=float(ddim().alphas_cumprod[0]))
    assert (
        first.std(time(0), time(-20), 1.0) == 0
    )  # from abar_0 to abar_0: exactly, though both come from float32
    assert first.std(time(1), time(-19), 1.0) > 0.01


@pytest.mark.parametrize("process", [Flow(), FlowSDE(0.7)])
def test_a_step_that_ends_almost_clean_has_no_noise(process: Flow) -> None:
    """From .14 to .001, as a scheduler of eight steps has it, the posterior's std would be .001: a
    density 75 times as narrow, in units of what the network changes, as that of the step before.
    From .28 to .14 there is noise.
    """
    assert process.std(time(0.14), time(0.001), 1.0) == 0
    assert process.std(time(0.28), time(0.14), 1.0) > 0.1
    assert process.std(time(0.28), time(0.14), 0.01) > 0  # little, because little was asked for


def test_the_flow_sde_on_a_grid_that_begins_just_below_one() -> None:
    """Wan's scheduler begins at .999999 and means 1: std of the step to .95 is .7 sqrt(1 / .05 *
    .05) = .7, not 150.
    """
    assert FlowSDE(0.7).std(time(0.999999), time(0.95), 1.0).item() == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_finite(prediction: str) -> None:
    """rescale_betas_zero_snr makes alpha 0 at the last timestep; x0 is then read off the output,
    never divided by 0.
    """
    scheduler = ddim(rescale_betas_zero_snr=True, prediction_type=prediction)
    process = replace(diffusion(prediction), alphas_cumprod=scheduler.alphas_cumprod)
    assert process.coefficients(time(999))[0] == 0
    mean, std = process.transition(
        noise(1, 4, 3, 3), noise(1, 4, 3, 3, seed=1), time(999), time(899), 1.0
    )
    assert mean.isfinite().all()
    assert 0 < std < 1


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        Flow().std(time(0.5), time(0.4), eta)


def test_times_of_each_sample_are_used_for_that_sample() -> None:
    """A batch of two times equals two batches of one."""
    x, output = noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3, seed=2)
    t, s = torch.tensor([0.9, 0.3]), torch.tensor([0.7, 0.1])
    mean, std = Flow().transition(x, output, t, s, 1.0)
    for i in range(2):
        alone, alone_std = Flow().transition(x[i : i + 1], output[i : i + 1], t[i], s[i], 1.0)
        assert torch.allclose(mean[i : i + 1], alone, atol=1e-7)
        assert float(std[i]) == pytest.approx(float(alone_std))


# -- many steps


def marginal_error(process: Process, grid: Tensor, eta: float) -> float:
    """How far the sampler's last mean and standard deviation are from the truth, for x0 ~ N(0.7,
    0.5^2).

    The exact denoiser is affine, E[x0 | x_t] = m + (a s^2 / v)(x_t - a m) with v = a^2 s^2 +
    sigma^2, so each step takes N(M, V) to N(p M + q, p^2 V + std^2); p and q are read off the
    transition at x = 0 and x = 1.
    """
    m, s = 0.7, 0.5
    alpha, sigma = process.coefficients(grid[0])
    mean, variance = alpha * m, alpha**2 * s**2 + sigma**2
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, after in pairwise(grid):
        alpha, sigma = process.coefficients(t)
        x0 = m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (probe - alpha * m)
        output = process.target(x0, (probe - alpha * x0) / sigma, t)
        moved, std = process.transition(probe, output, t, after, eta)
        intercept, slope = moved[0, 0], moved[1, 0] - moved[0, 0]
        mean, variance = slope * mean + intercept, slope**2 * variance + std**2
    alpha, sigma = process.coefficients(grid[-1])
    return max(
        abs(float(mean - alpha * m)),
        abs(float(variance.sqrt() - (alpha**2 * s**2 + sigma**2).sqrt())),
    )


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["diffusion", "flow"])
@pytest.mark.parametrize("end", [0.0, 0.5])
def test_the_marginals_are_right_in_the_limit(name: str, eta: float, end: float) -> None:
    """The law of x_s tends to N(alpha_s m, alpha_s^2 s^2 + sigma_s^2), half way and at the end,
    like 1/n.
    """

    def error(steps: int) -> float:
        grid = torch.linspace(1, end, steps + 1, dtype=torch.float64)
        if name == "flow":
            return marginal_error(Flow(), grid, eta)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        log_bar = (1 - betas).log().cumsum(0)[None, None]  # put on a finer grid, for the limit
        log_bar = torch.nn.functional.interpolate(
            log_bar, size=16001, mode="linear", align_corners=True
        )
        return marginal_error(Diffusion(log_bar[0, 0].exp(), 1.0), (grid * 16000).round(), eta)

    coarse, fine = error(100), error(200)
    assert fine < 0.02
    assert 1.7 < coarse / fine < 4.5


# -- the density


def test_log_prob_is_the_normal_density() -> None:
    x, mean = noise(3, 4, 5, 5, seed=1), noise(3, 4, 5, 5, seed=2)
    std = torch.tensor([0.02, 0.3, 2.0], dtype=torch.float64)
    wanted = (
        torch.distributions.Normal(mean.double(), std[:, None, None, None])
        .log_prob(x.double())
        .flatten(1)
    )
    found = gaussian_log_prob(x, mean, std)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted.mean(1).float(), rtol=1e-6)
    assert torch.allclose(gaussian_log_prob(x, mean, std, "sum"), wanted.sum(1).float(), rtol=1e-6)
    assert torch.allclose(
        gaussian_log_prob(x[1:2], mean[1:2], std[1]), wanted.mean(1)[1:2].float(), rtol=1e-6
    )


def test_sums_are_made_in_float64() -> None:
    """10^6 elements, each at z = 1: the sum is exactly 10^6 (-1/2 - 1/2 log 2 pi)."""
    x = torch.ones(1, 1_000_000)
    found = gaussian_log_prob(x, torch.zeros_like(x), time(1), "sum")
    assert float(found) == pytest.approx(1e6 * (-0.5 - 0.5 * math.log(2 * math.pi)), rel=1e-7)


def test_expected_log_prob_of_own_samples() -> None:
    """E[log N(mean + std z)] / d = -1/2 - log std - 1/2 log 2 pi; 10^6 draws of z^2 / 2 give it to
    7e-4 (one sigma).
    """
    z, std = noise(4, 250_000), 0.03
    found = gaussian_log_prob(1 + std * z, torch.ones_like(z), time(std)).mean()
    assert float(found) == pytest.approx(
        -0.5 - math.log(std) - 0.5 * math.log(2 * math.pi), abs=3e-3
    )


def test_log_prob_has_the_gradient_of_the_mean() -> None:
    """d/dmean of the mean-reduced density is (x - mean) / (std^2 d); the reduction over d = 12
    divides it.
    """
    x, mean = noise(1, 3, 2, 2, seed=1), noise(1, 3, 2, 2, seed=2).requires_grad_()
    gaussian_log_prob(x, mean, time(0.5)).sum().backward()
    assert mean.grad is not None
    assert torch.allclose(mean.grad, (x - mean.detach()) / (0.25 * 12), atol=1e-6)
