"""Sample inputs for every operator in ``torch.ops.secateur``: what drives test_op_contract.py.

A new operator needs an entry here; without one the contract tests fail and name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from secateur.ops import reference
from torch import Tensor


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


def _mask_apply_many(*shapes: tuple[int, ...]) -> Callable[[torch.dtype], tuple[Any, ...]]:
    return lambda dtype: ([torch.randn(shape).to(dtype) for shape in shapes], [_mask(shape) for shape in shapes])


def _away(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values at steps of 0.25 from +-0.125: a finite difference crosses no threshold of the samples."""
    return (torch.randint(-8, 8, shape).double() * 0.25 + 0.125).to(dtype)


_bytes = (torch.uint8,)
_MASK_APPLY = [("matrix", (5, 17)), ("conv", (4, 3, 3, 3)), ("vector", (6,)), ("empty", (0, 4))]
_STATISTICS = [
    ("matrix", (3, 17), -0.5, False),
    ("conv, signed", (4, 3, 3, 3), -1.0, True),
    ("vector", (6,), 0.0, False),
]


def _weight(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


# One mask for each shape: the number of nonzeros, and so the shapes, are the same at every call.
def _keep(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(shape, generator=generator) < 0.4


def _packed(shape: tuple[int, ...]) -> Tensor:
    return reference.mask_pack(_keep(shape))


def _count(shape: tuple[int, ...]) -> int:
    return int(_keep(shape).sum())


def _values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(_count(shape)).to(dtype)


def _linear(x: tuple[int, ...], neurons: int, dtype: torch.dtype) -> tuple[Any, ...]:
    shape = (neurons, x[-1])
    return torch.randn(x).to(dtype), _packed(shape), _values(shape, dtype), torch.randn(neurons).to(dtype)


def _conv(x: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, *geometry: Any) -> tuple[Any, ...]:
    bias = torch.randn(shape[0]).to(dtype)
    return torch.randn(x).to(dtype), _packed(shape), _values(shape, dtype), bias, list(shape[2:]), *geometry


SAMPLES: dict[str, list[Sample]] = {
    "mask_apply": [Sample(name, _mask_apply(shape), (0,)) for name, shape in _MASK_APPLY],
    "mask_apply_": [Sample(name, _mask_apply(shape)) for name, shape in _MASK_APPLY],
    "mask_apply_many_": [
        Sample("one", _mask_apply_many((5, 17))),
        Sample("some", _mask_apply_many((4, 3, 3, 3), (0, 4), (6,), (3, 40))),
        Sample(
            "dtypes, channels_last, strided",
            lambda dtype: (
                [_channels_last(torch.randn(2, 8, 3, 3)), torch.randn(9, 4).to(dtype).t(), torch.randn(7).bfloat16()],
                [_mask((2, 8, 3, 3)), _mask((4, 9)), _mask((7,))],
            ),
        ),
    ],
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
    "sparse_weight": [
        Sample("matrix", lambda dtype: (_packed((5, 19)), _values((5, 19), dtype), [5, 19]), (1,)),
        Sample("conv", lambda dtype: (_packed((4, 2, 3, 3)), _values((4, 2, 3, 3), dtype), [4, 2, 3, 3]), (1,)),
    ],
    "sparse_values": [
        Sample("matrix", lambda dtype: (torch.randn(5, 19).to(dtype), _packed((5, 19)), _count((5, 19))), (0,)),
    ],
    "sparse_linear": [
        Sample("batch", lambda dtype: _linear((6, 19), 5, dtype), (0, 2, 3)),
        Sample("vector", lambda dtype: _linear((19,), 5, dtype), (0, 2, 3)),
        Sample("no bias", lambda dtype: (*_linear((2, 3, 19), 5, dtype)[:3], None), (0, 2)),
    ],
    "sparse_conv2d": [
        Sample("3x3", lambda dtype: _conv((2, 4, 6, 7), (6, 4, 3, 3), dtype, [1, 1], [1, 1], [1, 1], 1), (0, 2, 3)),
        Sample(
            "strided, dilated, grouped",
            lambda dtype: _conv((1, 4, 9, 8), (6, 2, 3, 2), dtype, [2, 3], [2, 1], [2, 1], 2),
            (0, 2, 3),
        ),
    ],
}
