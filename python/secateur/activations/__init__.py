"""Activations that are pruned: thresholds from calibration data, by accuracy, and their sensitivity."""

from .prune import prune_activations
from .sensitivity import activation_sensitivity

__all__ = ["activation_sensitivity", "prune_activations"]
