"""Steps -> calls of the builder; decides which values are bytes (int8) and which floats."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ..backends.program import NONE, Act, Backend, Grid, ProgramLike, declares
from ..recognise.steps import PLANES, POOLED, ROWS, Context, Input, Step

_MOVES = ("max_pool", "select_channels", "flatten", "concat")  # bytes stay as they are

Feed = tuple[int, str, int]  # an argument's place, its layout, its channels or features


class Wanted(Protocol):
    """The part of a :class:`~secateur.engine.lowering.segment.SegmentIO` that the writer reads."""

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
        self.grids: dict[int, Grid | None] = {}  # by id: what bytes stand for; None: floats
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
        key = (node, ROWS if layout in (ROWS, POOLED) else layout)
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
        return self.given[(node, ROWS if layout in (ROWS, POOLED) else layout)]

    def _handed(self, value: Any) -> Any:
        """An attribute as the backend takes it: floats in the network's dtype, integers as they are."""
        if isinstance(value, Act):
            return value._replace(theta=self._handed(value.theta))
        if not isinstance(value, Tensor):
            return value
        return self.backend.array(value.to(self.dtype)) if value.is_floating_point() else self.backend.integers(value)

    def _attributes(self, step: Step, **changed: Any) -> dict[str, Any]:
        attributes = {**step.attributes, **changed}
        weight, scale = attributes.get("weight"), step.row_scale
        if weight is not None and scale is not None:
            attributes["weight"] = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
        return {name: self._handed(value) for name, value in attributes.items()}

    # ---- bytes and floats ----

    def real(self, node: fx.Node) -> int:
        """The id of a step's result as floats."""
        return self._real(self.ids[node], node.name)

    def _real(self, id: int, name: str) -> int:
        if self.grids.get(id) is None:
            return id
        if (id, None) not in self.casts:
            self.casts[(id, None)] = self.program.add("dequantize", [id], {}, f"{name} (dequantize)")
        return self.casts[(id, None)]

    def _bytes(self, id: int, grid: Grid, name: str) -> int:
        if self.grids.get(id) == grid:
            return id
        if (id, grid) not in self.casts:
            made = self._quantize(self._real(id, name), grid, f"{name} (quantize)")
            self.casts[(id, grid)] = made
            self.grids[made] = grid
        return self.casts[(id, grid)]

    def _quantize(self, id: int, grid: Grid, name: str) -> int:
        return self.program.add("quantize", [id], {"grid": grid}, name)

    def _takes_bytes(self, s: Step, i: int, ids: list[int]) -> bool:
        """Whether input ``i``, if it is bytes, may stay so. Kinds that can give bytes also take images of bytes."""
        if s.kind in _MOVES:
            return s.kind != "concat" or self._alike(s, ids)
        if s.kind == "quantize" or (s.kind == "avg_pool" and s.grid is None):
            return False
        return declares(s.kind, "grid") and s.inputs[i][1] == PLANES

    def _write(self, s: Step) -> int:
        name = f"{self.path}.{s.name}" if self.path else s.name
        ids = [self._id(source) for source in s.inputs]
        if s.weight_scale is not None:
            return self._integer_layer(s, ids, name)
        if s.kind == "quantize" and self.grids.get(ids[0]) == s.grid and s.attributes.get("theta") is None:
            return ids[0]
        ids = [id if self._takes_bytes(s, i, ids) else self._real(id, name) for i, id in enumerate(ids)]
        # Pools average bytes into bytes; averages of floats are quantized afterwards.
        late = s.kind in ("avg_pool", "global_avg_pool") and s.grid is not None and self.grids.get(ids[0]) is None
        made = self.program.add(s.kind, ids, self._attributes(s, **({"grid": None} if late else {})), name)
        if late and s.grid is not None:
            made = self._quantize(made, s.grid, f"{name} (quantize)")
        self.grids[made] = self.grids.get(ids[0]) if s.kind in _MOVES else s.grid
        return made

    def _integer_layer(self, s: Step, ids: list[int], name: str) -> int:
        """An int8 convolution or linear layer, and the steps that give it bytes."""
        assert s.grid_in is not None
        grid = s.grid
        x = self._bytes(ids[0], s.grid_in, name)
        residual = ids[1] if len(ids) > 1 else -1
        if residual >= 0 and (grid is None or self.grids.get(residual) is None):
            # The epilogue adds bytes to bytes only: a sum of floats is a step of its own.
            alone = self._integers(s, [x], None, name, act=NONE, theta=None)
            ends = {key: self._handed(s.attributes.get(key)) for key in ("act", "grid", "theta")}
            other = self._real(residual, name)
            made = self.program.add("map", [alone, other], {"join": "add", **ends}, f"{name} (sum)")
        elif grid is None:
            made = self._integers(s, [x], None, name, theta=None)
        else:
            xs = [x] if residual < 0 else [x, residual]
            made = self._integers(s, xs, grid, name, limits=bounds(s.act, grid), act=NONE)
        self.grids[made] = grid
        return made

    def _integers(self, s: Step, ids: list[int], grid: Grid | None, name: str, **ends: Any) -> int:
        assert s.weight is not None
        assert s.weight_scale is not None
        assert s.grid_in is not None
        unit = s.weight_scale.double() * s.grid_in[0] / (1.0 if grid is None else grid[0])
        # The layer sums q - zero_point, the kernels sum q.
        lead = s.grid_in[1] * s.weight.to(torch.int64).flatten(1).sum(1)
        whole = s.attributes["bias"].to(torch.int64) - lead
        if bool((whole.abs() >= 2**31).any()):
            raise ValueError(f"{name}: its sums do not fit 32 bits")
        other = self.grids.get(ids[1]) if len(ids) > 1 else None
        if other is not None and grid is not None:
            ends["residual_multiplier"] = other[0] / grid[0]
        made = self._attributes(s, bias=whole.to(torch.int32), multiplier=unit.float(), grid=grid, **ends)
        return self.program.add(f"{s.kind}_int8", ids, made, name)

    def _alike(self, s: Step, ids: list[int]) -> bool:
        """Whether they can be concatenated as they are: images of bytes on one grid, or floats."""
        grids = {self.grids.get(id) for id in ids}
        return grids == {None} or (len(grids) == 1 and s.out == PLANES)


def bounds(act: Act, grid: Grid) -> tuple[int, int]:
    """An activation ("clamp" or none) as limits of bytes: rounding is monotonic, so they may be applied after it."""
    zero = grid[1]
    inverse = (1.0 / torch.tensor(grid[0], dtype=torch.float32).double()).float()

    def place(v: Any) -> Tensor:  # as Quantize has it
        return torch.clamp(torch.round(torch.as_tensor(v).float() * inverse) + zero, 0, 255)

    if act.kind == "clamp":
        return int(place(act.lo)), int(place(act.hi))
    return 0, 255


__all__ = ["Feed", "Writer", "bounds"]
