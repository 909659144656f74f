"""Steps -> calls of the builder; what is bytes and what is real is settled here."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ..backends.program import NONE, Act, Backend, Grid, ProgramLike
from ..recognise.steps import PLANES, ROWS, ROWS4, Context, Input, Step

Feed = tuple[int, str, int]  # an argument's place, its layout, its channels or features


class Wanted(Protocol):
    """What the writer needs to know of a segment's plan."""

    externals: list[fx.Node]


class Writer:
    """Steps -> calls of the builder."""

    def __init__(self, ctx: Context, plan: Wanted, backend: Backend, path: str) -> None:
        self.ctx = ctx
        self.plan = plan
        self.backend = backend
        self.path = path
        self.program = backend.make()
        self.ids: dict[fx.Node, int] = {}
        self.given: dict[Input, int] = {}
        self.feeds: list[Feed] = []
        self.dtype = torch.float32
        self.grids: dict[int, Grid | None] = {}  # by id: what bytes stand for; None: real values
        self.casts: dict[tuple[int, Grid | None], int] = {}

    def write(self, steps: list[Step]) -> ProgramLike:
        made = {step.node for step in steps}
        first = next(source for step in steps for source, _ in step.inputs if source not in made)
        self.dtype = self.ctx.meta(first).dtype or torch.float32
        for step in steps:  # inputs first: the program's order is that of its arguments
            for source in step.inputs:
                if source[0] not in made:
                    self._input(source)
        for step in steps:
            self.ids[step.node] = self._write(step)
        return self.program

    def _input(self, source: Input) -> None:
        node, layout = source
        key = (node, ROWS if layout in (ROWS, ROWS4) else layout)
        if key in self.given:
            return
        size = self.ctx.channels(node, layout)
        program = self.program
        self.given[key] = program.input_planes(size) if layout == PLANES else program.input_rows(size)
        self.feeds.append((self.plan.externals.index(node), layout, size))

    def _id(self, source: Input) -> int:
        node, layout = source
        if node in self.ids:
            return self.ids[node]
        return self.given[(node, ROWS if layout in (ROWS, ROWS4) else layout)]

    def _array(self, t: Tensor | None) -> Any:
        return None if t is None else self.backend.array(t.to(self.dtype))

    def _weight(self, step: Step) -> Any:
        weight, scale = step.weight, step.row_scale
        if weight is not None and scale is not None:
            weight = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
        return self._array(weight)

    def _act(self, act: Act) -> Act:
        return act if act.theta is None else act._replace(theta=self._array(act.theta))

    # ---- bytes and real values ----

    def real(self, node: fx.Node) -> int:
        """The id of a step's result as real values."""
        return self._real(self.ids[node], node.name)

    def _real(self, id: int, name: str) -> int:
        if self.grids.get(id) is None:
            return id
        if (id, None) not in self.casts:
            self.casts[(id, None)] = self.program.dequantize(id, f"{name} (dequantize)")
        return self.casts[(id, None)]

    def _bytes(self, id: int, grid: Grid, name: str) -> int:
        if self.grids.get(id) == grid:
            return id
        if (id, grid) not in self.casts:
            made = self.program.quantize(self._real(id, name), grid, None, f"{name} (quantize)")
            self.casts[(id, grid)] = made
            self.grids[made] = grid
        return self.casts[(id, grid)]

    def _theta(self, theta: Tensor | None) -> Any:
        return None if theta is None else self.backend.integers(theta)

    def _write(self, s: Step) -> int:
        name = f"{self.path}.{s.name}" if self.path else s.name
        ids = [self._id(source) for source in s.inputs]
        if s.weight_scale is not None:
            made = self._integer_layer(s, ids, name)
        else:
            if s.kind == "concat" and not self._alike(s, ids):
                ids = [self._real(id, name) for id in ids]
            made = self._call(s, ids, name)
            kept = s.kind in ("max_pool", "select", "flatten", "concat")
            self.grids[made] = self.grids.get(ids[0]) if kept else s.grid
        return made

    def _integer_layer(self, s: Step, ids: list[int], name: str) -> int:
        """A convolution or a linear layer of bytes, and what it takes to give it some."""
        assert s.grid_in is not None
        program, grid = self.program, s.grid
        x = self._bytes(ids[0], s.grid_in, name)
        residual = ids[1] if len(ids) > 1 else -1
        if residual >= 0 and (grid is None or self.grids.get(residual) is None):
            # Only bytes are added to bytes: the sum of real values is a step of its own.
            alone = self._integers(s, x, -1, None, (0, 255), None, NONE, name)
            other = self._real(residual, name)
            made = program.map(
                alone, None, None, "add", other, self._act(s.act), f"{name} (sum)", grid, self._theta(s.theta)
            )
            self.grids[made] = grid
            return made
        if grid is None:
            return self._integers(s, x, -1, None, (0, 255), None, self._act(s.act), name)
        made = self._integers(s, x, residual, grid, bounds(s.act, grid), s.theta, NONE, name)
        self.grids[made] = grid
        return made

    def _integers(
        self, s: Step, x: int, residual: int, grid: Grid | None, limits: tuple[int, int], theta: Tensor | None,
        act: Act, name: str,
    ) -> int:  # fmt: skip
        assert s.weight is not None
        assert s.weight_scale is not None
        assert s.bias is not None
        assert s.grid_in is not None
        unit = s.weight_scale.double() * s.grid_in[0] / (1.0 if grid is None else grid[0])
        # The layer sums q - zero_point, the kernels sum q.
        lead = s.grid_in[1] * s.weight.to(torch.int64).flatten(1).sum(1)
        whole = s.bias.to(torch.int64) - lead
        if bool((whole.abs() >= 2**31).any()):
            raise ValueError(f"{name}: its sums do not fit 32 bits")
        weight, bias = self.backend.integers(s.weight), self.backend.integers(whole.to(torch.int32))
        ends = (grid, limits, self._theta(theta), act, name)
        if s.kind == "linear":
            return self.program.linear_int8(x, weight, bias, self.backend.integers(unit.float()), *ends)
        other = self.grids.get(residual)
        ratio = 0.0 if other is None or grid is None else other[0] / grid[0]
        return self.program.conv2d_int8(
            x, weight, bias, self.backend.integers(unit.float()), s.stride, s.padding, s.dilation, s.groups, residual,
            ratio, *ends,
        )  # fmt: skip

    def _call(self, s: Step, ids: list[int], name: str) -> int:
        program, x = self.program, ids[0]
        if s.kind == "conv2d":
            residual = self._real(ids[1], name) if len(ids) > 1 else -1
            return program.conv2d(
                self._real(x, name), self._weight(s), self._array(s.bias), s.stride, s.padding, s.dilation, s.groups,
                residual, self._act(s.act), name,
            )  # fmt: skip
        if s.kind == "linear":
            return program.linear(self._real(x, name), self._weight(s), self._array(s.bias), self._act(s.act), name)
        if s.kind == "max_pool":
            return program.max_pool(x, s.kernel, s.stride, s.padding[:2], s.dilation, s.ceil_mode, name)
        if s.kind == "avg_pool":
            x = x if s.grid is not None and self.grids.get(x) is not None else self._real(x, name)
            return self._quantized(
                s, program.avg_pool(
                    x, s.kernel, s.stride, s.padding[:2], s.ceil_mode, s.count_include_pad, s.divisor, name,
                    s.grid if self.grids.get(x) is not None else None,
                ), x, name,
            )  # fmt: skip
        if s.kind == "global_avg_pool":
            grid = s.grid if self.grids.get(x) is not None else None
            return self._quantized(s, program.global_avg_pool(x, name, grid), x, name)
        if s.kind == "concat":
            return program.concat(ids, name)
        if s.kind == "select":
            return program.select_channels(x, s.index, name)
        if s.kind == "flatten":
            return program.flatten(x)
        if s.kind == "quantize":
            assert s.grid is not None
            if self.grids.get(x) == s.grid and s.theta is None:
                return x
            return program.quantize(self._real(x, name), s.grid, self._theta(s.theta), name)
        assert s.kind == "map", s.kind
        other = ids[1] if s.join != "none" else -1
        if s.inputs[0][1] != PLANES:
            x = self._real(x, name)
        if other >= 0 and s.inputs[1][1] != PLANES:
            other = self._real(other, name)
        return program.map(
            x, self._array(s.scale), self._array(s.shift), s.join, other, self._act(s.act), name, s.grid,
            self._theta(s.theta),
        )  # fmt: skip

    def _alike(self, s: Step, ids: list[int]) -> bool:
        """Whether they can be joined as they are: images of bytes of one scale, or real values."""
        grids = {self.grids.get(id) for id in ids}
        return grids == {None} or (len(grids) == 1 and s.out == PLANES)

    def _quantized(self, s: Step, made: int, x: int, name: str) -> int:
        """The pool of real values that is wanted in bytes."""
        if s.grid is None or self.grids.get(x) is not None:
            return made
        return self.program.quantize(made, s.grid, None, f"{name} (quantize)")


def bounds(act: Act, grid: Grid) -> tuple[int, int]:
    """An activation ("clamp" or none) as limits of bytes: rounding keeps the order, so they may be taken after it."""
    zero = grid[1]
    inverse = (1.0 / torch.tensor(grid[0], dtype=torch.float32).double()).float()

    def place(v: Any) -> Tensor:  # as Quantize has it
        return torch.clamp(torch.round(torch.as_tensor(v).float() * inverse) + zero, 0, 255)

    if act.kind == "clamp":
        return int(place(act.lo)), int(place(act.hi))
    return 0, 255


__all__ = ["Feed", "Writer", "bounds"]
