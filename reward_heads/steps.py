"""Rewards of a trajectory's steps, bounded so that more steps cannot earn more (Gao et al. 2024,
arXiv 2410.15115).

With rho_k the reward of the picture predicted at step k, a plain sum over steps pays for early good
guesses again and again.
"""

import torch
from torch import Tensor


def clip(rewards: Tensor, threshold: float | Tensor) -> Tensor:
    """min(r - threshold, 0), (..., K): a good step earns nothing, a bad one costs."""
    return (rewards - threshold).clamp(max=0)


def delta(rewards: Tensor) -> Tensor:
    """r_k - r_{k+1}, the last as it is, (..., K): the return from step k on telescopes to r_k,
    whatever follows.
    """
    return rewards - torch.cat([rewards[..., 1:], torch.zeros_like(rewards[..., :1])], -1)


def improvement(rewards: Tensor) -> Tensor:
    """r_{k+1} - r_k, (..., K - 1): sums to the last less the first, so that it moves no optimum
    (potential shaping).
    """
    return rewards.diff(dim=-1)
