"""What wrappers share that hear several opinions of a picture."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..base import RewardHead


class UncertainHead(RewardHead):
    """A score that is the mean of several opinions, less ``penalty`` of their deviations; it tells
    the deviation too.

    Deviations are those of a population (Eisenstein et al. 2023, arXiv 2312.09244, mean - k std).
    """

    penalty: float

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        """(opinions, B)."""
        raise NotImplementedError

    def judge(self, media: Tensor, prompts: Sequence[str], **context: Any) -> tuple[Tensor, ...]:
        found = self.opinions(media, prompts, **context)
        spread = found.std(0, correction=0)
        return found.mean(0) - self.penalty * spread, spread

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return self.judge(media, prompts, **context)[0]
