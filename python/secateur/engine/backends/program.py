"""What a segment is built with: the builder's interface, the form of an activation, and who runs the result.

Two classes have this interface: ``secateur._host.Program`` (C++) and its plain-torch twin
:class:`secateur.engine.reference.ReferenceProgram`. The front takes either, so that each is tested against the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Act(NamedTuple):
    """What is done to a value last. ``theta`` is float32 ``[K]``, of "threshold" alone."""

    kind: str = "none"  # clamp, threshold, leaky, hardswish, hardsigmoid, sigmoid, silu, gelu, tanh
    lo: float = 0.0  # clamp: the lower bound; leaky: the slope
    hi: float = 0.0  # clamp, threshold: the upper bound
    theta: Any = None


NONE = Act()
RELU = Act("clamp", 0.0, math.inf)

Size = tuple[int, int]
Grid = tuple[float, int]  # scale, zero point: a byte q stands for (q - zero_point) * scale


class ProgramLike(Protocol):
    """One segment, independent of batch and image size. Values are ids: planes [N, C, H, W] or rows [N, F], of real
    numbers or, where a ``grid`` is given, of bytes."""

    @property
    def id(self) -> int: ...
    def input_planes(self, channels: int) -> int: ...
    def input_rows(self, features: int) -> int: ...
    def conv2d(
        self, x: int, weight: Any, bias: Any, stride: Size, padding: tuple[int, int, int, int], dilation: Size,
        groups: int, residual: int, act: Act, name: str,
    ) -> int: ...  # fmt: skip
    def linear(self, x: int, weight: Any, bias: Any, act: Act, name: str) -> int: ...
    def max_pool(
        self, x: int, kernel: Size, stride: Size, padding: Size, dilation: Size, ceil_mode: bool, name: str
    ) -> int: ...
    def avg_pool(
        self, x: int, kernel: Size, stride: Size, padding: Size, ceil_mode: bool, count_include_pad: bool,
        divisor: int, name: str, grid: Grid | None = None,
    ) -> int: ...  # fmt: skip
    def global_avg_pool(self, x: int, name: str, grid: Grid | None = None) -> int: ...
    def map(
        self, x: int, scale: Any, shift: Any, join: str, other: int, act: Act, name: str, grid: Grid | None = None,
        theta: Any = None,
    ) -> int: ...  # fmt: skip
    def quantize(self, x: int, grid: Grid, theta: Any, name: str) -> int: ...
    def dequantize(self, x: int, name: str) -> int: ...
    def conv2d_int8(
        self, x: int, weight: Any, bias: Any, multiplier: Any, stride: Size, padding: tuple[int, int, int, int],
        dilation: Size, groups: int, residual: int, residual_multiplier: float, grid: Grid | None,
        limits: tuple[int, int], theta: Any, act: Act, name: str,
    ) -> int: ...  # fmt: skip
    def linear_int8(
        self, x: int, weight: Any, bias: Any, multiplier: Any, grid: Grid | None, limits: tuple[int, int], theta: Any,
        act: Act, name: str,
    ) -> int: ...  # fmt: skip
    def concat(self, xs: Sequence[int], name: str) -> int: ...
    def select_channels(self, x: int, index: Sequence[int], name: str) -> int: ...
    def flatten(self, x: int) -> int: ...
    def output(self, x: int) -> None: ...
    def finish(self) -> None: ...
    def prepare(
        self, batch: int, sizes: Sequence[Size], budget_s: float, example: Sequence[Any] = (), kernels: str = "fastest"
    ) -> None: ...
    def describe(self, batch: int, sizes: Sequence[Size]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Backend:
    """Who computes segments: how a program is made, fed with weights, and run; which dtypes it takes (on the CPU).
    ``array`` hands over real numbers, ``integers`` a tensor as it is."""

    name: str
    make: Callable[[], ProgramLike]
    array: Callable[[Tensor], Any]
    integers: Callable[[Tensor], Any]
    run: Callable[[list[Tensor], Any], list[Tensor]]
    dtypes: tuple[torch.dtype, ...]


def _make_engine() -> ProgramLike:
    from ..._base.library import host

    made: ProgramLike = host.Program()
    return made


def _run_engine(inputs: list[Tensor], program: ProgramLike) -> list[Tensor]:
    outputs: list[Tensor] = torch.ops.secateur.engine_run.default(inputs, program.id)
    return outputs


#: The C++ engine.
ENGINE = Backend(
    "engine", _make_engine, lambda t: t.detach().to(torch.float32).contiguous().numpy(),
    lambda t: t.detach().contiguous().numpy(), _run_engine, (torch.float32,),
)  # fmt: skip
