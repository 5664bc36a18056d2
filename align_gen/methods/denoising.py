"""Noising latents to random times: what methods that learn by denoising share.

They train the conditional branch: a family that guides by comparison learns without guidance, with
captions dropped at random so that its unconditional branch stays; guidance that is an input of the
network stays what sampling gives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from ..errors import UserError
from ..pipelines import Condition, Diffusion, Model
from .base import MethodOptions
from .batches import Sampling, encode
from .state import TrainState

Times = Literal["uniform", "logit_normal"]


class DenoisingOptions(MethodOptions):
    """Options of methods that learn by denoising, without likelihoods."""

    times: Times = Field(
        "uniform",
        description="How training times are drawn; logit_normal is for flow models alone.",
    )
    dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of captions left empty, which keeps the branch that guidance uses.",
    )


@dataclass(frozen=True)
class Noised:
    """B latents noised to training times, and what a perfect network would say of them.

    Attributes:
        x_t: noised latents, (B, *latent).
        t: their times, (B,), in the process's unit.
        target: what a perfect network outputs there, (B, *latent) float32.
        condition: encoded prompts for the denoiser, B rows; dropped captions are empty.
        guidance: the scale that regression runs the network with.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    condition: Condition
    guidance: float

    def __getitem__(self, rows: slice) -> "Noised":
        return Noised(
            self.x_t[rows], self.t[rows], self.target[rows], self.condition[rows], self.guidance
        )

    def __len__(self) -> int:
        return len(self.x_t)

    def output(self, model: Model) -> Tensor:
        """What the network says, (B, *latent) float32; differentiable, one call."""
        return model.predict(self.x_t, self.t, self.condition, self.guidance).float()

    def squared_errors(self, model: Model) -> Tensor:
        """Mean over latent elements of |output - target|^2, (B,); differentiable, one call."""
        return mean_square(self.output(model), self.target)


def noised(
    state: TrainState,
    latents: Tensor,
    condition: Condition,
    ids: Sequence[int],
    options: DenoisingOptions,
    sampling: Sampling,
    repeat: str = "",
) -> Noised:
    """Noise latents to random times, a function of the run's seed, the step and ``ids`` alone.

    Args:
        latents: (B, *latent), or k times as many: row i is then noised as row i mod B is.
        condition: B rows.
        ids: places of the rows in the run's whole stream of pictures, B of them.
        options: how times are drawn, and the share of captions left empty.
        repeat: tells several draws of one step apart; each has other noise and other times.
    """
    model = state.model
    generators = state.generators(f"denoising{repeat}", ids)
    times = len(latents) // max(len(ids), 1)

    # This order of draws is part of what a seed means.
    t = draw_times(model, generators, options.times)
    noise = draw_noise(latents[: len(ids)], generators)
    condition = drop_captions(model, condition, generators, options.dropout, sampling)
    # Both pictures of a pair get one noise and one time, so that their errors can be compared.
    if times > 1:
        t = t.repeat(times)
        noise = torch.cat([noise] * times)
        condition = Condition.cat([condition] * times)

    return Noised(
        model.process.add_noise(latents, noise, t),
        t,
        model.process.target(latents, noise, t).float(),
        condition,
        conditional_guidance(model, sampling),
    )


def draw_times(model: Model, generators: Sequence[Generator], kind: Times = "uniform") -> Tensor:
    """Training times (B,), float64 on the CPU, in the process's unit.

    Diffusion: a timestep of 0 .. N - 1, all alike. Flow: uniform in (0, 1), or sigmoid of a
    standard normal (Esser et al. 2024, arXiv 2403.03206).
    """
    uniform = torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in generators])
    process = model.process
    if isinstance(process, Diffusion):
        if kind != "uniform":
            raise UserError(f"method.times: {kind} is for flow models; want uniform")
        return (uniform * len(process.alphas_cumprod)).floor()
    if kind == "logit_normal":
        return torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).sigmoid()
    # At 0 and 1 exactly, x_t is all picture or all noise, and the other cannot be recovered.
    return uniform.clamp(1e-4, 1 - 1e-4)


def draw_noise(latents: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Standard normal noise of the latents' shape, a sample from each generator."""
    drawn = [
        torch.randn(latents.shape[1:], generator=each, dtype=torch.float32) for each in generators
    ]
    return torch.stack(drawn).to(latents)


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Mean over latent elements of (a - b)^2, (B, ...) -> (B,)."""
    return (a - b).square().flatten(1).mean(1)


def conditional_guidance(model: Model, sampling: Sampling) -> float:
    """The scale that regression runs the network with."""
    scale = sampling.guidance_scale
    return 1.0 if model.rows_per_sample(scale) > 1 else scale


def drop_captions(
    model: Model,
    condition: Condition,
    generators: Sequence[Generator],
    share: float,
    sampling: Sampling,
) -> Condition:
    """The rows' condition, with that share of their captions empty at random.

    Raises:
        UserError: captions are to be dropped of a model that wants pictures beside them.
    """
    kept = [torch.rand((), generator=each).item() >= share for each in generators]
    if all(kept):
        return condition
    if model.required_inputs:
        raise UserError(
            f"method.dropout: captions stand beside {model.required_inputs} in this family; want 0"
        )
    texts = [text if keep else "" for text, keep in zip(condition.prompts, kept, strict=True)]
    return encode(model, texts, sampling)
