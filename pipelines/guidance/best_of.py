"""The best of several samples by a reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..base import Condition, Model
from ..sampling import sample as plain_sample


@dataclass(frozen=True)
class BestOf:
    """The best of n samples by the reward: the strongest simple baseline, at n times the cost.

    Candidate 0 is the sample that would have been drawn without guidance, so the reward never
    falls.

    Attributes:
        reward: a callable ``(media, prompts) -> (B,)``, higher is better, or a reward set. To
            ``align_gen.sample`` it may also be a name, or names, weights and options as
            ``align_gen.score`` takes them.
        n: candidates of each sample, from 1.
    """

    reward: Any
    n: int = 4

    def sample(
        self,
        model: Model,
        condition: Condition,
        *,
        generator: Sequence[Generator],
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample as ``pipelines.sample`` does; every sample's generator is used n times in turn.

        Raises:
            ValueError: n is below 1, the reward cannot be called, or it gives no finite (B,).
        """
        if self.n < 1:
            raise ValueError(f"BestOf n: want at least 1, got {self.n}")
        if not callable(self.reward):
            raise ValueError(
                "BestOf reward: want a callable (media, prompts) -> (B,) or a reward set, "
                f"got {self.reward!r}"
            )
        best = plain_sample(model, condition, generator=generator, **options)
        best_score = self._score(best, condition.prompts)
        # Rows are replaced in place, so that no more than two candidates are ever in memory.
        for _ in range(1, self.n):
            media = plain_sample(model, condition, generator=generator, **options)
            score = self._score(media, condition.prompts)
            # Of equal scores the earlier candidate stays, the plain sample first of all.
            better = score > best_score
            best[better] = media[better]
            best_score[better] = score[better]
        if progress is not None:
            progress(len(condition))
        return best

    def _score(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward of each sample, (B,) float32 on the CPU; a copy, which may be written to."""
        scores = self.reward(media, prompts)
        score = torch.as_tensor(getattr(scores, "combined", scores)).float().cpu()
        if score.shape != (len(media),):
            raise ValueError(
                f"BestOf reward: want a score a sample, ({len(media)},), got {tuple(score.shape)}"
            )
        if not bool(score.isfinite().all()):
            raise ValueError(f"BestOf reward: want finite scores, got {score.tolist()}")
        return score.clone()
