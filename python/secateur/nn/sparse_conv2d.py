"""A 2-d convolution that holds only its nonzeros."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._base import timing
from .._base.errors import Error
from .._base.library import host
from .._base.modules import version_of
from .sparse import SparseBase, check_weight, fill, lock

_BLOCKS_BUDGET_S = 0.3  # for choosing tiles


class SparseConv2d(SparseBase, nn.Conv2d):  # type: ignore[override,misc]  # weight can be read, not set
    """``nn.Conv2d`` that stores and multiplies only the nonzeros: any kernel size, stride, padding, dilation, groups.

    Made by :meth:`from_dense`. Input ``[N, C, H, W]`` or ``[C, H, W]``, output as ``nn.Conv2d``, contiguous. State:
    ``weight_mask`` uint8 ``[K, ceil(C / groups * R * S / 8)]``, ``weight_values`` ``[nnz]``, ``bias`` ``[K]`` or None.
    A zero weight is skipped: zero times Inf or NaN in the input counts for nothing here, where a dense layer gives NaN.

    Where gradients are off it can run the kernels of :func:`secateur.compile` instead of those for a single layer
    (``in_blocks``; :func:`secateur.convert` measures which are faster).
    """

    in_blocks: bool = False

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        nn.Module.__init__(self)
        check_weight("SparseConv2d", weight, "[K, C/groups, R, S]", 4)
        # The plain layer's own constructor checks the arguments and names the attributes; on meta it costs nothing.
        out_channels, channels, rows, columns = weight.shape
        try:
            plain = nn.Conv2d(
                channels * groups, out_channels, (rows, columns), stride, padding, dilation, groups,
                padding_mode=padding_mode, device="meta",
            )  # fmt: skip
        except ValueError as error:
            raise Error(f"SparseConv2d: {error}") from None
        for name in (*nn.Conv2d.__constants__, "_reversed_padding_repeated_twice", "transposed"):
            if name in plain.__dict__:
                self.__dict__[name] = plain.__dict__[name]
        self._begin(weight, bias)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d) -> SparseConv2d:
        """The same layer with its zeros left out; ``layer`` stays as it is and shares nothing with the result."""
        if not isinstance(layer, nn.Conv2d):
            raise Error(f"SparseConv2d.from_dense: layer must be an nn.Conv2d, got {type(layer).__name__}")
        made = cls(
            layer.weight, layer.bias, _pair(layer.stride), cast(Any, layer.padding), _pair(layer.dilation),
            layer.groups, layer.padding_mode,
        )  # fmt: skip
        made.train(layer.training)
        return made

    def to_dense(self) -> nn.Conv2d:
        """A plain ``nn.Conv2d`` with the zeros written out."""
        layer = nn.Conv2d(
            self.in_channels, self.out_channels, _pair(self.kernel_size), _pair(self.stride), cast(Any, self.padding),
            _pair(self.dilation), self.groups, self.bias is not None, self.padding_mode, self.weight_values.device,
            self.weight_values.dtype,
        )  # fmt: skip
        return cast(nn.Conv2d, fill(layer, self))

    def _padding(self) -> tuple[int, int]:
        """The zero padding that the kernel does itself; uneven "same" padding and other modes are padded beforehand."""
        if self._pads_before():
            return 0, 0
        left, _, top, _ = self._reversed_padding_repeated_twice
        return top, left

    def _pads_before(self) -> bool:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return self.padding_mode != "zeros" or left != right or top != bottom

    def _geometry(self) -> dict[str, Any]:
        return {
            "shape": self.weight_shape,
            "stride": _pair(self.stride),
            "padding": self._padding(),
            "dilation": _pair(self.dilation),
            "groups": self.groups,
        }

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor) and input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if self._pads_before():
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        return self._run(input)

    def _sparse(self, x: Tensor) -> Tensor:
        if self.in_blocks and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._takes(x):
            program = self._program_now(x)  # held while it runs
            made: Tensor = torch.ops.secateur.engine_run.default([x], program.id)[0]
            return made
        plan, _held = self._plan_id()
        return ops.sparse_conv2d(
            x, self.weight_mask, self.weight_values, self.bias, self.kernel_size, self.stride, self._padding(),
            self.dilation, self.groups, plan,
        )  # fmt: skip

    def _takes(self, x: Tensor) -> bool:
        """Whether the engine takes it. If not, the operator runs it, or refuses it with a reason."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            return False
        sizes = zip(x.shape[2:], self._padding(), _pair(self.dilation), _pair(self.kernel_size), strict=True)
        return all(size > 0 and size + 2 * pad > dilation * (kernel - 1) for size, pad, dilation, kernel in sizes)

    def _program_now(self, x: Tensor) -> host.Program:
        """The layer as a program of the engine, made at first use and whenever the weights or the bias have changed."""
        made = self._program
        if made is None or made[0] != self._program_state():
            with lock:
                made, state = self._program, self._program_state()
                if made is None or made[0] != state:
                    made = self._program = (state, self._new_program(x))
        return made[1]

    def _program_state(self) -> tuple[int, ...]:
        bias = self.bias
        return (*self._weight_state(), *((bias.data_ptr(), version_of(bias)) if bias is not None else ()))

    def _new_program(self, x: Tensor) -> host.Program:
        bias = self.bias
        program = host.Program()
        top, left = self._padding()
        attributes = {
            "weight": self.weight.numpy(force=True), "bias": None if bias is None else bias.numpy(force=True),
            "stride": _pair(self.stride), "padding": (top, left, top, left), "dilation": _pair(self.dilation),
            "groups": self.groups,
        }  # fmt: skip
        y = program.add("conv2d", [program.input_planes(self.in_channels)], attributes)
        program.output(y)
        program.finish()
        program.prepare([(x.shape[2], x.shape[3])], _BLOCKS_BUDGET_S)
        return program

    def _choose_form(self, x: Tensor) -> None:
        """Measure which sparse kernels are faster on this input."""
        self.in_blocks = False
        if not self._takes(x) or x.numel() == 0 or x.dtype != self.weight_values.dtype:
            return

        def run(in_blocks: bool) -> Tensor:
            self.in_blocks = in_blocks
            return self._sparse(x)

        with torch.no_grad():
            single, blocks = timing.medians([lambda: run(False), lambda: run(True)], rounds=7, budget_s=0.3)
        self.in_blocks = blocks < single
        if not self.in_blocks:
            self._program = None

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, self.stride, self._padding(), self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, sparsity={self.sparsity:.3f}"


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
