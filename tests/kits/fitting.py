"""Where plain denoising comes to rest on the toys, in closed form."""

import math
from typing import Any

import torch
from torch import Tensor

from align_gen.pipelines import Diffusion, Model, rollout
from align_gen.pipelines.families.toy import Toy, toy_diffusion
from tests.kits.methods import STEPS


class Averaging(torch.optim.SGD):
    """Step sizes rate / 1, rate / 2, ...: where the loss is (s - y)^2 / (2 rate), s is the mean of
    all y so far.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        rate = group["lr"]
        group["taken"] = group.get("taken", 0) + 1
        group["lr"] = rate / group["taken"]
        super().step(closure)
        group["lr"] = rate


def short() -> Toy:
    """N(0, 1) under every 250th time of Stable Diffusion's schedule: training has the four times
    that sampling has.

    It predicts x0, so that the loss is (x0 - x0hat - shift)^2 and every time's shift is learned
    equally fast.
    """
    model = toy_diffusion()
    model.process = Diffusion(model.process.alphas_cumprod[249::250], 1.0, "sample")  # type: ignore[attr-defined]
    model.train_full()
    return model


def quantiles(count: int) -> Tensor:
    """The standard normal's, as pictures: their moments are its own, not a sample's."""
    return torch.special.ndtri((torch.arange(count) + 0.5) / count).view(-1, 1, 1, 1)


def fitted_shifts(model: Model, mean: float) -> list[float]:
    """Of every time, E[x0 - E_ref[x0 | x_t]] over data of this mean: mean (1 - alpha^2); E_ref[x0 |
    x_t] = alpha x_t.

    With it, the denoiser is that of N(mean, 1): mean + alpha (x_t - alpha mean).
    """
    times = torch.arange(STEPS)
    alphas = model.process.coefficients(times)[0]
    return [mean * (1 - float(alpha) ** 2) for alpha in alphas]


def chain(model: Model) -> list[tuple[float, float]]:
    """Of every step of the reference's chain, the slope of its mean and its deviation."""
    points = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    condition = model.encode_prompts(["a", "a"])
    steps = []
    for t, s in model.times(STEPS, (1, 1, 1)):
        with model.as_reference():
            output = model.predict(points, t, condition, 1.0)
            means, std = model.process.transition(points, output, t, s, 1.0)
        steps.append(((means[1] - means[0]).item(), std.item()))
    return steps


def fitted_mean(model: Model, mean: float) -> float:
    """What the sampler makes of those shifts: mean (1 - alpha_T prod m_t), m_t the slope of step
    t's mean.

    Were x_T drawn around alpha_T mean, every x_t would lie around alpha_t mean; it is drawn around
    0.
    """
    first = model.times(STEPS, (1, 1, 1))[0, 0]
    missing = mean * float(model.process.coefficients(first)[0])
    for slope, _ in chain(model):
        missing *= slope
    return mean - missing


def sample_std(model: Model) -> float:
    """Of what the sampler draws, from V <- m_t^2 V + std_t^2 and V = 1: few steps make it narrower
    than the data.
    """
    variance = 1.0
    for slope, std in chain(model):
        variance = slope**2 * variance + std**2
    return math.sqrt(variance)


def distance_moved(model: Model) -> float:
    """How far the policy's samples lie from the reference's: the same noise gives the same sample,
    shifted.
    """
    condition = model.encode_prompts(["a"] * 4)

    def drawn() -> Tensor:
        g = torch.Generator().manual_seed(5)
        return rollout(model, condition, num_inference_steps=STEPS, generator=g).final

    policy = drawn()
    with model.as_reference():
        return (policy - drawn()).mean().item()
