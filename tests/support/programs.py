"""Programs for the engine and for its plain-torch twin, built alike and held against each other in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from secateur import _host
from secateur.engine.backends.reference import ReferenceProgram
from torch import Tensor

NONE = ("none", 0.0, 0.0, None)
RELU = ("clamp", 0.0, math.inf, None)

NOTHING = -(2**31)  # no second input

Build = Callable[..., Any]  # (program, ids of its inputs) -> id of an output, or several


def array(t: Tensor | None) -> Any:
    return None if t is None else np.ascontiguousarray(t.detach().numpy(), dtype=np.float32)


def weights(*shape: int, zeros: float = 0.0) -> Any:
    """Normal values with ``zeros`` of them zero, scaled so that sums stay near 1."""
    w = torch.randn(shape) * (torch.rand(shape) >= zeros)
    return array(w / math.sqrt(max(1, math.prod(shape[1:]) * (1 - min(zeros, 0.99)))))


class Builder:
    """A program with a method for each kind, so that a test's network is short to write; all of them call ``add``."""

    def __init__(self, program: Any) -> None:
        self.program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def _add(self, kind: str, inputs: Sequence[int], name: str | None, **attributes: Any) -> int:
        return int(self.program.add(kind, [x for x in inputs if x != NOTHING], attributes, name))

    def conv2d(self, x: int, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int,
               residual: int, act: Any, name: str) -> int:  # fmt: skip
        return self._add("conv2d", [x, NOTHING if residual == -1 else residual], name, weight=weight, bias=bias,
                         stride=stride, padding=padding, dilation=dilation, groups=groups, act=act)  # fmt: skip

    def linear(self, x: int, weight: Any, bias: Any, act: Any, name: str) -> int:
        return self._add("linear", [x], name, weight=weight, bias=bias, act=act)

    def max_pool(self, x: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, name: str) -> int:
        return self._add("max_pool", [x], name, kernel=kernel, stride=stride, padding=2 * padding, dilation=dilation,
                         ceil_mode=ceil)  # fmt: skip

    def avg_pool(self, x: int, kernel: Any, stride: Any, padding: Any, ceil: bool, include: bool, divisor: int,
                 name: str, grid: Any = None) -> int:  # fmt: skip
        return self._add("avg_pool", [x], name, kernel=kernel, stride=stride, padding=2 * padding, ceil_mode=ceil,
                         count_include_pad=include, divisor=divisor, grid=grid)  # fmt: skip

    def global_avg_pool(self, x: int, name: str, grid: Any = None) -> int:
        return self._add("global_avg_pool", [x], name, grid=grid)

    def map(self, x: int, scale: Any, shift: Any, join: str, other: int, act: Any, name: str, grid: Any = None,
            theta: Any = None) -> int:  # fmt: skip
        return self._add("map", [x, NOTHING if other == -1 else other], name, scale=scale, shift=shift, join=join,
                         act=act, grid=grid, theta=theta)  # fmt: skip

    def quantize(self, x: int, grid: Any, theta: Any, name: str) -> int:
        return self._add("quantize", [x], name, grid=grid, theta=theta)

    def dequantize(self, x: int, name: str) -> int:
        return self._add("dequantize", [x], name)

    def conv2d_int8(self, x: int, weight: Any, bias: Any, multiplier: Any, stride: Any, padding: Any, dilation: Any,
                    groups: int, residual: int, residual_multiplier: float, grid: Any, limits: Any, theta: Any,
                    act: Any, name: str) -> int:  # fmt: skip
        return self._add("conv2d_int8", [x, NOTHING if residual == -1 else residual], name, weight=weight, bias=bias,
                         multiplier=multiplier, stride=stride, padding=padding, dilation=dilation, groups=groups,
                         residual_multiplier=residual_multiplier, grid=grid, limits=limits, theta=theta,
                         act=act)  # fmt: skip

    def linear_int8(self, x: int, weight: Any, bias: Any, multiplier: Any, grid: Any, limits: Any, theta: Any,
                    act: Any, name: str) -> int:  # fmt: skip
        return self._add("linear_int8", [x], name, weight=weight, bias=bias, multiplier=multiplier, grid=grid,
                         limits=limits, theta=theta, act=act)  # fmt: skip

    def concat(self, xs: Sequence[int], name: str) -> int:
        return self._add("concat", xs, name)

    def select_channels(self, x: int, index: Sequence[int], name: str) -> int:
        return self._add("select_channels", [x], name, index=index)

    def flatten(self, x: int) -> int:
        return self._add("flatten", [x], None)


def make(kind: Callable[[], Any], build: Build, inputs: Sequence[Tensor]) -> Any:
    program = kind()
    ids = [program.input_planes(x.shape[1]) if x.dim() == 4 else program.input_rows(x.shape[1]) for x in inputs]
    made = build(Builder(program), *ids)
    for value in made if isinstance(made, list) else [made]:
        program.output(value)
    program.finish()
    return program


def engine(build: Build, inputs: Sequence[Tensor]) -> Any:
    return make(_host.Program, build, inputs)


def sizes(inputs: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]


def run(program: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs: list[Tensor] = torch.ops.secateur.engine_run(list(inputs), program.id)
    return outputs


def twin(build: Build, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: threads would take longer to meet than to compute
    outputs: list[Tensor] = make(ReferenceProgram, build, inputs).run([x.to(dtype) for x in inputs])
    torch.set_num_threads(threads)
    return outputs


def largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def assert_close(got: Tensor, want: Tensor, float32: Tensor, scale: float = 0.0, terms: int = 0) -> None:
    """As near to float64 as four times torch's own float32, but for 8 roundings (2^-24) of the largest value, and
    those of a sum of so many terms one after the other, which go either way."""
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    bound = 4 * largest(float32.double() - want) + 2.0**-24 * (8 + math.sqrt(terms)) * max(scale, largest(want), 1e-3)
    assert largest(got.double() - want) <= bound


def check(build: Build, *inputs: Tensor, tune: bool = False, terms: int = 0) -> Any:
    """The engine's outputs against the twin's; the engine's program."""
    program = engine(build, inputs)
    if tune:
        program.prepare(sizes(inputs), 0.02)
    reference, float32 = twin(build, inputs), twin(build, inputs, torch.float32)
    outputs = run(program, inputs)
    assert len(outputs) == len(reference)
    for got, want, near in zip(outputs, reference, float32, strict=True):
        assert_close(got, want, near, terms=terms)
    return program
