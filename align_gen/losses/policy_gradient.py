"""Clipped policy gradients: DDPO, after PPO.

Black et al., ICLR 2024, arXiv 2305.13301; Schulman et al. 2017.

With advantages relative to a group, and a penalty for leaving a reference: Flow-GRPO (Liu et al.
2025, arXiv 2505.05470).
"""

from typing import Literal

import torch
from torch import Tensor


def advantages(rewards: Tensor, group: int, limit: float, std: Tensor | None = None) -> Tensor:
    """(r - mean) / std among ``group`` siblings, within [-limit, limit]; (B,) in and out.

    Siblings are adjacent.

    A group whose rewards all tie has advantage 0. With ``std`` (), that of a whole step's rewards,
    groups that hardly differ are not blown up to the size of others.
    """
    if rewards.ndim != 1 or len(rewards) % group:
        raise ValueError(f"want rewards (B,), B a multiple of {group}, got {tuple(rewards.shape)}")
    each = rewards.view(-1, group)
    own, mean = torch.std_mean(each, 1, correction=0, keepdim=True)
    ties = each.amin(1, keepdim=True) == each.amax(
        1, keepdim=True
    )  # std of equal numbers is not always 0
    scale = torch.where(ties, 1.0, own if std is None else std)
    return torch.where(ties, 0.0, (each - mean) / scale).clamp(-limit, limit).flatten()


def clipped_policy_gradient(
    log_probs: Tensor, log_probs_old: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = exp(log pi - log pi_old).

    Tensors of any shape, broadcast.

    The gradient is 0 where rho has left the range in the direction that A asks for, and only there.
    """
    ratio = torch.exp(log_probs - log_probs_old.detach())
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def gaussian_kl(
    mean: Tensor, mean_ref: Tensor, std: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """KL(N(mean, std^2 I) || N(mean_ref, std^2 I)) = |mean - mean_ref|^2 / (2 std^2), as (B,).

    Reduced over latent elements as log-probabilities are, in float64. ``std`` is () or (B,), and
    above 0.
    """
    squared = (mean.double() - mean_ref.double()).square().flatten(1)
    reduced = squared.mean(1) if reduction == "mean" else squared.sum(1)
    return (reduced / (2 * std.to(mean.device, torch.float64) ** 2)).to(
        torch.promote_types(mean.dtype, torch.float32)
    )
