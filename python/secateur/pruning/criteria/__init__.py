"""Which weights go: the protocol of criteria (``base``, ``view``), the arithmetic they share, and one file for each."""

from .base import Criterion, drop_lowest
from .magnitude import Magnitude
from .mean_std import MeanStd
from .optimal_brain import OptimalBrain
from .random import Random
from .view import Decision, Inputs, WeightView
from .wanda import Wanda

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
]
