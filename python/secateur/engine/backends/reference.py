"""The plain-torch twin of ``secateur._host.Program``: same builder, same checks, any floating dtype, no speed.

It is the oracle of the engine's tests, and what the front is tested with: in float64 a front that folds, fuses or
reorders wrongly differs from the model by far more than rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._base.errors import Error
from .program import NONE, Act, Backend, Grid, Size
from .reference_int8 import Ending, average, dequantize, quantize

_ids = itertools.count(1)
_KINDS = ("none", "clamp", "threshold", "leaky", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh")


@dataclass
class _Value:
    planes: bool
    size: int | None  # channels or features; None: known only with the image size
    grid: Grid | None = None  # bytes: held as whole numbers, in whatever dtype


@dataclass
class _Step:
    kind: str
    name: str
    compute: Callable[[list[Tensor], Tensor], Tensor]  # (values so far, a tensor of the wanted dtype and device)
    weight: Tensor | None = None


def activate(v: Tensor, act: Act, channel: int = 1) -> Tensor:
    """``act`` of v; theta belongs to dim ``channel``."""
    if act.kind == "clamp":
        return torch.clamp(v, act.lo, act.hi)  # NaN stays NaN
    if act.kind == "threshold":
        shape = [1] * v.dim()
        shape[channel] = -1
        theta = torch.as_tensor(act.theta).to(v).reshape(shape)
        return torch.where(v < theta, torch.zeros_like(v), v.clamp(max=act.hi))
    if act.kind == "leaky":
        return torch.where(v < 0, v * act.lo, v)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda t: t,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "gelu": F.gelu,
        "tanh": torch.tanh,
    }
    return functions[act.kind](v)


class ReferenceProgram:
    """See :class:`secateur.engine.program.ProgramLike`; :meth:`run` computes."""

    def __init__(self) -> None:
        self.id = next(_ids)
        self._values: list[_Value] = []
        self._steps: dict[int, _Step] = {}  # id of its result -> step; inputs have none
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._finished = False

    # ---- the builder ----

    def _new(self, planes: bool, size: int | None, step: _Step | None = None, grid: Grid | None = None) -> int:
        if self._finished:
            raise Error("Program: nothing can be added after finish()")
        self._values.append(_Value(planes, size, grid))
        if step is not None:
            self._steps[len(self._values) - 1] = step
        return len(self._values) - 1

    def _get(self, where: str, x: int, planes: bool | None = None) -> _Value:
        if not 0 <= x < len(self._values):
            raise Error(f"Program.{where}: x must be the id of a value, got {x}")
        value = self._values[x]
        if planes is not None and value.planes != planes:
            names = {True: "planes", False: "rows"}
            raise Error(f"Program.{where}: x must be {names[planes]}, got {names[not planes]}")
        return value

    def _act(self, where: str, act: Sequence[Any], channels: int | None) -> Act:
        made = Act(*act)
        if made.kind not in _KINDS:
            raise Error(f"Program.{where}: act must be one of {', '.join(_KINDS)}, got {made.kind!r}")
        if (made.theta is not None) != (made.kind == "threshold"):
            raise Error(f'Program.{where}: act must have a theta if, and only if, it is "threshold"')
        if made.theta is not None and channels is not None and torch.as_tensor(made.theta).shape != (channels,):
            raise Error(f"Program.{where}: theta must be [{channels}], got {list(torch.as_tensor(made.theta).shape)}")
        return made

    def input_planes(self, channels: int) -> int:
        self._inputs.append(self._new(True, channels))
        return self._inputs[-1]

    def input_rows(self, features: int) -> int:
        self._inputs.append(self._new(False, features))
        return self._inputs[-1]

    def conv2d(
        self, x: int, weight: Any, bias: Any, stride: Size, padding: tuple[int, int, int, int], dilation: Size,
        groups: int, residual: int, act: Sequence[Any], name: str,
    ) -> int:  # fmt: skip
        source = self._get("conv2d", x, planes=True)
        w = torch.as_tensor(weight)
        b = None if bias is None else torch.as_tensor(bias)
        if w.dim() != 4 or w.shape[1] * groups != source.size or w.shape[0] % groups:
            raise Error(
                f"Program.conv2d: weight must be [K, {source.size} / groups, R, S] with groups = {groups}, "
                f"got {list(w.shape)}"
            )
        _check_bias("conv2d", b, w)
        if residual >= 0 and self._get("conv2d", residual, planes=True).size != w.shape[0]:
            raise Error(f"Program.conv2d: residual must have {w.shape[0]} channels")
        epilogue = self._act("conv2d", act, w.shape[0])
        top, left, bottom, right = padding

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            padded = F.pad(values[x], (left, right, top, bottom))
            y = F.conv2d(padded, w.to(like), None if b is None else b.to(like), stride, 0, dilation, groups)
            if residual >= 0:
                y = y + values[residual]
            return activate(y, epilogue)

        return self._new(True, w.shape[0], _Step("conv2d", name, compute, w))

    def linear(self, x: int, weight: Any, bias: Any, act: Sequence[Any], name: str) -> int:
        source = self._get("linear", x, planes=False)
        w = torch.as_tensor(weight)
        b = None if bias is None else torch.as_tensor(bias)
        if w.dim() != 2 or (source.size is not None and w.shape[1] != source.size):
            raise Error(f"Program.linear: weight must be [K, {source.size}], got {list(w.shape)}")
        _check_bias("linear", b, w)
        epilogue = self._act("linear", act, w.shape[0])

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            return activate(F.linear(values[x], w.to(like), None if b is None else b.to(like)), epilogue)

        return self._new(False, w.shape[0], _Step("linear", name, compute, w))

    def max_pool(
        self, x: int, kernel: Size, stride: Size, padding: Size, dilation: Size, ceil_mode: bool, name: str
    ) -> int:
        source = self._get("max_pool", x, planes=True)

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            return F.max_pool2d(values[x], kernel, stride, padding, dilation, ceil_mode)

        return self._new(True, source.size, _Step("max_pool", name, compute), source.grid)

    def avg_pool(
        self, x: int, kernel: Size, stride: Size, padding: Size, ceil_mode: bool, count_include_pad: bool,
        divisor: int, name: str, grid: Grid | None = None,
    ) -> int:  # fmt: skip
        source = self._get("avg_pool", x, planes=True)
        window = (kernel, stride, padding, ceil_mode, count_include_pad, divisor or None)

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            if source.grid is not None:
                return average(values[x], window, source.grid, grid or source.grid)
            return F.avg_pool2d(values[x], *window)

        made = None if source.grid is None else grid or source.grid
        return self._new(True, source.size, _Step("avg_pool", name, compute), made)

    def global_avg_pool(self, x: int, name: str, grid: Grid | None = None) -> int:
        source = self._get("global_avg_pool", x, planes=True)

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            if source.grid is None:
                return values[x].mean((2, 3))
            sums = (values[x] - source.grid[1]).sum((2, 3)).to(torch.float32)
            scale = torch.tensor(source.grid[0], dtype=torch.float32).double() / values[x][0, 0].numel()
            if grid is None:
                return (sums * scale.float()).to(like)
            return quantize(sums * (scale / torch.tensor(grid[0]).double()).float(), (1.0, grid[1]), None)

        return self._new(False, source.size, _Step("global_avg_pool", name, compute), grid)

    def map(
        self, x: int, scale: Any, shift: Any, join: str, other: int, act: Sequence[Any], name: str,
        grid: Grid | None = None, theta: Any = None,
    ) -> int:  # fmt: skip
        source = self._get("map", x)
        factor = None if scale is None else torch.as_tensor(scale)
        offset = None if shift is None else torch.as_tensor(shift)
        for what, t in (("scale", factor), ("shift", offset)):
            if t is not None and source.size is not None and t.shape != (source.size,):
                raise Error(f"Program.map: {what} must be [{source.size}], got {list(t.shape)}")
        if join not in ("none", "add", "multiply") or (join == "none") != (other < 0):
            raise Error(f'Program.map: join must be "none" without other, "add" or "multiply" with it, got {join!r}')
        broadcast = other >= 0 and source.planes and not self._get("map", other).planes
        if other >= 0 and not source.planes:
            self._get("map", other, planes=False)
        epilogue = self._act("map", act, source.size)

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            y = self._real(values, x, like)
            shape = (1, -1, 1, 1) if y.dim() == 4 else (1, -1)
            if factor is not None:
                y = y * factor.to(like).reshape(shape)
            if offset is not None:
                y = y + offset.to(like).reshape(shape)
            if other >= 0:
                second = values[other][:, :, None, None] if broadcast else self._real(values, other, like)
                if not broadcast and second.shape != y.shape:
                    raise Error(f"engine_run: {name}: {list(y.shape)} and {list(second.shape)} must be the same")
                y = y + second if join == "add" else y * second
            y = activate(y, epilogue)
            return y if grid is None else quantize(y, grid, theta)

        return self._new(source.planes, source.size, _Step("map", name, compute), grid)

    def _real(self, values: list[Tensor], x: int, like: Tensor) -> Tensor:
        grid = self._values[x].grid
        return values[x] if grid is None else dequantize(values[x], grid).to(like)

    def quantize(self, x: int, grid: Grid, theta: Any, name: str) -> int:
        source = self._get("quantize", x)
        compute = lambda values, like: quantize(values[x], grid, theta)  # noqa: E731
        return self._new(source.planes, source.size, _Step("quantize", name, compute), grid)

    def dequantize(self, x: int, name: str) -> int:
        source = self._get("dequantize", x)
        if source.grid is None:
            raise Error("Program.dequantize: x must be bytes")
        return self._new(
            source.planes, source.size, _Step("dequantize", name, lambda values, like: self._real(values, x, like))
        )

    def conv2d_int8(
        self, x: int, weight: Any, bias: Any, multiplier: Any, stride: Size, padding: tuple[int, int, int, int],
        dilation: Size, groups: int, residual: int, residual_multiplier: float, grid: Grid | None,
        limits: tuple[int, int], theta: Any, act: Sequence[Any], name: str,
    ) -> int:  # fmt: skip
        source = self._get("conv2d_int8", x, planes=True)
        w = torch.as_tensor(weight)
        if source.grid is None or w.dtype != torch.int8 or w.dim() != 4 or w.shape[1] * groups != source.size:
            raise Error("Program.conv2d_int8: x must be bytes, weight int8 [K, C / groups, R, S]")
        zero = source.grid[1]
        other = None if residual < 0 else self._get("conv2d_int8", residual, planes=True).grid
        ending = Ending(bias, multiplier, residual_multiplier, other, grid, limits, theta)
        epilogue = self._act("conv2d_int8", act, w.shape[0])
        top, left, bottom, right = padding

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            padded = F.pad(values[x].double(), (left, right, top, bottom), value=zero)
            sums = F.conv2d(padded, w.double(), None, stride, 0, dilation, groups)
            y = ending(sums, values[residual] if residual >= 0 else None)
            return y if grid is not None else activate(y.to(like), epilogue)

        return self._new(True, w.shape[0], _Step("conv2d", name, compute, w), grid)

    def linear_int8(
        self, x: int, weight: Any, bias: Any, multiplier: Any, grid: Grid | None, limits: tuple[int, int], theta: Any,
        act: Sequence[Any], name: str,
    ) -> int:  # fmt: skip
        source = self._get("linear_int8", x, planes=False)
        w = torch.as_tensor(weight)
        if source.grid is None or w.dtype != torch.int8 or w.dim() != 2:
            raise Error("Program.linear_int8: x must be bytes, weight int8 [K, C]")
        ending = Ending(bias, multiplier, 0.0, None, grid, limits, theta)
        epilogue = self._act("linear_int8", act, w.shape[0])

        def compute(values: list[Tensor], like: Tensor) -> Tensor:
            y = ending(F.linear(values[x].double(), w.double()), None)
            return y if grid is not None else activate(y.to(like), epilogue)

        return self._new(False, w.shape[0], _Step("linear", name, compute, w), grid)

    def concat(self, xs: Sequence[int], name: str) -> int:
        planes = self._get("concat", xs[0]).planes
        sizes = [self._get("concat", x, planes).size for x in xs]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        ids = list(xs)
        compute = lambda values, like: torch.cat([values[x] for x in ids], 1)  # noqa: E731
        grids = {self._values[x].grid for x in ids}
        if len(grids) > 1:
            raise Error("Program.concat: xs must all be real values, or bytes of one scale")
        return self._new(planes, total, _Step("concat", name, compute), grids.pop())

    def select_channels(self, x: int, index: Sequence[int], name: str) -> int:
        source = self._get("select_channels", x, planes=True)
        wanted = torch.as_tensor(list(index))
        if not index or min(index) < 0 or (source.size is not None and max(index) >= source.size):
            raise Error(f"Program.select_channels: index must be in 0 .. {source.size} - 1")
        compute = lambda values, like: values[x].index_select(1, wanted.to(like.device))  # noqa: E731
        return self._new(True, len(wanted), _Step("select_channels", name, compute), source.grid)

    def flatten(self, x: int) -> int:
        grid = self._get("flatten", x, planes=True).grid
        return self._new(False, None, _Step("flatten", "flatten", lambda values, like: values[x].flatten(1)), grid)

    def output(self, x: int) -> None:
        if self._get("output", x).grid is not None:
            raise Error("Program.output: x must be real, not bytes")
        self._outputs.append(x)

    def finish(self) -> None:
        if not self._inputs or not self._outputs:
            raise Error("Program.finish: a program must have an input and an output")
        self._finished = True

    # ---- what is done with it ----

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs: planes [N, C, H, W], rows [N, F], in the order of the calls of :meth:`output`."""
        if not self._finished:
            raise Error("Program.run: finish() comes first")
        if len(inputs) != len(self._inputs):
            raise Error(f"engine_run: inputs must be {len(self._inputs)} tensors, got {len(inputs)}")
        values: list[Tensor] = []
        like = inputs[0].new_empty(0)
        given = iter(inputs)
        for id, value in enumerate(self._values):
            if id in self._steps:
                values.append(self._steps[id].compute(values, like))
                continue
            x = next(given)
            if x.dim() != (4 if value.planes else 2) or x.shape[1] != value.size or x.shape[0] != inputs[0].shape[0]:
                want = f"[{inputs[0].shape[0]}, {value.size}{', H, W' if value.planes else ''}]"
                raise Error(f"engine_run: inputs must be {want}, got {list(x.shape)}")
            values.append(x)
        return [values[id].clone(memory_format=torch.contiguous_format) for id in self._outputs]

    def prepare(
        self, batch: int, sizes: Sequence[Size], budget_s: float, example: Sequence[Any] = (), kernels: str = "fastest"
    ) -> None:
        """Nothing to plan."""

    def describe(self, batch: int, sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """One dict a step, with the keys of the C++ class; there are no times."""
        rows = []
        for step in self._steps.values():
            w = step.weight
            zeros = None if w is None else 1 - int(torch.count_nonzero(w)) / max(w.numel(), 1)
            rows.append(
                {"name": step.name, "kind": step.kind, "shape": None if w is None else tuple(w.shape), "zeros": zeros,
                 "kernel": "torch", "tile": None, "chunk": None, "ms": None, "dense_ms": None, "roofline": None,
                 "why": "the twin: plain torch"}
            )  # fmt: skip
        return rows


def _check_bias(where: str, bias: Tensor | None, weight: Tensor) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise Error(f"Program.{where}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")


#: Plain torch, for tests: float64 too.
REFERENCE = Backend(
    "reference",
    ReferenceProgram,
    lambda t: t.detach().clone(),
    lambda t: t.detach().clone(),
    lambda inputs, program: program.run(inputs),
    (torch.float32, torch.float64),
)

__all__ = ["NONE", "REFERENCE", "Act", "ReferenceProgram", "activate"]
