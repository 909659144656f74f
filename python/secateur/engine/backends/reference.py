"""The plain-torch twin of ``secateur._host.Program``: same builder, same checks, any floating dtype, no speed.

It is the oracle for the engine's tests and for the front end's: in float64 a front end that folds, fuses or reorders
wrongly differs from the model by far more than rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._base.errors import Error
from .program import KINDS, NONE, Act, Backend, Grid, Size, Unplannable
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
    compute: Callable[[list[Tensor], Tensor], Tensor]  # as _Compute
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
    """See :class:`secateur.engine.backends.program.ProgramLike`; :meth:`run` computes."""

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

    def input_planes(self, channels: int) -> int:
        self._inputs.append(self._new(True, channels))
        return self._inputs[-1]

    def input_rows(self, features: int) -> int:
        self._inputs.append(self._new(False, features))
        return self._inputs[-1]

    def add(self, kind: str, inputs: Sequence[int], attributes: Mapping[str, Any] = {}, name: str | None = None) -> int:
        if kind not in KINDS:
            raise Error(f'Program.add: no kind of operation is named "{kind}"')
        required, known = KINDS[kind]
        for attribute in attributes:
            if attribute not in known:
                raise Error(f'Program.{kind}: it has no attribute "{attribute}"')
        given = {key: value for key, value in attributes.items() if value is not None}
        for attribute in required:
            if attribute not in given:
                raise Error(f"Program.{kind}: attribute {attribute} is missing")
        made = _TWINS[kind](_Adding(self, kind, list(inputs), {**known, **given}))
        return self._new(made.planes, made.size, _Step(kind, name or kind, made.compute, made.weight), made.grid)

    def output(self, x: int) -> None:
        if self._get("output", x).grid is not None:
            raise Error("Program.output: x must be real, not bytes")
        self._outputs.append(x)

    def finish(self) -> None:
        if not self._inputs or not self._outputs:
            raise Error("Program.finish: a program must have an input and an output")
        self._finished = True

    # ---- using the program ----

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
        self, sizes: Sequence[Size], budget_s: float, example: Sequence[Any] = (), kernels: str = "fastest"
    ) -> None:
        """Nothing to plan."""

    def describe(self, sizes: Sequence[Size]) -> list[dict[str, Any]]:
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


# ---- the kinds: one function each, which checks, and returns the output and how it is computed ----

_Compute = Callable[[list[Tensor], Tensor], Tensor]  # (values so far, a tensor of the wanted dtype and device)


class _Made(NamedTuple):
    planes: bool
    size: int | None
    compute: _Compute
    grid: Grid | None = None
    weight: Tensor | None = None


@dataclass
class _Adding:
    """An operation that is being added to a program."""

    program: ReferenceProgram
    kind: str
    inputs: list[int]
    attributes: dict[str, Any]  # all that the kind declares

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def fail(self, rule: str) -> Error:
        return Error(f"Program.{self.kind}: {rule}")

    def value(self, i: int, planes: bool | None = None) -> _Value:
        if i >= len(self.inputs):
            raise self.fail("needs an input")
        return self.program._get(self.kind, self.inputs[i], planes)

    def tensor(self, attribute: str, shape: tuple[int, ...] | None = None) -> Tensor | None:
        value = self.attributes[attribute]
        t = None if value is None else torch.as_tensor(value)
        if t is not None and shape is not None and t.shape != shape:
            raise self.fail(f"{attribute} must be {list(shape)}, got {list(t.shape)}")
        return t

    def act(self, channels: int | None) -> Act:
        made = Act(*self.attributes["act"])
        if made.kind not in _KINDS:
            raise self.fail(f"act must be one of {', '.join(_KINDS)}, got {made.kind!r}")
        if (made.theta is not None) != (made.kind == "threshold"):
            raise self.fail('act must have a theta if, and only if, it is "threshold"')
        if made.theta is not None and channels is not None and torch.as_tensor(made.theta).shape != (channels,):
            raise self.fail(f"theta must be [{channels}], got {list(torch.as_tensor(made.theta).shape)}")
        return made

    def real(self, i: int) -> _Compute:
        """Input ``i`` as floats."""
        id, grid = self.inputs[i], self.value(i).grid
        if grid is None:
            return lambda values, like: values[id]
        return lambda values, like: dequantize(values[id], grid).to(like)


def _conv2d(op: _Adding) -> _Made:
    x, source = op.inputs[0], op.value(0, planes=True)
    w, stride, dilation, groups = torch.as_tensor(op["weight"]), op["stride"], op["dilation"], op["groups"]
    if w.dim() != 4 or w.shape[1] * groups != source.size or w.shape[0] % groups:
        raise op.fail(f"weight must be [K, {source.size} / groups, R, S] with groups = {groups}, got {list(w.shape)}")
    b = op.tensor("bias", (w.shape[0],))
    residual = op.inputs[1] if len(op.inputs) > 1 else -1
    if residual >= 0 and op.value(1, planes=True).size != w.shape[0]:
        raise op.fail(f"residual must have {w.shape[0]} channels")
    act = op.act(w.shape[0])
    top, left, bottom, right = op["padding"]

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        padded = F.pad(values[x], (left, right, top, bottom))
        y = F.conv2d(padded, w.to(like), None if b is None else b.to(like), stride, 0, dilation, groups)
        return activate(y if residual < 0 else y + values[residual], act)

    return _Made(True, w.shape[0], compute, weight=w)


def _linear(op: _Adding) -> _Made:
    x, source, w = op.inputs[0], op.value(0, planes=False), torch.as_tensor(op["weight"])
    if w.dim() != 2 or (source.size is not None and w.shape[1] != source.size):
        raise op.fail(f"weight must be [K, {source.size}], got {list(w.shape)}")
    b, act = op.tensor("bias", (w.shape[0],)), op.act(w.shape[0])

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        return activate(F.linear(values[x], w.to(like), None if b is None else b.to(like)), act)

    return _Made(False, w.shape[0], compute, weight=w)


def _pool_padding(op: _Adding) -> Size:
    top, left, bottom, right = op["padding"]
    if (top, left) != (bottom, right):
        raise op.fail(f"padding must be the same on both sides here, got {(top, left, bottom, right)}")
    return top, left


def _max_pool(op: _Adding) -> _Made:
    x, source, padding = op.inputs[0], op.value(0, planes=True), _pool_padding(op)
    kernel, stride, dilation, ceil_mode = op["kernel"], op["stride"], op["dilation"], op["ceil_mode"]
    compute = lambda values, like: F.max_pool2d(values[x], kernel, stride, padding, dilation, ceil_mode)  # noqa: E731
    return _Made(True, source.size, compute, source.grid)


def _avg_pool(op: _Adding) -> _Made:
    x, source, grid = op.inputs[0], op.value(0, planes=True), op["grid"]
    window = (
        op["kernel"], op["stride"], _pool_padding(op), op["ceil_mode"], op["count_include_pad"], op["divisor"] or None
    )  # fmt: skip

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        if source.grid is not None:
            return average(values[x], window, source.grid, grid or source.grid)
        return F.avg_pool2d(values[x], *window)

    return _Made(True, source.size, compute, None if source.grid is None else grid or source.grid)


def _global_avg_pool(op: _Adding) -> _Made:
    x, source, grid = op.inputs[0], op.value(0, planes=True), op["grid"]

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        if source.grid is None:
            return values[x].mean((2, 3))
        sums = (values[x] - source.grid[1]).sum((2, 3)).to(torch.float32)
        scale = torch.tensor(source.grid[0], dtype=torch.float32).double() / values[x][0, 0].numel()
        if grid is None:
            return (sums * scale.float()).to(like)
        return quantize(sums * (scale / torch.tensor(grid[0]).double()).float(), (1.0, grid[1]), None)

    return _Made(False, source.size, compute, grid)


def _map(op: _Adding) -> _Made:
    source, join, grid, theta = op.value(0), op["join"], op["grid"], op["theta"]
    shape = None if source.size is None else (source.size,)
    factor, offset, act = op.tensor("scale", shape), op.tensor("shift", shape), op.act(source.size)
    if join not in ("none", "add", "multiply") or (join == "none") != (len(op.inputs) == 1):
        raise op.fail(f'join must be "none" without other, "add" or "multiply" with it, got {join!r}')
    first, second = op.real(0), None if join == "none" else op.real(1)
    broadcast = join != "none" and source.planes and not op.value(1).planes
    if join != "none" and not source.planes:
        op.value(1, planes=False)

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        y = first(values, like)
        per_channel = (1, -1, 1, 1) if y.dim() == 4 else (1, -1)
        if factor is not None:
            y = y * factor.to(like).reshape(per_channel)
        if offset is not None:
            y = y + offset.to(like).reshape(per_channel)
        if second is not None:
            other = second(values, like)
            other = other[:, :, None, None] if broadcast else other
            if not broadcast and other.shape != y.shape:
                raise Unplannable(f"map: {list(y.shape)} and {list(other.shape)} must be the same")
            y = y + other if join == "add" else y * other
        y = activate(y, act)
        return y if grid is None else quantize(y, grid, theta)

    return _Made(source.planes, source.size, compute, grid)


def _quantize(op: _Adding) -> _Made:
    x, source, grid, theta = op.inputs[0], op.value(0), op["grid"], op["theta"]
    return _Made(source.planes, source.size, lambda values, like: quantize(values[x], grid, theta), grid)


def _dequantize(op: _Adding) -> _Made:
    source = op.value(0)
    if source.grid is None:
        raise op.fail("x must be bytes")
    return _Made(source.planes, source.size, op.real(0))


def _conv2d_int8(op: _Adding) -> _Made:
    x, source, w = op.inputs[0], op.value(0, planes=True), torch.as_tensor(op["weight"])
    stride, dilation, groups, grid = op["stride"], op["dilation"], op["groups"], op["grid"]
    if source.grid is None or w.dtype != torch.int8 or w.dim() != 4 or w.shape[1] * groups != source.size:
        raise op.fail("x must be bytes, weight int8 [K, C / groups, R, S]")
    zero = source.grid[1]
    residual = op.inputs[1] if len(op.inputs) > 1 else -1
    other = None if residual < 0 else op.value(1, planes=True).grid
    ending = Ending(op["bias"], op["multiplier"], op["residual_multiplier"], other, grid, op["limits"], op["theta"])
    act = op.act(w.shape[0])
    top, left, bottom, right = op["padding"]

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        padded = F.pad(values[x].double(), (left, right, top, bottom), value=zero)
        sums = F.conv2d(padded, w.double(), None, stride, 0, dilation, groups)
        y = ending(sums, values[residual] if residual >= 0 else None)
        return y if grid is not None else activate(y.to(like), act)

    return _Made(True, w.shape[0], compute, grid, w)


def _linear_int8(op: _Adding) -> _Made:
    x, source, w, grid = op.inputs[0], op.value(0, planes=False), torch.as_tensor(op["weight"]), op["grid"]
    if source.grid is None or w.dtype != torch.int8 or w.dim() != 2:
        raise op.fail("x must be bytes, weight int8 [K, C]")
    ending = Ending(op["bias"], op["multiplier"], 0.0, None, grid, op["limits"], op["theta"])
    act = op.act(w.shape[0])

    def compute(values: list[Tensor], like: Tensor) -> Tensor:
        y = ending(F.linear(values[x].double(), w.double()), None)
        return y if grid is not None else activate(y.to(like), act)

    return _Made(False, w.shape[0], compute, grid, w)


def _concat(op: _Adding) -> _Made:
    planes, ids = op.value(0).planes, op.inputs
    sources = [op.value(i, planes) for i in range(len(ids))]
    total: int | None = 0
    for source in sources:
        total = None if total is None or source.size is None else total + source.size
    if len({source.grid for source in sources}) > 1:
        raise op.fail("xs must all be real values, or bytes of one scale")
    return _Made(planes, total, lambda values, like: torch.cat([values[x] for x in ids], 1), sources[0].grid)


def _select_channels(op: _Adding) -> _Made:
    x, source, index = op.inputs[0], op.value(0, planes=True), list(op["index"])
    wanted = torch.as_tensor(index)
    if not index or min(index) < 0 or (source.size is not None and max(index) >= source.size):
        raise op.fail(f"index must be in 0 .. {source.size} - 1")
    compute = lambda values, like: values[x].index_select(1, wanted.to(like.device))  # noqa: E731
    return _Made(True, len(wanted), compute, source.grid)


def _flatten(op: _Adding) -> _Made:
    x = op.inputs[0]
    return _Made(False, None, lambda values, like: values[x].flatten(1), op.value(0, planes=True).grid)


_TWINS: dict[str, Callable[[_Adding], _Made]] = {
    "conv2d": _conv2d,
    "conv2d_int8": _conv2d_int8,
    "linear": _linear,
    "linear_int8": _linear_int8,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global_avg_pool,
    "map": _map,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "concat": _concat,
    "select_channels": _select_channels,
    "flatten": _flatten,
}


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
