"""Prune a trained PyTorch network, and have it run faster."""

from ._errors import Error
from .criteria import Magnitude, MeanStd, Random
from .masks import strip
from .pruning import prune, sparsity
from .report import Report

__all__ = ["Error", "Magnitude", "MeanStd", "Random", "Report", "prune", "sparsity", "strip"]

