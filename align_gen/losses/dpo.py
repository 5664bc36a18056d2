"""Learning from preferences without a reward model: Diffusion-DPO and Flow-DPO.

Wallace et al., CVPR 2024, arXiv 2311.12908; Liu et al., arXiv 2501.13918.

A sample's implicit reward is how much better than the reference the policy denoises it; the
objective is Bradley-Terry of the difference, see ``bradley_terry``. Errors are squared errors of
the network's output, reduced over latent elements; with d of them, errors of their mean and beta =
d b are errors of their sum and beta = b.
"""

import torch
from torch import Tensor


def dpo_margin(policy: Tensor, reference: Tensor, beta: float | Tensor) -> Tensor:
    """-(beta / 2) [(w - w_ref) - (l - l_ref)] of P pairs, (P,).

    Equation 14 of Diffusion-DPO, equation 6 of Flow-DPO.

    Args:
        policy: errors on the better and on the worse of each pair, at one time and with one noise,
            (2, P).
        reference: the reference's errors on the same, (2, P).
        beta: a number, or one a pair, (P,).
    """
    better, worse = policy - reference
    return -beta / 2 * (better - worse)


def gap_beta(beta: float | Tensor, gap: Tensor, gain: float, rate: float) -> Tensor:
    """beta (1 + gain (1 - exp(-rate gap))) of reward gaps >= 0, (P,): sure pairs count more.

    From MM-RLHF, arXiv 2502.10391.

    It lies between beta and beta (1 + gain).
    """
    return beta * (1 + gain * (1 - torch.exp(-rate * gap)))
