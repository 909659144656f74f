"""What compute-sanitizer watches: every operator once on shapes that take different ways through the kernels.

Inputs are made on the CPU and copied, so that no kernel but ours runs: what a tool reports is ours. Run it as
``python -m benchmarks.gpu.operated [cpu]``; it ends with one line that says how many calls it has compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from secateur import ops
from torch import Tensor

#: Whole bytes and a row that ends within one; rows for a warp (up to 2048) and for a block; one element.
SHAPES = [(4, 64), (5, 13), (3, 2049), (1, 1)]
IMAGES = [(2, 16, 4, 4), (3, 5, 3, 5)]
DONE = "calls compared"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def _mask(shape: tuple[int, ...]) -> Tensor:
    return ops.mask_pack(torch.rand(shape) < 0.5)


def calls() -> list[tuple[Callable[..., Any], list[Any]]]:
    """(operator, arguments on the CPU). In-place forms come with their functional twin's arguments."""
    found: list[tuple[Callable[..., Any], list[Any]]] = []
    for dtype in DTYPES:
        for shape in SHAPES + IMAGES:
            x = torch.randn(shape).to(dtype)
            layouts = [x] if len(shape) == 2 else [x, x.contiguous(memory_format=torch.channels_last)]
            for y in layouts:
                theta = torch.rand(shape[1])
                found += [(ops.mask_apply, [y, _mask(shape)]), (ops.mask_apply_, [y.clone(), _mask(shape)])]
                found += [(ops.threshold_relu, [y, theta, 1.0]), (ops.threshold_relu_, [y.clone(), theta, None])]
                found += [(ops.statistics_threshold, [y, 0.25]), (ops.statistics_threshold_, [y.clone(), 0.25, True])]
    for shape in SHAPES:
        found += [(ops.mask_pack, [torch.rand(shape) < 0.5]), (ops.mask_unpack, [_mask(shape), list(shape)])]
    many = getattr(ops, "mask_apply_many_", None)
    if many is not None:
        found.append((many, [[torch.randn(s) for s in SHAPES], [_mask(s) for s in SHAPES]]))
    return found


def _there(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_there(item, device) for item in value] if isinstance(value, list) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def main() -> int:
    torch.manual_seed(0)
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    compared = 0
    with torch.no_grad():
        for operator, arguments in calls():
            there = _there(arguments, device)
            got = [t.cpu() for t in _tensors(operator(*there))] + [t.cpu() for t in _tensors(there)]
            expected = _tensors(operator(*arguments)) + _tensors(arguments)
            for a, b in zip(got, expected, strict=True):
                # (bits.py holds them to the bit; a theta here may differ in its last one)
                torch.testing.assert_close(a, b, rtol=1e-6 if a.is_floating_point() else 0, atol=0)
            compared += 1
    print(f"{compared} {DONE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
