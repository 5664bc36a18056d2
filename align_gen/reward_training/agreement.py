"""How well differences of scores agree with the labels of pairs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.preference import FIRST, SECOND, TIE


def measure(delta: Tensor, label: Tensor) -> dict[str, Any]:
    """How well deltas (P,) fit labels (P,).

    Pairs of which nobody knows the label are left out. A figure is None where there is no pair.
    """
    known = (label == FIRST) | (label == TIE) | (label == SECOND)
    delta = delta[known].double().cpu()
    label = label[known].cpu()
    decided = label != TIE
    with_ties, threshold = tie_calibrated_accuracy(delta, label)
    return {
        "decided pairs": int(decided.sum()),
        "accuracy": accuracy(delta[decided], label[decided]),
        "accuracy with ties": with_ties,
        "tie threshold": threshold,
        "calibration error": calibration_error(delta[decided] * label[decided]),
    }


def accuracy(delta: Tensor, label: Tensor) -> float | None:
    """Share of the pairs (P,) whose better side leads; a lead of zero counts half."""
    right = (delta.sign() == label).double() + (delta == 0).double() / 2
    return right.mean().item() if len(right) else None


def tie_calibrated_accuracy(delta: Tensor, label: Tensor) -> tuple[float | None, float | None]:
    """(accuracy, threshold): the highest accuracy when every |delta| <= threshold counts as a tie.

    Deutsch et al., EMNLP 2023, arXiv 2305.14324. Thresholds: below every |delta|, and each |delta|.
    (P,) in.
    """
    if not len(delta):
        return None, None
    # Sort by |delta|: a threshold between two neighbours makes the k smallest ties, and is right
    # about the ties among them and about the decided pairs above them.
    size, order = delta.abs().sort()
    tie = (label[order] == TIE).double()
    right = ((delta.sign() == label)[order] & (tie == 0)).double()
    below = F.pad(tie.cumsum(0), (1, 0))  # ties among the k smallest
    above = right.sum() - F.pad(right.cumsum(0), (1, 0))
    # A threshold cannot part pairs of equal |delta|: only the last of them is a possible one.
    end = torch.tensor([True])
    possible = torch.cat([end, size.diff() > 0, end])
    reached = torch.where(possible, below + above, -1.0)
    best = int(reached.argmax())
    threshold = size[best - 1].item() if best else 0.0
    return (reached[best] / len(delta)).item(), threshold


def calibration_error(lead: Tensor, bins: int = 10) -> float | None:
    """Expected calibration error of sigmoid(lead) as the chance to be right (arXiv 1706.04599).

    ``lead`` (P,): score of the better side minus that of the other. Confidence is max(p, 1 - p), in
    equal bins over [1/2, 1].
    """
    if not len(lead):
        return None
    confidence = lead.abs().sigmoid()
    right = (lead > 0).double() + (lead == 0).double() / 2
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, index, right - confidence)
    return (gap.abs().sum() / len(lead)).item()


def worse_than_base(measured: Mapping[str, Any]) -> list[str]:
    """One sentence for each dimension on which the head is right less often than its base."""
    sentences = []
    for name, trained in measured["trained"].items():
        before = measured["base"][name]["accuracy"]
        after = trained["accuracy"]
        if before is not None and after is not None and after < before:
            sentences.append(
                f"{name}: worse than its base: right on {after:.1%} of "
                f"{trained['decided pairs']} held-out pairs, the base on {before:.1%}"
            )
    return sentences
