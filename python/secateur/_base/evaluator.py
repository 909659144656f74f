"""The caller's own measure of accuracy, and the limits that are set in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .copies import own_copy
from .errors import Error
from .state import State
from .trial import flags_kept, hooks_off
from .wrappers import unwrapped

log = logging.getLogger("secateur")


class Evaluator:
    """``evaluate``, checked: called in evaluation mode, without gradients, and counted.

    ``bounded``: it must give an accuracy, 0 to 1; else any finite number.
    """

    def __init__(self, caller: str, evaluate: Callable[[nn.Module], Any] | None, bounded: bool = True) -> None:
        if evaluate is None:
            raise Error(f"{caller}: evaluate must be given with max_accuracy_drop, got None")
        if not callable(evaluate):
            raise Error(f"{caller}: evaluate must be a function of the model, got {type(evaluate).__name__}")
        self.caller = caller
        self.evaluate = evaluate
        self.bounded = bounded
        self.calls = 0

    def __call__(self, model: nn.Module) -> float:
        """The accuracy of ``model``, which is ours and is afterwards as before: modes, state, gradients wanted."""
        with hooks_off(model), flags_kept(model), torch.no_grad():
            state = State(model)
            try:
                model.eval()
                answer = self.evaluate(model)
            finally:
                state.restore()
        self.calls += 1
        number = _number(answer)
        if not (0 <= number <= 1 if self.bounded else math.isfinite(number)):  # NaN is neither
            what = "an accuracy from 0 to 1" if self.bounded else "a finite number"
            raise Error(f"{self.caller}: evaluate must return {what}, got {answer!r}")
        return number

    def of_given(self, model: nn.Module) -> float:
        """The accuracy of a model that is the caller's: of a copy, for a forward may write into its model."""
        return self(own_copy(unwrapped(model), self.caller))


def _number(value: Any) -> float:
    """A float; NaN for a value that is no number."""
    try:
        return math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def checked_budget(caller: str, drop: Any) -> float:
    """``max_accuracy_drop`` as a float in [0, 1)."""
    if drop is None:
        raise Error(f"{caller}: max_accuracy_drop must be given with evaluate, got None")
    number = _number(drop)
    if not 0 <= number < 1:
        raise Error(f"{caller}: max_accuracy_drop must be a number from 0 to 1 (1 excluded), got {drop!r}")
    return number
