"""Prune a trained PyTorch network, and have it run faster."""

from ._errors import Error
from .activations import prune_activations
from .criteria import Magnitude, MeanStd, Random
from .masks import strip
from .pruning import prune, sparsity
from .report import Report

__all__ = ["Error", "Magnitude", "MeanStd", "Random", "Report", "prune", "prune_activations", "sparsity", "strip"]
