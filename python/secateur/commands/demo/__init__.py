"""The tutorial's CNN on real digits, end to end: ``secateur demo``.

Trains it, prunes its weights by ``MeanStd`` while fine-tuning, prunes its activations by ``MeanStd``, converts it, and
measures: accuracy, zeros, bytes, latency. Choices are made on validation digits; the test digits are looked at once, at
the end. Also compares the pruning rules at the same zeros. Needs the extra ``demo``.
"""

from .pipeline import run
from .result import Budget

__all__ = ["Budget", "run"]
