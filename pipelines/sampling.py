"""Sampling: trajectories with their log-probabilities, and finished media."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .base import Condition, Guidance, Model
from .process import Reduction, gaussian_log_prob

Generators = Generator | Sequence[Generator] | None


@dataclass(frozen=True)
class Rollout:
    """B trajectories of T steps.

    Attributes:
        latents: every x_t, noise first, (B, T+1, *latent), in at least float32.
        times: the (t, s) pair of each step, (T, 2).
        stochastic: indices of the S steps with std > 0; only these have a density.
        log_probs: log p(x_s | x_t) at the stored x_s on the stochastic steps, (B, S), likewise.
    """

    latents: Tensor
    times: Tensor
    stochastic: Tensor
    log_probs: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Rollout":
        """Some of the trajectories."""
        return Rollout(self.latents[rows], self.times, self.stochastic, self.log_probs[rows])

    @property
    def final(self) -> Tensor:
        """The finished latents, (B, *latent)."""
        return self.latents[:, -1]


def gaussian_noise(shape: Sequence[int], batch: int, generator: Generators) -> Tensor:
    """(batch, *shape) from N(0, I), on the CPU.

    With one generator a sample, no sample depends on its batch mates.
    """
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise ValueError(
                f"generator: want one, or one for each of {batch} samples, got {len(generator)}"
            )
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in generator])
    return torch.randn((batch, *shape), generator=generator)


def trajectory(
    model: Model,
    condition: Condition,
    times: Tensor,
    *,
    eta: float,
    guidance_scale: Guidance,
    generator: Generators,
    latents: Tensor | None,
    graph: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Yields (x, None, None) for the initial noise, then (x_s, mean, std) for each step.

    With ``graph``, the means of stochastic steps are differentiable, each by itself: x never is.
    """
    batch = len(condition)
    if latents is None:
        latents = gaussian_noise(condition.latent_shape, batch, generator)
    if latents.shape != (batch, *condition.latent_shape):
        raise ValueError(
            f"latents: want {(batch, *condition.latent_shape)}, got {tuple(latents.shape)}"
        )

    # Latents are float32 at least: steps of a bfloat16 sampler would round the noise away.
    x = latents.to(model.device, torch.promote_types(model.dtype, torch.float32))
    yield x, None, None
    for t, s in times:
        # A graph through a step without noise would hold memory, and no log-probability needs it.
        with torch.set_grad_enabled(graph and bool(model.process.std(t, s, eta) > 0)):
            output = model.predict(x, t, condition, guidance_scale)
            mean, std = model.process.transition(x, output, t, s, eta)
        x = mean.detach()
        # Drawn only where the step has noise: the generator's later numbers depend on it.
        if std > 0:
            x = x + std.to(x) * gaussian_noise(x.shape[1:], batch, generator).to(x)
        yield x, mean, std


def rollout(
    model: Model,
    condition: Condition,
    *,
    num_inference_steps: int = 50,
    eta: float = 1.0,
    guidance_scale: Guidance = 5.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    reduction: Reduction = "mean",
    graph: bool = False,
) -> Rollout:
    """Sample, and keep every latent and the log-probability of every stochastic step.

    Args:
        eta: 0 is the ODE (DDIM), 1 the DDPM posterior; in [0, 1].
        guidance_scale: classifier-free guidance; the policy is the *guided* model.
        generator: one, or a list of one a sample (then samples do not depend on their batch mates).
        latents: initial noise (B, *latent); drawn when not given.
        reduction: of log-probabilities over latent elements, see ``gaussian_log_prob``.
        graph: make the log-probabilities differentiable, each through its own step; memory then
            grows with the steps.
    """
    times = model.times(num_inference_steps, condition.latent_shape)
    steps = trajectory(
        model,
        condition,
        times,
        eta=eta,
        guidance_scale=guidance_scale,
        generator=generator,
        latents=latents,
        graph=graph,
    )
    visited, log_probs, stochastic = [], [], []
    for step, (x, mean, std) in enumerate(steps, start=-1):  # -1: the initial noise
        visited.append(x)
        if mean is not None and std is not None and std > 0:
            log_probs.append(gaussian_log_prob(x, mean, std, reduction))
            stochastic.append(step)

    # With eta = 0 there is no stochastic step, and the log-probabilities are (B, 0).
    none = torch.empty(len(condition), 0, device=visited[0].device)
    densities = torch.stack(log_probs, 1) if log_probs else none  # (B, S)
    indices = torch.tensor(stochastic, dtype=torch.long)
    return Rollout(torch.stack(visited, 1), times, indices, densities)


