"""Objectives as pure functions of tensors: they return per-sample or per-pair values, the caller reduces."""

from .rdp import rdp_coefficients, rdp_loss

__all__ = ["rdp_coefficients", "rdp_loss"]
