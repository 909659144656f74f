"""Weights that are pruned: criteria, patterns, which weights they apply to, and the report."""

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

__all__ = [
    "Criterion",
    "Decision",
    "Inputs",
    "Magnitude",
    "MeanStd",
    "OptimalBrain",
    "Random",
    "Wanda",
    "WeightView",
    "drop_lowest",
    "prune",
    "restore",
    "sparsity",
]
