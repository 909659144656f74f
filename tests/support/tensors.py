"""Tensors that kernels get wrong: sizes around the lanes, strided memory, values that are not numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Kernels walk 16 lanes at a time; masks are bytes of 8; slices of long rows are 65536 elements.
SHAPES = [
    (), (1,), (7,), (40,), (0,), (0, 3), (3, 0), (1, 1), (2, 15), (2, 16), (2, 17), (3, 31), (3, 33), (2, 63), (2, 65),
    (2, 3, 5), (4, 3, 3, 3), (2, 16, 8, 8), (3, 24, 5, 7), (2, 3, 2, 3, 5), (1, 65536 + 17),
]  # fmt: skip


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _stepped(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, 9)], dim=-1)[..., 0]


def _windowed(x: Tensor) -> Tensor:
    """A window into a larger tensor: an odd offset, gaps between the rows."""
    base = x.new_full((x.shape[0] + 2, *x.shape[1:-1], x.shape[-1] + 3), 9)
    window = base[1:-1, ..., 1:-2] if x.dim() > 1 else x.new_full((x.shape[0] + 2,), 9)[1:-1]
    return window.copy_(x)


def _offset(x: Tensor) -> Tensor:
    """Contiguous, but one element past whatever the allocator aligned."""
    return x.new_full((x.numel() + 1,), 9)[1:].view(x.shape).copy_(x)


# Each gives a tensor of the same values that lies differently in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "offset": _offset,
    "transposed": _transposed,
    "stepped": _stepped,
    "windowed": _windowed,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
}
RANKS = {"contiguous": range(6), "offset": range(6), "transposed": range(2, 6), "stepped": range(1, 6),
         "windowed": range(1, 6), "channels_last": [4], "channels_last_3d": [5]}  # fmt: skip

# (layout, shape) pairs that exist.
ARRANGEMENTS = [
    (layout, shape)
    for shape in SHAPES
    for layout in LAYOUTS
    if len(shape) in RANKS[layout] and (max(shape, default=0) < 65536 or layout == "contiguous")
]


def arrangement_id(value: object) -> str | None:
    """Readable test names: 2x16x8x8, float32."""
    if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        return "x".join(map(str, value)) or "0d"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def make(layout: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return LAYOUTS[layout](torch.randn(shape).to(dtype))


def bits(x: Tensor) -> Tensor:
    """The bits of a tensor: NaN equals itself here, and -0 is not +0."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().contiguous().view(integer)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def special(dtype: torch.dtype) -> Tensor:
    """-0, denormals, the largest, infinities, NaN (with its sign and payload) among ordinary values; 2 rows of 35."""
    info = torch.finfo(dtype)
    row = torch.tensor(
        [0.0, -0.0, info.tiny / 2, -info.tiny / 2, info.max, info.min, float("inf"), -float("inf"), float("nan"),
         -float("nan"), 1.0, -1.0, 0.5, -2.0, info.eps], dtype=torch.float64)  # fmt: skip
    both = torch.cat([row, torch.linspace(-3, 3, 20, dtype=torch.float64)]).to(dtype)
    return torch.stack([both, both.flip(0)])
