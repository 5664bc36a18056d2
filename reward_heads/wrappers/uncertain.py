"""Base of the wrappers that ask for several opinions of a picture."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..base import RewardHead


class UncertainHead(RewardHead):
    """The mean of several opinions, less ``penalty`` of their deviations.

    The deviation is given too, as the score's uncertainty.

    Deviations are those of a population (Eisenstein et al. 2023, arXiv 2312.09244, mean - k std).
    """

    penalty: float

    def opinions(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        """Scores by several opinions, (opinions, B)."""
        raise NotImplementedError

    def score_and_std(
        self, media: Tensor, prompts: Sequence[str], **context: Any
    ) -> tuple[Tensor, ...]:
        opinions = self.opinions(media, prompts, **context)
        spread = opinions.std(0, correction=0)
        return opinions.mean(0) - self.penalty * spread, spread

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        return self.score_and_std(media, prompts, **context)[0]
