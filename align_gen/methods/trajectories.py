"""Drawing a step's trajectories, and their likelihood under the model as it is now."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..pipelines import Condition, Rollout, gaussian_log_prob, rollout
from ..pipelines.process import Reduction
from ..pipelines.sampling import step_transition
from .batches import Prompts, Sampling
from .state import TrainState, slices


@dataclass(frozen=True)
class Drawn:
    """B trajectories of S stochastic steps each, and what it takes to run them again.

    Siblings, the rows of one prompt, are adjacent. Indexing goes by rows.

    Attributes:
        state: whose model drew them.
        rollout: latents and log-probabilities as they were drawn.
        media: what they ended in, (B, 3, H, W) or (B, F, 3, H, W) in [0, 1].
        condition: encoded prompts that the denoiser saw, B rows.
        texts: the prompts, B of them.
        ids: places of the rows in the run's whole stream of pictures; they seed noise.
        sampling: how they were drawn.
        reduction: of log-probabilities over latent elements.
    """

    state: TrainState
    rollout: Rollout
    media: Tensor
    condition: Condition
    texts: list[str]
    ids: list[int]
    sampling: Sampling
    reduction: Reduction

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> "Drawn":
        numbers = rows.tolist()
        return replace(
            self,
            rollout=self.rollout[rows],
            media=self.media[rows.to(self.media.device)],
            condition=self.condition[rows],
            texts=[self.texts[row] for row in numbers],
            ids=[self.ids[row] for row in numbers],
        )

    @property
    def final(self) -> Tensor:
        """The finished latents, (B, *latent)."""
        return self.rollout.final

    @property
    def steps(self) -> int:
        """How many stochastic steps a trajectory has: S."""
        return len(self.rollout.stochastic)

    @property
    def log_probs_old(self) -> Tensor:
        """log p(x_s | x_t) of every stochastic step as it was drawn, (B, S)."""
        return self.rollout.log_probs

    def transition(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Some stored transitions under the model as it is now, in one call of the denoiser.

        Args:
            rows: of the trajectories, (b,).
            columns: which stochastic step of each, (b,).

        Returns:
            log p(x_s | x_t) (b,), differentiable; its mean (b, *latent) and its std (b,).
        """
        x_s, mean, std = step_transition(
            self.state.model,
            self.rollout,
            self.rollout.stochastic[columns],
            self.condition[rows],
            eta=self.sampling.eta,
            guidance_scale=self.sampling.guidance_scale,
            rows=rows,
        )
        return gaussian_log_prob(x_s, mean, std, self.reduction), mean, std

    def log_probs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """log p(x_s | x_t) of some transitions under the model as it is now; see ``transition``."""
        log_probs, _, _ = self.transition(rows, columns)
        return log_probs

    @torch.no_grad()
    def replay(self) -> Tensor:
        """Log-probabilities of all transitions under the model as it is now, (B, S)."""
        log_probs = torch.empty_like(self.log_probs_old)
        for rows, columns in self.transitions():
            log_probs[rows, columns] = self.log_probs(rows, columns)
        return log_probs

    def transitions(
        self,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        size: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, columns) of every transition of these rows and stochastic steps, each (b,).

        At most ``size`` at a time, a micro-batch without it. They come step after step; several
        steps share a call where there are few rows.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        columns = torch.arange(self.steps) if columns is None else columns
        for part in slices(len(rows) * len(columns), size or self.state.micro_batch):
            numbers = torch.arange(part.start, part.stop)
            # Number = column * rows + row: consecutive numbers share a step, and so a time.
            yield rows[numbers % len(rows)], columns[numbers // len(rows)]


def draw(
    state: TrainState,
    batch: Prompts,
    group: int,
    sampling: Sampling,
    *,
    reduction: Reduction = "mean",
    graph: bool = False,
) -> Drawn:
    """Draw ``group`` trajectories of every prompt with the current policy, siblings adjacent.

    Each has a generator of its own, a function of the run's seed, the step, the prompt's number in
    the run's stream and the sibling's number, so that neither the micro-batch nor the number of
    processes changes what is drawn.

    Args:
        reduction: of log-probabilities over latent elements.
        graph: keep the graph of the log-probabilities, see ``rollout``; that of the media never is.
    """
    condition = batch.condition.repeat(group)

    # Named by the prompt's number in the run's stream, and not by its row in this process.
    names = [f"{unit}/{sibling}" for unit in batch.ids for sibling in range(group)]
    generators = state.generators("rollout", names)

    rollouts = []
    media = []
    for rows in slices(len(condition), state.micro_batch):
        part = rollout(
            state.model,
            condition[rows],
            num_inference_steps=sampling.num_inference_steps,
            eta=sampling.eta,
            guidance_scale=sampling.guidance_scale,
            generator=generators[rows],
            reduction=reduction,
            graph=graph,
        )
        rollouts.append(part)
        with torch.no_grad():
            # In the same micro-batches: a VAE takes no more pictures at once than the denoiser.
            media.append(state.model.decode(part.final).float())

    return Drawn(
        state,
        concatenate(rollouts),
        torch.cat(media),
        condition,
        texts=[text for text in batch.texts for _ in range(group)],
        ids=[unit * group + sibling for unit in batch.ids for sibling in range(group)],
        sampling=sampling,
        reduction=reduction,
    )


def concatenate(parts: list[Rollout]) -> Rollout:
    """Rollouts over the same times as one, in order."""
    latents = torch.cat([part.latents for part in parts])
    log_probs = torch.cat([part.log_probs for part in parts])
    return Rollout(latents, parts[0].times, parts[0].stochastic, log_probs)
