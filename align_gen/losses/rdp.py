"""Reward difference prediction with a proximal update: PRDP.

Deng et al., CVPR 2024, arXiv 2402.08714.

One prompt, B samples, S stochastic denoising steps. rhat_{i,t} = log pi_theta - log pi_ref of step
t of sample i; a sample's rhat is the *mean* over its steps, as in the paper's listing (Supp. G).
For a pair with reward gap dr > 0,

    loss = max(u^2, v^2),  u = drhat - dr / beta,

v the same with each rhat_{i,t} clipped to within ``clip`` of its old value.
"""

import torch
from torch import Tensor


def _pair_errors(
    log_probs: Tensor,
    log_probs_old: Tensor,
    log_probs_ref: Tensor,
    rewards: Tensor,
    beta: float,
    clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(winners, losers, u, v) of the P ordered pairs with a positive reward gap."""
    if log_probs.ndim != 2 or rewards.shape != log_probs.shape[:1]:
        raise ValueError(
            "want log_probs (B, S) and rewards (B,), "
            f"got {tuple(log_probs.shape)}, {tuple(rewards.shape)}"
        )
    ratio = log_probs - log_probs_ref
    ratio_old = log_probs_old - log_probs_ref
    clipped = torch.minimum(torch.maximum(ratio, ratio_old - clip), ratio_old + clip)
    gap = rewards[:, None] - rewards[None]
    winners, losers = torch.nonzero(gap > 0, as_tuple=True)
    target = gap[winners, losers].to(ratio.dtype) / beta
    score = ratio.mean(1)
    score_clipped = clipped.mean(1)
    return (
        winners,
        losers,
        score[winners] - score[losers] - target,
        score_clipped[winners] - score_clipped[losers] - target,
    )


def rdp_loss(
    log_probs: Tensor,
    log_probs_old: Tensor,
    log_probs_ref: Tensor,
    rewards: Tensor,
    *,
    beta: float,
    clip: float,
) -> Tensor:
    """Proximal RDP loss of every pair of one prompt's samples with a positive reward gap, (P,).

    Equations 14 to 21.

    Args:
        log_probs: under the policy being trained, (B, S); gradients flow through it alone.
        log_probs_old: under the policy that sampled, (B, S).
        log_probs_ref: under the frozen reference, (B, S).
        rewards: (B,).
        beta: KL weight, in the units of the log-probabilities as reduced (see
            ``gaussian_log_prob``).
        clip: how far a step's log-ratio may move from its old value, in the same units.
    """
    _, _, error, error_clipped = _pair_errors(
        log_probs, log_probs_old.detach(), log_probs_ref.detach(), rewards.detach(), beta, clip
    )
    return torch.maximum(error**2, error_clipped**2)


@torch.no_grad()
def rdp_coefficients(
    log_probs: Tensor,
    log_probs_old: Tensor,
    log_probs_ref: Tensor,
    rewards: Tensor,
    *,
    beta: float,
    clip: float,
) -> Tensor:
    """d mean(rdp_loss) / d log_probs, (B, S), zero when there is no pair.

    The loss couples all steps of two trajectories through a sum, so one backward would hold every
    step's graph. With these numbers known, each step is back-propagated alone: sum_{i,t} c_{i,t}
    log pi_theta has the same gradient.
    """
    winners, losers, error, error_clipped = _pair_errors(
        log_probs, log_probs_old, log_probs_ref, rewards, beta, clip
    )
    free = error**2 >= error_clipped**2  # the unclipped branch is the maximum
    scale = 2 / (log_probs.shape[1] * max(len(winners), 1))

    def per_sample(values: Tensor) -> Tensor:
        total = torch.zeros(len(rewards), dtype=values.dtype, device=values.device)
        return scale * total.index_add(0, winners, values).index_add(0, losers, -values)

    # The clipped branch has no gradient where it is flat.
    inside = (log_probs - log_probs_old).abs() <= clip
    through = per_sample(error * free)
    through_clipped = per_sample(error_clipped * ~free)
    return through[:, None] + through_clipped[:, None] * inside
