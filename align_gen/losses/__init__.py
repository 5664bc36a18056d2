"""Objectives as pure functions of tensors: they return per-sample or per-pair values, the caller reduces."""

from .policy_gradient import advantages, clipped_policy_gradient
from .rdp import rdp_coefficients, rdp_loss

__all__ = ["advantages", "clipped_policy_gradient", "rdp_coefficients", "rdp_loss"]
