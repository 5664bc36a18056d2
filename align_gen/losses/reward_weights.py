"""Weights of samples in regression on rewarded samples: RWR's, and a choice of one of several.

Rewards are (B,), siblings of one prompt adjacent, ``group`` of them each.
"""

import math

from torch import Tensor

from .policy_gradient import advantages


def softmax_weights(rewards: Tensor, group: int, beta: float, cap: float | None = None) -> Tensor:
    """G softmax(r / beta) among siblings, at most ``cap``; (B,).

    The mean is 1 where the cap does not bind.

    Self-normalised weights of the tilt p exp(r / beta) / Z (Peters & Schaal 2007; Black et al.,
    arXiv 2305.13301, for diffusion). Equal rewards weigh exactly 1; a constant added to a prompt's
    rewards changes nothing.
    """
    each = _siblings(rewards, group)
    tilt = ((each - each.amax(1, keepdim=True)) / beta).exp()
    return (tilt / tilt.mean(1, keepdim=True)).flatten().clamp(max=math.inf if cap is None else cap)


def exponential_weights(
    rewards: Tensor, group: int, beta: float, cap: float | None = None
) -> Tensor:
    """exp(z / beta), at most ``cap``, z the reward in standard deviations from the siblings' mean.

    (B,). Flow-RWR (Liu et al., arXiv 2501.13918, eq. 9) with rewards of any unit; equal rewards
    weigh 1.
    """
    return (
        (advantages(rewards, group, math.inf) / beta)
        .exp()
        .clamp(max=math.inf if cap is None else cap)
    )


def effective_sample_size(weights: Tensor, group: int) -> Tensor:
    """(sum w)^2 / sum w^2 of every group, (B / G,), from 1 to G.

    So many equal weights would say as much.
    """
    each = _siblings(weights, group)
    return each.sum(1).square() / each.square().sum(1)


def choice_probabilities(rewards: Tensor, group: int, temperature: float) -> Tensor:
    """exp(r / temperature) / sum over siblings, (B,): the chance that a sibling is chosen.

    K-way Bradley-Terry, by which people curate what models learn from (Ferbach et al., arXiv
    2407.09499).
    """
    return softmax_weights(rewards, group, temperature) / group


def _siblings(values: Tensor, group: int) -> Tensor:
    """(B,) -> (B / G, G)."""
    if values.ndim != 1 or len(values) % group:
        raise ValueError(f"want values (B,), B a multiple of {group}, got {tuple(values.shape)}")
    return values.view(-1, group)
