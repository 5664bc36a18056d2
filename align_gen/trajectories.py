"""What methods that weigh trajectories by their likelihood share: drawing them, and their likelihood as it is now."""

import torch
from torch import Generator, Tensor

from .batches import Sampling
from .pipelines import Condition, Rollout, rollout
from .pipelines.process import Reduction
from .pipelines.sampling import step_log_prob
from .state import TrainState


def draw(
    state: TrainState, condition: Condition, generators: list[Generator], sampling: Sampling, reduction: Reduction
) -> tuple[Rollout, Tensor]:
    """Trajectories of every row of the condition, and their media, (B, 3, H, W) or of videos; no gradient is kept."""
    parts = []
    for rows in slices(len(condition), state.micro_batch):
        drawn = rollout(
            state.model,
            condition[rows],
            num_inference_steps=sampling.num_inference_steps,
            eta=sampling.eta,
            guidance_scale=sampling.guidance_scale,
            generator=generators[rows],
            reduction=reduction,
        )
        with torch.no_grad():
            parts.append((drawn, state.model.decode(drawn.final).float()))
    return concatenate([drawn for drawn, _ in parts]), torch.cat([media for _, media in parts])


@torch.no_grad()
def replay(
    state: TrainState, samples: Rollout, condition: Condition, sampling: Sampling, reduction: Reduction
) -> Tensor:
    """Log-probabilities of the stored trajectories under the model as it is now, (B, S)."""
    columns = []
    for step in samples.stochastic.tolist():
        parts = [
            step_log_prob(
                state.model,
                samples,
                step,
                condition[rows],
                eta=sampling.eta,
                guidance_scale=sampling.guidance_scale,
                reduction=reduction,
                rows=rows,
            )
            for rows in slices(len(condition), state.micro_batch)
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1)


def slices(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover range(total)."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def concatenate(parts: list[Rollout]) -> Rollout:
    """Rollouts over the same times as one, in order."""
    latents = torch.cat([part.latents for part in parts])
    return Rollout(latents, parts[0].times, parts[0].stochastic, torch.cat([part.log_probs for part in parts]))
