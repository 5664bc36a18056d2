"""A reward that carries no information about its picture: the control of an experiment."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ..pipelines.seeding import generator
from ..reward_heads import RewardSet, Scores


@dataclass
class Shuffled(RewardSet):
    """Real rewards, dealt out at random among the samples of each prompt.

    Their distribution within every prompt is untouched, so the optimisation is as strong as with
    the real ones. The shuffle is a function of the scores themselves, so that a resumed run deals
    them out alike.
    """

    seed: int = 0

    @classmethod
    def of(cls, rewards: RewardSet, seed: int) -> "Shuffled":
        """Wrap a reward set, whose rewards are then dealt out by this seed."""
        same = {each.name: getattr(rewards, each.name) for each in fields(rewards)}
        return cls(**same, seed=seed)

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Scores:
        scores = super().__call__(media, prompts, **context)
        key = sha256(scores.combined.cpu().numpy().tobytes()).hexdigest()
        order = torch.arange(len(prompts))
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([i for i, other in enumerate(prompts) if other == prompt])
            dealer = generator(self.seed, "placebo", 0, key + prompt)
            order[rows] = rows[torch.randperm(len(rows), generator=dealer)]
        combined = scores.combined[order.to(scores.combined.device)]
        return Scores(combined, scores.heads, scores.uncertainty)
