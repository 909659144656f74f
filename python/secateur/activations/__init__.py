"""Activation pruning: thresholds from calibration data, thresholds under an accuracy budget, and sensitivity."""

from .prune import prune_activations
from .sensitivity import activation_sensitivity

__all__ = ["activation_sensitivity", "prune_activations"]
