"""Layers that hold only their nonzeros and do work in proportion to them.

They stand where ``nn.Linear`` and ``nn.Conv2d`` stood (and are subclasses of them). Instead of ``weight`` their state
is ``weight_mask`` (packed bits) and ``weight_values`` (the nonzeros in the mask's order); ``weight`` is a property that
unpacks them. float32 on the CPU runs the sparse kernels; every other device and dtype runs the plain-torch twin.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _fork, _host, ops, timing
from .._errors import Error
from ..reference import rows_and_columns

L = TypeVar("L", bound="_Sparse")

_BLOCKS_BUDGET_S = 0.3  # for choosing tiles

# Held while a layer makes its plan, chooses its form or takes a state_dict: a thread that calls meanwhile runs what was
# there before, or waits. A fork waits too, so that no child finds it locked by a thread that it does not have.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass
class Trial:
    """A layer that has yet to choose: at its first call it times both forms and keeps the faster one.

    ``row`` is the layer's row in the report of :func:`secateur.convert`; the decision is written there.
    """

    row: dict[str, Any]

    def decide(self, sparse: Callable[[], Tensor], dense: Callable[[], Tensor]) -> bool:
        """Whether the sparse form is faster."""
        ms, dense_ms = (1e3 * seconds for seconds in timing.medians([sparse, dense], rounds=9, budget_s=1.0))
        faster = ms < dense_ms
        why = f"{dense_ms / ms:.2f}x as fast as dense" if faster else f"sparse would take {ms / dense_ms:.2f}x as long"
        self.row.update(ms=ms, dense_ms=dense_ms, kernel="sparse" if faster else "dense", why=f"{why} (first call)")
        return faster


class _Sparse(nn.Module):
    """What both layers share; stands before the plain layer among the bases.

    Any number of threads may call a layer. ``load_state_dict`` while they do gives each call the old nonzeros or the
    new ones, never some of both (the bias is read where it is, as in torch's layers).
    """

    weight_mask: Tensor  # uint8 [K, ceil(weights per neuron / 8)]
    weight_values: nn.Parameter  # [nnz]
    _plan: tuple[object, _host.Plan] | None
    _program: tuple[object, _host.Program] | None  # of a convolution in blocks
    trial: Trial | None  # set while the layer has yet to choose between its forms
    dense_weight: Tensor | None  # the unpacked weight, where the dense form was faster; not in the state_dict

    def _begin(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the nonzeros of a dense weight; a copy, in its dtype and on its device."""
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
            got = list(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
            raise Error(f"{type(self).__name__}: bias must be [{weight.shape[0]}], got {got}")
        weight = weight.detach()
        keep = weight != 0
        self.weight_shape = tuple(weight.shape)
        self.register_buffer("weight_mask", ops.mask_pack(keep))
        # Not trained unless asked for: the layer is for running what was trained.
        self.weight_values = nn.Parameter(weight[keep], requires_grad=False)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self._plan = None
        self._program = None
        self.trial = None
        self.register_buffer("dense_weight", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked at each access; it shares nothing with the layer, but carries its gradient."""
        return ops.sparse_weight(self.weight_mask, self.weight_values, self.weight_shape)

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights, 0 to 1."""
        rows, columns = rows_and_columns(self.weight_shape)
        return 1 - self.weight_values.numel() / max(rows * columns, 1)

    def _geometry(self) -> dict[str, Any]:
        raise NotImplementedError

    def _sparse(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _choose_form(self, x: Tensor) -> None:
        """Where there are several sparse kernels: choose."""

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise Error(f"{type(self).__name__}: input must be a tensor, got {type(x).__name__}")
        dense = self.dense_weight  # once: another thread may take it away
        if dense is not None:
            if _fork.forked:
                _fork.settle()
            return self._dense(x, dense)
        if x.dtype != torch.float32 or self.weight_values.dtype != torch.float32 or x.device.type != "cpu":
            return self._dense(x, self.weight)  # the twin
        if self.trial is not None and not torch.compiler.is_compiling() and x.numel() > 0:
            self._try(x)
            return self._run(x)
        return self._sparse(x)

    def _try(self, x: Tensor) -> None:
        """The first call: time both forms, keep the faster one. Other threads wait for the choice."""
        with _lock:
            trial = self.trial
            if trial is None:
                return
            x, weight = x.detach(), self.weight.detach()
            self._choose_form(x)
            with torch.no_grad():
                if not trial.decide(lambda: self._sparse(x), lambda: self._dense(x, weight)):
                    self.dense_weight = weight
            self.trial = None

    def _plan_id(self) -> tuple[int, _host.Plan | None]:
        """The plan of the weights as they are now, made at first use and whenever they have changed; and what keeps
        it alive, to be held while it is used, for another thread may make the next one.

        A change is seen by the tensors' version counters. ``values.data`` has a counter of its own: what is written
        through it is not seen (write under ``torch.no_grad()`` instead, or replace the parameter).
        """
        if self.training and self.weight_values.requires_grad:
            return 0, None  # they change at every step: unpacked in the call
        if torch.compiler.is_exporting():
            return 0, None  # an exported program outlives this process
        if torch.compiler.is_compiling():
            return self._plan_constant(), None
        plan = self._plan_now()
        return plan.id, plan

    @torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # a compiled graph holds the id as a constant
    def _plan_constant(self) -> int:
        return self._plan_now().id

    def _plan_now(self) -> _host.Plan:
        made = self._plan
        if made is None or made[0] != self._weight_state():
            with _lock:
                made, state = self._plan, self._weight_state()
                if made is None or made[0] != state:
                    mask, values = self.weight_mask.numpy(force=True), self.weight_values.numpy(force=True)
                    made = self._plan = (state, _host.Plan(mask, values, **self._geometry()))
        return made[1]

    def _weight_state(self) -> tuple[int, ...]:
        """Changes whenever the weights do, but for what is written through ``.data``."""
        values, mask = self._parameters["weight_values"], self._buffers["weight_mask"]  # no search by __getattr__
        assert values is not None
        assert mask is not None
        return values.data_ptr(), mask.data_ptr(), _version(values), _version(mask), values.numel()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_program": None}  # they belong to this process and this object

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        """Packed tensors of another number of nonzeros load too; what does not fit together is refused whole."""
        with _lock:
            self._load(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _load(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        mask, values = state_dict.get(f"{prefix}weight_mask"), state_dict.get(f"{prefix}weight_values")
        if mask is not None and values is not None:
            try:
                self._check(mask, values)
            except Error as error:
                errors.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
                return
            if values.shape != self.weight_values.shape:
                resized = torch.empty(values.shape, dtype=self.weight_values.dtype, device=self.weight_values.device)
                self.weight_values = nn.Parameter(resized, requires_grad=self.weight_values.requires_grad)
            self._plan = self._program = self.dense_weight = None
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _check(self, mask: Tensor, values: Tensor) -> None:
        name = type(self).__name__
        if mask.dtype != torch.uint8 or mask.shape != self.weight_mask.shape:
            raise Error(
                f"{name}: weight_mask must be uint8 {list(self.weight_mask.shape)}, "
                f"got {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
            )
        if values.dim() != 1 or not values.is_floating_point():
            raise Error(f"{name}: weight_values must be floating-point [nnz], got {values.dtype} {list(values.shape)}")
        rows, columns = rows_and_columns(self.weight_shape)
        if columns % 8 and bool((mask[:, -1] >> (columns % 8)).any()):
            raise Error(f"{name}: weight_mask must have zeros in the unused bits of a row's last byte")
        kept = int(ops.mask_unpack(mask.cpu(), (rows, columns)).sum())
        if kept != values.numel():
            raise Error(f"{name}: weight_values must hold the {kept} weights of weight_mask, got {values.numel()}")


def _check_weight(layer: str, weight: Any, shape: str, dims: int) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise Error(f"{layer}: weight must be a floating-point tensor, got {got}")
    if weight.dim() != dims:
        raise Error(f"{layer}: weight must be {shape}, got {list(weight.shape)}")


def _version(t: Tensor) -> int:
    """How often a tensor was written in place (inference tensors do not count: they cannot be written outside)."""
    return -1 if t.is_inference() else t._version


class SparseLinear(_Sparse, nn.Linear):  # type: ignore[override]  # weight can be read, not set
    """``nn.Linear`` that stores and multiplies only the nonzeros.

    Made by :meth:`from_dense`. Input ``[..., in_features]``, output ``[..., out_features]``, as ``nn.Linear``.
    State: ``weight_mask`` uint8 ``[out, ceil(in / 8)]``, ``weight_values`` ``[nnz]``, ``bias`` ``[out]`` or None.
    A zero weight is skipped: zero times Inf or NaN in the input counts for nothing here, where a dense layer gives NaN.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        _check_weight("SparseLinear", weight, "[out, in]", 2)
        self.out_features, self.in_features = weight.shape
        self._begin(weight, bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> SparseLinear:
        """The same layer with its zeros left out; ``layer`` stays as it is and shares nothing with the result."""
        if not isinstance(layer, nn.Linear):
            raise Error(f"SparseLinear.from_dense: layer must be an nn.Linear, got {type(layer).__name__}")
        made = cls(layer.weight, layer.bias)
        made.train(layer.training)
        return made

    def to_dense(self) -> nn.Linear:
        """A plain ``nn.Linear`` with the zeros written out."""
        layer = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            self.weight_values.device,
            self.weight_values.dtype,
        )
        return cast(nn.Linear, _fill(layer, self))

    def _geometry(self) -> dict[str, Any]:
        return {"shape": (self.out_features, self.in_features, 1, 1)}

    def _sparse(self, x: Tensor) -> Tensor:
        plan, _held = self._plan_id()
        return ops.sparse_linear(x, self.weight_mask, self.weight_values, self.bias, plan)

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, sparsity={self.sparsity:.3f}"


class SparseConv2d(_Sparse, nn.Conv2d):  # type: ignore[override,misc]  # as above
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
        _check_weight("SparseConv2d", weight, "[K, C/groups, R, S]", 4)
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
        return cast(nn.Conv2d, _fill(layer, self))

    def _padding(self) -> tuple[int, int]:
        """What the kernel pads with zeros itself; uneven "same" padding and other modes are padded beforehand."""
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
        """Whether the engine takes it; what it does not take, the operator does, or refuses with a reason."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            return False
        sizes = zip(x.shape[2:], self._padding(), _pair(self.dilation), _pair(self.kernel_size), strict=True)
        return all(size > 0 and size + 2 * pad > dilation * (kernel - 1) for size, pad, dilation, kernel in sizes)

    def _program_now(self, x: Tensor) -> _host.Program:
        """The layer as a program of the engine, made at first use and whenever the weights or the bias have changed."""
        made = self._program
        if made is None or made[0] != self._program_state():
            with _lock:
                made, state = self._program, self._program_state()
                if made is None or made[0] != state:
                    made = self._program = (state, self._new_program(x))
        return made[1]

    def _program_state(self) -> tuple[int, ...]:
        bias = self.bias
        return (*self._weight_state(), *((bias.data_ptr(), _version(bias)) if bias is not None else ()))

    def _new_program(self, x: Tensor) -> _host.Program:
        bias = self.bias
        program = _host.Program()
        top, left = self._padding()
        y = program.conv2d(
            program.input_planes(self.in_channels), self.weight.numpy(force=True),
            None if bias is None else bias.numpy(force=True), _pair(self.stride), (top, left, top, left),
            _pair(self.dilation), self.groups, -1, ("none", 0.0, 0.0, None), "conv2d",
        )  # fmt: skip
        program.output(y)
        program.finish()
        program.prepare(1, [(x.shape[2], x.shape[3])], _BLOCKS_BUDGET_S)
        return program

    def _choose_form(self, x: Tensor) -> None:
        """Measure which sparse kernels are faster on this input."""
        self.in_blocks = False
        if not self._takes(x) or x.numel() == 0:
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


def _fill(layer: nn.Module, sparse: _Sparse) -> nn.Module:
    with torch.no_grad():
        cast(Tensor, layer.weight).copy_(sparse.weight)
        if sparse.bias is not None:
            cast(Tensor, layer.bias).copy_(cast(Tensor, sparse.bias))
    return layer.train(sparse.training)
