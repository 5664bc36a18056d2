"""Negative-aware fine-tuning on the forward process: DiffusionNFT.

Zheng et al. 2025, arXiv 2509.16117.

A sample x0 of the old policy is noised to x_t; v is what a perfect network outputs there, r in [0,
1] how good x0 is. The network in training v_theta is read as two, v+ = (1 - beta) v_old + beta
v_theta and v- = (1 + beta) v_old - beta v_theta, and good samples are denoised by the one, bad
samples by the other (eq. 5):

    loss = r |v+ - v|^2 + (1 - r) |v- - v|^2.

Completing the square shows what it is, sample by sample: up to a constant, the regression

    beta^2 |v_theta - v_old - (2r - 1) (v - v_old) / beta|^2.

So its optimum is v_old + E[(2r - 1) (v - v_old) | x_t] / beta, which is v_old + (2 / beta) Cov(r, v
| x_t) where v_old denoises its own samples (theorem 3.2); r = 1/2 holds the network where it was;
and the gradient at v_theta = v_old is that of beta (2r - 1) |v_theta - v|^2. Epsilon, v and x0
outputs are at a fixed (x_t, t) the velocity times a number plus another: in each of them the
optimum is the same, and the loss weighs times differently.
"""

from torch import Tensor


def optimality(advantage: Tensor, limit: float) -> Tensor:
    """r = 1/2 + clip(A / limit, -1, 1) / 2 in [0, 1], of A's shape: how good among siblings."""
    return 0.5 + 0.5 * (advantage / limit).clamp(-1, 1)


def nft_loss(
    output: Tensor, output_old: Tensor, target: Tensor, optimality: Tensor, beta: float
) -> Tensor:
    """r |v+ - v|^2 + (1 - r) |v- - v|^2, each a mean over latent elements; (B, ...) -> (B,). Eq. 5.

    Args:
        output: of the network in training; gradients flow through it alone.
        output_old: of the policy that drew the samples, at the same x_t and t.
        target: what a perfect network outputs there.
        optimality: r, (B,).
        beta: how far a network that makes v+ right may go from the old one: the smaller, the
            further.
    """
    change = beta * (output - output_old.detach())
    wrong = output_old.detach() - target.detach()
    positive, negative = ((wrong + sign * change).square().flatten(1).mean(1) for sign in (1, -1))
    return optimality * positive + (1 - optimality) * negative
