"""Objectives of preference pairs: Bradley-Terry, Rao-Kupper's ties, the strength of a preference.

A pair's delta is score of the first minus score of the second, any shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST, TIE, SECOND = (
    1,
    0,
    -1,
)  # labels: which one is better; any other number, or NaN, says that nobody can tell


def bradley_terry(
    delta: Tensor, *, label_smoothing: float | Tensor = 0.0, margin: float | Tensor = 0.0
) -> Tensor:
    """-(1 - p) log sigmoid(delta - mu) - p log sigmoid(-delta - mu), of delta's shape.

    The first of a pair is the better one.

    ``label_smoothing`` p is the chance that the label is wrong, ``margin`` mu how far the better
    one should lead (Wang et al., arXiv 2401.06080, use one or the other); each is a number, or one
    a pair. Swapping a pair and replacing p by 1 - p changes nothing.
    """
    return -(1 - label_smoothing) * F.logsigmoid(delta - margin) - label_smoothing * F.logsigmoid(
        -delta - margin
    )


def bradley_terry_ties(delta: Tensor, label: Tensor, theta: float = 5.0) -> Tensor:
    """-log P(label) after Rao and Kupper (1967), (V,).

    As in VideoReward, Liu et al., arXiv 2501.13918, equation 1.

    P(first) = sigmoid(delta - log theta), P(second) = sigmoid(-delta - log theta), and what is left
    is a tie. One value for each of the V entries whose label is FIRST, TIE or SECOND: the others
    neither count nor dilute a mean.

    Args:
        delta: any shape.
        label: of the same shape.
        theta: 1 leaves no room for ties, which is Bradley-Terry; the larger, the more pairs tie.
    """
    if delta.shape != label.shape:
        raise ValueError(
            f"want delta and label of one shape, got {tuple(delta.shape)}, {tuple(label.shape)}"
        )
    if not theta >= 1:
        raise ValueError(f"theta: want a number from 1, got {theta}")
    valid = (label == FIRST) | (label == TIE) | (label == SECOND)
    delta = delta[valid]
    label = label[valid]
    first = -F.logsigmoid(delta - math.log(theta))
    second = -F.logsigmoid(-delta - math.log(theta))
    tie = first + second - (math.log(theta**2 - 1) if theta > 1 else -math.inf)
    return torch.where(label == FIRST, first, torch.where(label == SECOND, second, tie))


def centring(first: Tensor, second: Tensor) -> Tensor:
    """(first + second)^2: Bradley-Terry leaves a prompt's offset free, this ties it to zero.

    Heads that are to be compared before the minimum or median of several is taken need it
    (Eisenstein et al., arXiv 2312.09244, with a weight of 0.01).
    """
    return (first + second).square()


def preference_strength(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std over M reward models of each pair's delta, (M, P) -> (P,), (P,).

    After arXiv 2401.06080.

    The mean is the strength: below zero, the label is probably wrong. The deviation (of the M
    themselves, not an estimate of more) says how far the models disagree.
    """
    std, mean = torch.std_mean(deltas, 0, correction=0)
    return mean, std
