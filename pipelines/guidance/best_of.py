"""Steering sampling by a reward. A guide takes a plain callable ``(media, prompts) -> (B,)`` or a
reward set.
"""

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
    """

    reward: Callable[..., Any]
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
        """Like ``pipelines.sample``; every sample's generator is used n times in turn."""
        if self.n < 1:
            raise ValueError(f"BestOf n: want at least 1, got {self.n}")
        best, best_score = None, None
        for _ in range(self.n):
            media = plain_sample(model, condition, generator=generator, **options)
            scores = self.reward(media, condition.prompts)
            score = torch.as_tensor(getattr(scores, "combined", scores)).float().cpu()
            if best is None or best_score is None:
                best, best_score = media, score
            else:
                better = score > best_score
                best[better], best_score[better] = media[better], score[better]
        if progress is not None:
            progress(len(condition))
        assert best is not None
        return best
