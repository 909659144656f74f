"""Weights that are pruned: criteria, patterns, which weights they apply to, and the reports."""

from .counting import sparsity
from .criteria import Criterion, Decision, Inputs, Magnitude, MeanStd, Random, WeightView, drop_lowest
from .prune import prune
from .verify import PatternReport, verify

__all__ = [
    "Criterion",
    "Decision",
    "Inputs",
    "Magnitude",
    "MeanStd",
    "PatternReport",
    "Random",
    "WeightView",
    "drop_lowest",
    "prune",
    "sparsity",
    "verify",
]
