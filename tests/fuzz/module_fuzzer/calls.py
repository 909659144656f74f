"""The five calls that take a model and give one."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import secateur
from secateur import MeanStd
from secateur._base import timing
from torch import Tensor, nn

from . import trees

#: Nothing is timed, so it only bounds planning: a busy machine must not leave the module to torch.
BUDGET_S = 2.0


@dataclass(frozen=True)
class Call:
    name: str
    run: Callable[..., nn.Module]  # (model, example), and more batches to calibrate on
    one_tensor: bool = True  # its batches are tensors
    integer: bool = False
    evaluates: bool = False  # the result is for evaluation only
    trains: bool = False  # the result can be trained

    def takes(self, example: tuple[Any, ...]) -> bool:
        return not self.one_tensor or (len(example) == 1 and isinstance(example[0], Tensor))


def _compile(model: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    return secateur.compile(model, example, budget=BUDGET_S)


def _convert(model: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    return secateur.convert(model, example)


def _quantize(model: nn.Module, example: tuple[Any, ...], more: Sequence[Any] = ()) -> nn.Module:
    return secateur.quantize(model, [example[0], *more], progress=False)


def _prepare_qat(model: nn.Module, example: tuple[Any, ...], more: Sequence[Any] = ()) -> nn.Module:
    return secateur.prepare_qat(model, [example[0], *more], progress=False)


def _prune_activations(model: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """With every threshold at 0, so that the result computes what the model computes: it is clamped there, but of a
    channel that has one value alone in the example."""
    result = secateur.prune_activations(model, [example[0]], MeanStd(k=1000.0), progress=False)
    for module in trees.modules_of(result):
        if isinstance(module, secateur.nn.ThresholdReLU):
            module.theta.data.zero_()
    return result


CALLS = {
    call.name: call
    for call in (
        Call("compile", _compile, one_tensor=False, evaluates=True),
        Call("convert", _convert, one_tensor=False),
        Call("quantize", _quantize, integer=True, evaluates=True),
        Call("prepare_qat", _prepare_qat, integer=True, trains=True),
        Call("prune_activations", _prune_activations, trains=True),
    )
}


@contextmanager
def chosen_at_random(seed: int) -> Iterator[None]:
    """The first form wins, mostly: nothing is left to the clock, which would leave networks this small to torch."""
    rng = random.Random(seed)
    own = timing.interleave

    def interleave(contenders: Sequence[Callable[[], object]], *_: Any, **more: Any) -> list[list[float]]:
        for run, ready in zip(contenders, more.get("prepare") or [None] * len(contenders), strict=True):
            if ready is not None:
                ready()
            run()
        times = [[1e-3 * (1 + i)] for i in range(len(contenders))]
        return times if rng.random() < 0.85 else times[::-1]

    timing.interleave = interleave
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        timing.interleave = own
