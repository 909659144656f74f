"""Prune a trained PyTorch network, and have it run faster."""

from ._errors import Error

__all__ = ["Error"]
