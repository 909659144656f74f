"""Sample inputs for every operator in ``torch.ops.secateur``: what drives test_op_contract.py.

A new operator needs an entry here; without one the contract tests fail and name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateur import reference


@dataclass(frozen=True)
class Sample:
    """One call: ``make(dtype)`` gives fresh positional arguments.

    differentiable: positions of the arguments that carry a gradient; the rest get none.
    outputs: positions of the outputs that the gradient flows into (an operator with one output has position 0).
    """

    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    differentiable: Sequence[int] = ()
    outputs: Sequence[int] = (0,)
    dtypes: Sequence[torch.dtype] = field(default=(torch.float32, torch.float64, torch.bfloat16, torch.float16))


def _mask(shape: tuple[int, ...]) -> Tensor:
    return reference.mask_pack(torch.rand(shape) < 0.4)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _mask_apply(shape: tuple[int, ...]) -> Callable[[torch.dtype], tuple[Any, ...]]:
    return lambda dtype: (torch.randn(shape).to(dtype), _mask(shape))


def _away(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values at steps of 0.25 from +-0.125: a finite difference crosses no threshold of the samples."""
    return (torch.randint(-8, 8, shape).double() * 0.25 + 0.125).to(dtype)


_bytes = (torch.uint8,)
_MASK_APPLY = [("matrix", (5, 17)), ("conv", (4, 3, 3, 3)), ("vector", (6,)), ("empty", (0, 4))]
_STATISTICS = [("matrix", (3, 17), -0.5, False), ("conv, signed", (4, 3, 3, 3), -1.0, True), ("vector", (6,), 0.0, False)]


def _weight(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


SAMPLES: dict[str, list[Sample]] = {
    "mask_apply": [Sample(name, _mask_apply(shape), (0,)) for name, shape in _MASK_APPLY],
    "mask_apply_": [Sample(name, _mask_apply(shape)) for name, shape in _MASK_APPLY],
    "statistics_threshold": [
        Sample(name, lambda dtype, s=shape, k=k, g=signed: (_weight(s, dtype), k, g), (0,))
        for name, shape, k, signed in _STATISTICS
    ],
    "statistics_threshold_": [
        Sample(name, lambda dtype, s=shape, k=k, g=signed: (_weight(s, dtype), k, g))
        for name, shape, k, signed in _STATISTICS
    ],
    "threshold_relu": [
        Sample("maps", lambda dtype: (_away((2, 3, 4, 5), dtype), torch.rand(3).round(decimals=1), None), (0,)),
        Sample("channels_last", lambda dtype: (_channels_last(_away((2, 8, 3, 3), dtype)), torch.rand(8), 1.5), (0,)),
        Sample("features", lambda dtype: (_away((3, 7), dtype), torch.tensor(0.5), 6.0), (0,)),
    ],
    "threshold_relu_": [
        Sample("maps", lambda dtype: (_away((2, 3, 4, 5), dtype), torch.rand(3), None)),
        Sample("features", lambda dtype: (_away((3, 7), dtype), torch.tensor(0.5), 6.0)),
    ],
    "mask_pack": [Sample("matrix", lambda _: (torch.rand(3, 17) < 0.5,), dtypes=_bytes)],
    "mask_unpack": [Sample("conv", lambda _: (_mask((3, 2, 3, 3)), [3, 2, 3, 3]), dtypes=_bytes)],
}