def step_transition(
    model: Model,
    trajectories: Rollout,
    step: int | Tensor,
    condition: Condition,
    *,
    eta: float,
    guidance_scale: Guidance,
    rows: slice | Tensor = slice(None),
) -> tuple[Tensor, Tensor, Tensor]:
    """One stored step under the model as it is now; differentiable, one call of the denoiser.

    ``condition`` holds the chosen ``rows`` only. A ``step`` for each of them, (b,), goes with
    ``rows`` of that shape.

    Returns:
        The stored x_s, and mean and std of p(x_s | x_t).

    Raises:
        ValueError: a step has std 0, so that there is no density.
    """
    t, s = trajectories.times[step].unbind(-1)
    # Latents are (B, T + 1, ...): entry k is where step k begins.
    x_t = trajectories.latents[rows, step]
    x_s = trajectories.latents[rows, step + 1]
    output = model.predict(x_t, t, condition, guidance_scale)
    mean, std = model.process.transition(x_t, output, t, s, eta)
    if not (std > 0).all():
        raise ValueError(
            f"step {step}: std is 0, so it has no density; use the rollout's stochastic steps"
        )
    return x_s, mean, std


def step_log_prob(
    model: Model,
    trajectories: Rollout,
    step: int | Tensor,
    condition: Condition,
    *,
    eta: float,
    guidance_scale: Guidance,
    reduction: Reduction = "mean",
    rows: slice | Tensor = slice(None),
) -> Tensor:
    """log p(x_s | x_t) of one stored step under the model as it is now, (b,); differentiable.

    Arguments and errors are those of ``step_transition``.
    """
    x_s, mean, std = step_transition(
        model,
        trajectories,
        step,
        condition,
        eta=eta,
        guidance_scale=guidance_scale,
        rows=rows,
    )
    return gaussian_log_prob(x_s, mean, std, reduction)


def sample(
    model: Model,
    condition: Condition,
    *,
    num_inference_steps: int = 50,
    eta: float = 0.0,
    guidance_scale: Guidance = 5.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Finished media in [0, 1], (B, 3, H, W) or (B, F, 3, H, W), on the CPU.

    ``batch_size`` bounds memory only.

    Args:
        eta: 0 is the ODE (DDIM), 1 the DDPM posterior; in [0, 1].
        generator: one, or a list of one a sample (then samples do not depend on their batch mates).
        latents: initial noise (B, *latent); drawn when not given.
        progress: called with the number of samples that were just finished.
    """
    times = model.times(num_inference_steps, condition.latent_shape)
    latents, generators = _a_row_each(condition, generator, latents)
    media = []
    for start in range(0, len(condition), batch_size):
        rows = slice(start, start + batch_size)
        part = condition[rows]
        steps = trajectory(
            model,
            part,
            times,
            eta=eta,
            guidance_scale=guidance_scale,
            generator=generators[rows],
            latents=None if latents is None else latents[rows],
        )
        for x, _, _ in steps:
            final = x
        with torch.no_grad():
            # To the CPU batch by batch: a gallery of videos would not fit on a device.
            media.append(model.decode(final).float().cpu())
        if progress is not None:
            progress(len(part))
    return torch.cat(media)


def _a_row_each(
    condition: Condition, generator: Generators, latents: Tensor | None
) -> tuple[Tensor | None, Sequence[Generator]]:
    """Latents, where they are known before sampling, and a generator for each row.

    From one generator, everything is drawn before the first batch, whose size then changes nothing.
    """
    count = len(condition)
    if isinstance(generator, Sequence) and len(generator) != count:
        raise ValueError(
            f"generator: want one, or one for each of {count} samples, got {len(generator)}"
        )
    if latents is not None and len(latents) != count:
        raise ValueError(
            f"latents: want one for each of {count} samples, got {tuple(latents.shape)}"
        )
    if isinstance(generator, Sequence):
        return latents, generator
    if latents is None:
        latents = gaussian_noise(condition.latent_shape, count, generator)
    # A generator a row, seeded from the one given: draws then do not depend on the batch size.
    seeds = torch.randint(2**31, (count,), generator=generator).tolist()
    return latents, [Generator().manual_seed(seed) for seed in seeds]
