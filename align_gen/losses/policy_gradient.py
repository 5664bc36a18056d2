"""Clipped policy gradients: DDPO (Black et al., ICLR 2024, arXiv 2305.13301), after PPO (Schulman et al. 2017)."""

import torch
from torch import Tensor


def advantages(rewards: Tensor, group: int, limit: float) -> Tensor:
    """(r - mean) / std of a sample's ``group`` siblings, within [-limit, limit]; (B,) in and out, siblings adjacent.

    A group whose rewards all tie has advantage 0.
    """
    if rewards.ndim != 1 or len(rewards) % group:
        raise ValueError(f"want rewards (B,), B a multiple of {group}, got {tuple(rewards.shape)}")
    each = rewards.view(-1, group)
    std, mean = torch.std_mean(each, 1, correction=0, keepdim=True)
    ties = each.amin(1, keepdim=True) == each.amax(1, keepdim=True)  # std of equal numbers is not always 0
    return torch.where(ties, 0.0, (each - mean) / torch.where(ties, 1.0, std)).clamp(-limit, limit).flatten()


def clipped_policy_gradient(log_probs: Tensor, log_probs_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = exp(log pi - log pi_old); any shape, broadcast.

    The gradient is 0 where rho has left the range in the direction that A asks for, and only there.
    """
    ratio = torch.exp(log_probs - log_probs_old.detach())
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
