"""What methods that weigh trajectories by their likelihood share: drawing them, and their
likelihood as it is now.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..pipelines import Condition, Rollout, rollout
from ..pipelines.process import Reduction
from ..pipelines.sampling import step_log_prob
from ..pipelines.seeding import generator
from .batches import Prompts, Sampling
from .state import TrainState


def siblings(
    state: TrainState, batch: Prompts, group: int
) -> tuple[Condition, list[str], list[Generator]]:
    """``group`` rows of each prompt, adjacent: their condition and texts, and a generator for each,
    of its own.
    """
    texts = [text for text in batch.texts for _ in range(group)]
    places = [f"{i}/{j}" for i in batch.ids for j in range(group)]
    return (
        batch.condition.repeat(group),
        texts,
        [generator(state.seed, "rollout", state.step, it) for it in places],
    )


def draw(
    state: TrainState,
    condition: Condition,
    generators: list[Generator],
    sampling: Sampling,
    reduction: Reduction,
    graph: bool = False,
) -> tuple[Rollout, Tensor]:
    """Trajectories of every row of the condition, and their media, (B, 3, H, W) or of videos.

    ``graph`` keeps that of the log-probabilities, see ``rollout``; of the media none is kept.
    """
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
            graph=graph,
        )
        with torch.no_grad():
            parts.append((drawn, state.model.decode(drawn.final).float()))
    return concatenate([drawn for drawn, _ in parts]), torch.cat([media for _, media in parts])


@torch.no_grad()
def replay(
    state: TrainState,
    samples: Rollout,
    condition: Condition,
    sampling: Sampling,
    reduction: Reduction,
) -> Tensor:
    """Log-probabilities of the stored trajectories under the model as it is now, (B, S)."""
    found = torch.empty_like(samples.log_probs)
    for rows, columns in transitions(len(condition), len(samples.stochastic), state.micro_batch):
        found[rows, columns] = log_probs_of(
            state, samples, rows, columns, condition, sampling, reduction
        )
    return found


def log_probs_of(
    state: TrainState,
    samples: Rollout,
    rows: Tensor,
    columns: Tensor,
    condition: Condition,
    sampling: Sampling,
    reduction: Reduction,
) -> Tensor:
    """Of some transitions, one call of the denoiser: column c is the c-th stochastic step; (b,),
    differentiable.
    """
    return step_log_prob(
        state.model,
        samples,
        samples.stochastic[columns],
        condition[rows],
        eta=sampling.eta,
        guidance_scale=sampling.guidance_scale,
        reduction=reduction,
        rows=rows,
    )


def transitions(rows: int, columns: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, columns) of every transition, at most ``size`` at a time: step after step, several
    where few rows are.
    """
    for places in slices(rows * columns, size):
        part = torch.arange(places.start, places.stop)
        yield part % rows, part // rows


def slices(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover range(total)."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def concatenate(parts: list[Rollout]) -> Rollout:
    """Rollouts over the same times as one, in order."""
    latents = torch.cat([part.latents for part in parts])
    return Rollout(
        latents, parts[0].times, parts[0].stochastic, torch.cat([part.log_probs for part in parts])
    )
