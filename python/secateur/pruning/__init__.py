"""Weights that are pruned: criteria, patterns, which weights they apply to, and the reports."""

from .counting import sparsity
from .criteria import (
    Criterion,
    Decision,
    Inputs,
    Magnitude,
    MeanStd,
    OptimalBrain,
    Random,
    Wanda,
    WeightView,
    drop_lowest,
)
from .prune import prune
from .restore import restore
from .verify import PatternReport, verify

__all__ = [
    "Criterion",
    "Decision",
    "Inputs",
    "Magnitude",
    "MeanStd",
    "OptimalBrain",
    "PatternReport",
    "Random",
    "Wanda",
    "WeightView",
    "drop_lowest",
    "prune",
    "restore",
    "sparsity",
    "verify",
]
