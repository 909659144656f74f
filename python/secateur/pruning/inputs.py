"""Statistics of layers' inputs for criteria, summed up while the caller's batches stream through a copy of the model.

No input is kept: sums, squares and (where asked) Gram matrices of every layer are added up in float64 in one
pass. Gram matrices of all layers are in memory together: F * F * 8 bytes a group, F inputs a neuron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .._base.trial import trial
from ..calibration.calls import Calls
from ..calibration.columns import columns_of, groups_of, problem_of
from ..calibration.working import working_copy
from ..masks.weights import Weight, weights_of
from .criteria import Inputs

#: Gram matrices of one call may take so many bytes together, and of one layer for "hessian".
_MOST_GRAM_BYTES = 4 << 30
#: Wider layers are solved for "hessian" in parts: H of 8,192 inputs takes 0.5 GiB.
WIDEST = 8192


class _Sums:
    """The sums over one weight's inputs, in all the modules that hold the weight."""

    def __init__(self, weight: Weight, gram: bool) -> None:
        self.label = weight.label
        G = groups_of(weight.module, weight.parameter)
        width = width_of(weight)
        self.count = 0
        zeros = torch.zeros(G, width, dtype=torch.float64, device=weight.value.device)
        self.sum, self.squares = zeros, torch.zeros_like(zeros)
        self.gram = zeros.new_zeros(G, width, width) if gram else None

    def add(self, columns: Tensor) -> None:
        """Take in float64 ``columns`` [G, F, n], one a position."""
        self.count += columns.shape[2]
        self.sum += columns.sum(2)
        self.squares += columns.square().sum(2)
        if self.gram is not None:
            self.gram.baddbmm_(columns, columns.transpose(1, 2))

    def result(self) -> Inputs:
        if self.count == 0:
            raise Error(f"prune: data must reach {self.label}, but the model never calls it with an input (exclude it)")
        # NaN and Inf of any input are in its squares; values that float64 cannot square are refused as well.
        if not bool(torch.isfinite(self.squares).all()):
            raise Error(f"prune: data must give {self.label} finite inputs, got NaN or Inf")
        return Inputs(self.count, self.sum, self.squares, self.gram)


def width_of(weight: Weight) -> int:
    """F: the inputs of a neuron."""
    return weight.value.numel() // max(weight.layout.neurons(weight.value).shape[0], 1)


def parts_of(weight: Weight, run: int = 1) -> int:
    """In how many parts of its inputs a layer is solved: more than one where its Gram matrix would be too large.

    ``run``: of so many channels, which no part should cut.
    """
    width, groups = width_of(weight), groups_of(weight.module, weight.parameter)
    if groups > 1 or width <= WIDEST:
        return 1
    channels = weight.layout.neurons(weight.value).shape[1]
    parts = [n for n in range(2, channels + 1) if channels % n == 0 and width // n <= WIDEST]
    # Blocks of a pattern, 1x4 or 1x16, are not cut in two if it can be helped.
    whole = (n for each in (math.lcm(run, 16), run) for n in parts if channels // n % each == 0)
    return next(whole, parts[0] if parts else 1)


def check(weights: Sequence[Weight], needs: Sequence[str]) -> None:
    """An Error for a layer whose inputs cannot be summed up."""
    most = widest = 0
    for weight, need in zip(weights, needs, strict=True):
        if problem := problem_of(weight.module, weight.parameter):
            raise Error(f"prune: {weight.label} is of a layer whose inputs cannot be known: {problem} (exclude it)")
        gram = 8 * groups_of(weight.module, weight.parameter) * width_of(weight) ** 2
        if need == "hessian":
            gram //= parts_of(weight)
        if need == "gram":
            most += gram
        elif need == "hessian":
            widest = max(widest, gram)
    if max(most, widest) > _MOST_GRAM_BYTES:
        raise Error(
            f"prune: Gram matrices of {'all layers' if most > _MOST_GRAM_BYTES else 'a layer'} must fit "
            f"{_MOST_GRAM_BYTES / 2**30:g} GiB, got {max(most, widest) / 2**30:.1f} GiB (exclude the widest layers)"
        )


def collect(
    model: nn.Module, weights: Sequence[Weight], needs: Sequence[str], calls: Calls, progress: bool = False
) -> list[Inputs]:
    """Run ``calls`` through a copy of the model, and return the sums over each weight's inputs.

    Args:
        weights: whose inputs to sum up. needs: "norms" or "gram" for each. calls: gone through once.
    """
    work = working_copy(model, "prune")
    twins = {weight.key: weight for weight in weights_of(work)}
    sums = [_Sums(weight, need == "gram") for weight, need in zip(weights, needs, strict=True)]
    with trial(work), _eager(work):
        for weight, into in zip(weights, sums, strict=True):
            for module, parameter in twins[weight.key].places:
                module.register_forward_pre_hook(_watcher(into, parameter), with_kwargs=True)
        for call in calls.shown("calibrating", progress):
            call.run(work)
    return [into.result() for into in sums]


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Parts that torch.compile compiled run uncompiled: compiled code does not look for hooks that came later."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _watcher(into: _Sums, parameter: str) -> Any:
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for columns in columns_of(module, parameter, args, kwargs, into.label):
            into.add(columns)

    return watch
