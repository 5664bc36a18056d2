"""Noise processes: what x_t is made of, and one transition formula for diffusion and flow alike.

With x_t = alpha_t x0 + sigma_t x1 (x0 clean, x1 ~ N(0, I)), a process knows (alpha, sigma) at every
time and turns the network's output into (x0, x1). Everything else is shared. Processes hold
constants and no state; all methods are pure.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
Reduction = Literal["mean", "sum"]

# Flow schedulers jump from sigma .1 to .001 before 0. The density of such a step is so narrow that
# its log-ratio would outweigh those of all others and say nothing: a step that ends with less than
# this share of its noise has no density.
CLEAN = 0.04
# Multistep schedulers of flow models begin here, by rounding.
NEARLY_ONE = 0.998


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Shape per-sample values, () or (B,), to multiply x (B, ...), in x's dtype and device."""
    values = values.to(x.device, x.dtype)
    return values.reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


class Process(ABC):
    """A Gaussian noise process; times are () or (B,), in the process's own unit.

    Sampling goes from noisy to clean times.
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at time t, float64, of t's shape."""

    @abstractmethod
    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output at x_t as predicted (x0, x1), both of x_t's shape."""

    @abstractmethod
    def target(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """The output of a perfect network at x_t = add_noise(x0, x1, t), given x0 and x1."""

    def add_noise(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t x1."""
        alpha, sigma = self.coefficients(t)
        return _like(alpha, x0) * x0 + _like(sigma, x0) * x1

    def std(self, t: Tensor, s: Tensor, eta: float) -> Tensor:
        """Standard deviation of the step t -> s, float64.

        eta=0 is the ODE (DDIM), eta=1 the DDPM posterior.

        var = eta^2 (sigma_s^2 / sigma_t^2) (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2); Song et
        al. 2021 eq. 16, written so that it is finite at alpha_t = 0 (flow at t=1) and zero at
        sigma_s = 0. Of a step that ends almost clean it is zero too, see ``CLEAN``.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: want a number in [0, 1], got {eta}")
        alpha_t, sigma_t = self.coefficients(t)
        alpha_s, sigma_s = self.coefficients(s)
        variance = sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
        std = variance.clamp(min=0).sqrt()
        return eta * torch.where(sigma_s < CLEAN * sigma_t, 0.0, std)

    def transition(
        self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor, eta: float
    ) -> tuple[Tensor, Tensor]:
        """Mean (like x_t) and std (float64, t's shape) of p(x_s | x_t).

        The mean is alpha_s x0 + sqrt(sigma_s^2 - std^2) x1.
        """
        x0, x1 = self.split(x_t, output, t)
        alpha_s, sigma_s = self.coefficients(s)
        std = self.std(t, s, eta)
        direction = (sigma_s**2 - std**2).clamp(min=0).sqrt()
        return _like(alpha_s, x_t) * x0 + _like(direction, x_t) * x1, std


@dataclass(frozen=True)
class Diffusion(Process):
    """Variance-preserving diffusion on integer timesteps.

    (alpha, sigma) = (sqrt(abar), sqrt(1 - abar)).

    Args:
        alphas_cumprod: abar of every training timestep, (N,).
        final_alpha_cumprod: abar for times below 0, where DDIM's last step may land.
        prediction: what the network outputs: the noise, v = alpha x1 - sigma x0 (Salimans & Ho
            2022), or x0.
        clip_sample: clamp predicted x0 to [-clip_sample, clip_sample]; schedulers of pixel models
            ask for it.
    """

    alphas_cumprod: Tensor
    final_alpha_cumprod: float
    prediction: Prediction = "epsilon"
    clip_sample: float | None = None

    def __post_init__(self) -> None:
        known = get_args(Prediction)
        if self.prediction not in known:
            raise ValueError(f"prediction: want one of {known}, got {self.prediction!r}")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = t.to("cpu", torch.long)
        known = self.alphas_cumprod.double()[index.clamp(min=0)]
        final = known.new_tensor(self.final_alpha_cumprod)
        alpha_bar = torch.where(index < 0, final, known)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (_like(c, x_t) for c in self.coefficients(t))
        output = output.to(x_t.dtype)
        if self.prediction == "epsilon":
            x0 = (x_t - sigma * output) / alpha
            x1 = output
        elif self.prediction == "v_prediction":
            x0 = alpha * x_t - sigma * output
            x1 = alpha * output + sigma * x_t
        else:
            x0 = output
            x1 = (x_t - alpha * output) / sigma
        if self.clip_sample is not None:
            x0 = x0.clamp(-self.clip_sample, self.clip_sample)
        return x0, x1

    def target(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return x1
        if self.prediction == "sample":
            return x0
        alpha, sigma = self.coefficients(t)
        return _like(alpha, x0) * x1 - _like(sigma, x0) * x0


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow: x_t = (1 - t) x0 + t x1, t in [0, 1] (Liu et al. 2023).

    The network's output is v = x1 - x0.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to("cpu", torch.float64)
        return 1 - t, t

    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (_like(c, x_t) for c in self.coefficients(t))
        output = output.to(x_t.dtype)
        return x_t - sigma * output, x_t + alpha * output

    def target(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        return x1 - x0


@dataclass(frozen=True)
class FlowSDE(Flow):
    """Rectified flow with the steps of Flow-GRPO's SDE instead of the posterior's.

    Liu et al. 2025, arXiv 2505.05470.

    dx = [v + g^2 / (2t) (x + (1 - t) v)] dt + g dw with g = eta a sqrt(t / (1 - t)). At t = 1, or
    as near as schedulers begin, where g has no end, 1 - t is that of the next time. A step that
    ends almost clean is the ODE's, or finished media would keep noise.

    Args:
        a: the level of noise at eta = 1.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise ValueError(f"flow_sde: want a level of noise above 0, got {self.a}")

    def std(self, t: Tensor, s: Tensor, eta: float) -> Tensor:
        _, std = self._drift_and_std(t, s, eta)
        return std

    def transition(
        self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor, eta: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of one Euler-Maruyama step.

        The mean is x + (s - t) [v + g^2 / (2t) x1], the std g sqrt(t - s).
        """
        x0, x1 = self.split(x_t, output, t)
        drift, std = self._drift_and_std(t, s, eta)
        step = (s - t).to("cpu", torch.float64)
        return x_t + _like(step, x_t) * (x1 - x0 + _like(drift, x_t) * x1), std

    def _drift_and_std(self, t: Tensor, s: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """g^2 / (2t) and g sqrt(t - s), float64, of t's shape."""
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: want a number in [0, 1], got {eta}")
        t = t.to("cpu", torch.float64)
        s = s.to("cpu", torch.float64)
        nearest = torch.where(t < NEARLY_ONE, t, s)
        squared = (eta * self.a) ** 2 * t / (1 - nearest)
        squared = torch.where(s < CLEAN * t, 0.0, squared)
        return squared / (2 * t), (squared * (t - s)).sqrt()


def gaussian_log_prob(
    x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """log N(x; mean, std^2 I), (B, ...) -> (B,), in at least float32.

    The sum over latent elements is in float64.

    ``mean`` divides by the number of elements d, as ddpo-pytorch and flow_grpo do: every beta and
    clip range of that family is in those units (beta_sum = beta_mean / d, clip_sum = d clip_mean).
    ``sum`` is the density itself.
    """
    scale = _like(std, x.double())
    standard = (x.double() - mean.double()) / scale
    density = -0.5 * standard**2 - scale.log() - 0.5 * math.log(2 * math.pi)
    flat = density.flatten(1)
    reduced = flat.mean(1) if reduction == "mean" else flat.sum(1)
    return reduced.to(torch.promote_types(x.dtype, torch.float32))
