"""Objectives as pure functions of tensors: they return per-sample or per-pair values, the caller reduces."""

from .policy_gradient import advantages, clipped_policy_gradient
from .preference import bradley_terry, bradley_terry_ties, centring, preference_strength
from .rdp import rdp_coefficients, rdp_loss

__all__ = [
    "advantages",
    "bradley_terry",
    "bradley_terry_ties",
    "centring",
    "clipped_policy_gradient",
    "preference_strength",
    "rdp_coefficients",
    "rdp_loss",
]
