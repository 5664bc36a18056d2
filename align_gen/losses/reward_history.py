"""Rewards of a prompt remembered over steps, as a baseline for new samples.

Black et al., ICLR 2024, arXiv 2305.13301.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

History = dict[
    str, list[float]
]  # a prompt's latest rewards, oldest first; plain, so that JSON keeps it to the last bit


def remembered(
    history: Mapping[str, list[float]], prompts: Sequence[str], rewards: Tensor, size: int
) -> History:
    """The history with a step's rewards added, the newest ``size`` of each prompt kept.

    ``history`` itself stays as it is. It grows with the number of prompts, not of steps.
    """
    if rewards.shape != (len(prompts),):
        raise ValueError(
            f"want rewards ({len(prompts)},), one for each prompt, got {tuple(rewards.shape)}"
        )
    grown = dict(history)
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        grown[prompt] = [*grown.get(prompt, ()), reward][-size:]
    return grown


def history_advantages(
    history: Mapping[str, Sequence[float]],
    prompts: Sequence[str],
    rewards: Tensor,
    everyone: Tensor,
    min_count: int,
    limit: float,
) -> Tensor:
    """(r - mean) / std of a prompt's remembered rewards, within [-limit, limit]; (B,) in and out.

    A prompt with fewer than ``min_count`` of them is held against ``everyone``, all rewards of the
    step. Where all of those tie, the advantage is 0.

    Args:
        history: these rewards included, see ``remembered``.
    """
    found = []
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        own = torch.tensor(history[prompt], dtype=torch.float64)
        known = own if len(own) >= min_count else everyone.double().cpu()
        std, mean = torch.std_mean(known, correction=0)
        found.append(0.0 if known.min() == known.max() else ((reward - mean) / std).item())
    return rewards.new_tensor(found).clamp(-limit, limit)
