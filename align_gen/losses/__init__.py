"""Objectives as pure functions of tensors: values per sample or pair, which the caller reduces."""

from .dpo import dpo_margin, gap_beta
from .nft import nft_loss, optimality
from .policy_gradient import advantages, clipped_policy_gradient, gaussian_kl
from .preference import bradley_terry, bradley_terry_ties, centring, preference_strength
from .rdp import rdp_coefficients, rdp_loss
from .reward_history import history_advantages, remembered
from .reward_weights import (
    choice_probabilities,
    effective_sample_size,
    exponential_weights,
    softmax_weights,
)

__all__ = [
    "advantages",
    "bradley_terry",
    "bradley_terry_ties",
    "centring",
    "choice_probabilities",
    "clipped_policy_gradient",
    "dpo_margin",
    "effective_sample_size",
    "exponential_weights",
    "gap_beta",
    "gaussian_kl",
    "history_advantages",
    "nft_loss",
    "optimality",
    "preference_strength",
    "rdp_coefficients",
    "rdp_loss",
    "remembered",
    "softmax_weights",
]
