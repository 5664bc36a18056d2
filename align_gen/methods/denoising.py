"""What regression methods share: how far the network is from denoising given latents, sample by
sample.

They train the conditional branch: a family that guides by comparison learns without guidance, with
captions dropped at random so that its unconditional branch stays; guidance that is an input of the
network stays what sampling gives it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from ..errors import UserError
from ..pipelines import Condition, Diffusion, Model
from ..pipelines.seeding import generator
from .batches import Sampling, encode
from .state import TrainState

Times = Literal["uniform", "logit_normal"]


def noise_generators(state: TrainState, ids: Sequence[int], repeat: str = "") -> list[Generator]:
    """One a sample, a function of (seed, step, id) alone; ``repeat`` tells several draws of one
    step apart.
    """
    return [generator(state.seed, f"denoising{repeat}", state.step, place) for place in ids]


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
    return uniform.clamp(1e-4, 1 - 1e-4)


def draw_noise(latents: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Standard normal noise of the latents' shape, a sample from each generator."""
    drawn = [
        torch.randn(latents.shape[1:], generator=each, dtype=torch.float32) for each in generators
    ]
    return torch.stack(drawn).to(latents)


def squared_errors(
    model: Model,
    latents: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition,
    sampling: Sampling,
) -> Tensor:
    """Mean over latent elements of |output - target|^2 at x_t, (B,) float32; differentiable. One
    call, B rows.
    """
    x_t = model.process.add_noise(latents, noise, t)
    output = model.predict(x_t, t, condition, conditional_guidance(model, sampling)).float()
    return mean_square(output, model.process.target(latents, noise, t).float())


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
    return encode(
        model,
        [text if keep else "" for text, keep in zip(condition.prompts, kept, strict=True)],
        sampling,
    )
