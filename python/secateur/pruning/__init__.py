"""Weights that are pruned: criteria, patterns, which weights they apply to, and the report."""

from .counting import sparsity
from .criteria import Magnitude, MeanStd, Random
from .prune import prune

__all__ = ["Magnitude", "MeanStd", "Random", "prune", "sparsity"]
