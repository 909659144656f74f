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
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .. import ops
from .._base import fork, timing
from .._base.errors import Error
from .._base.library import host
from .._base.modules import version_of
from ..ops.packing import rows_and_columns

L = TypeVar("L", bound="SparseBase")


# Held while a layer makes its plan, chooses its form or takes a state_dict: a thread that calls meanwhile runs what was
# there before, or waits. A fork waits too, so that no child finds it locked by a thread that it does not have.
lock = threading.RLock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


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


class SparseBase(nn.Module):
    """The base of both layers; it stands before the plain layer among their bases.

    Any number of threads may call a layer. ``load_state_dict`` while they do gives each call the old nonzeros or the
    new ones, never some of both (the bias is read where it is, as in torch's layers).
    """

    weight_mask: Tensor  # uint8 [K, ceil(weights per neuron / 8)]
    weight_values: nn.Parameter  # [nnz]
    _plan: tuple[object, host.SparseLayer] | None
    _program: tuple[object, host.Program] | None  # of a convolution that runs in the engine
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
        """Choose the sparse kernel, in a layer that has several."""

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise Error(f"{type(self).__name__}: input must be a tensor, got {type(x).__name__}")
        dense = self.dense_weight  # once: another thread may take it away
        if dense is not None:
            if fork.forked:
                fork.limit_threads()
            return self._dense(x, dense)
        if x.dtype != torch.float32 or self.weight_values.dtype != torch.float32 or x.device.type != "cpu":
            return self._dense(x, self.weight)  # the twin
        if torch.is_autocast_enabled("cpu"):
            return self._dense(x, self.weight)  # in the dtype that torch's layer would compute in
        if self.trial is not None and not torch.compiler.is_compiling() and x.numel() > 0:
            self._try(x)
            return self._run(x)
        return self._sparse(x)

    def _try(self, x: Tensor) -> None:
        """The first call: time both forms, keep the faster one. Other threads wait for the choice."""
        with lock:
            trial = self.trial
            if trial is None:
                return
            x, weight = x.detach(), self.weight.detach()
            self._choose_form(x)
            with torch.no_grad():
                if not trial.decide(lambda: self._sparse(x), lambda: self._dense(x, weight)):
                    self.dense_weight = weight
            self.trial = None

    def _plan_id(self) -> tuple[int, host.SparseLayer | None]:
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

    def _plan_now(self) -> host.SparseLayer:
        made = self._plan
        if made is None or made[0] != self._weight_state():
            with lock:
                made, state = self._plan, self._weight_state()
                if made is None or made[0] != state:
                    mask, values = self.weight_mask.numpy(force=True), self.weight_values.numpy(force=True)
                    made = self._plan = (state, host.SparseLayer(mask, values, **self._geometry()))
        return made[1]

    def _weight_state(self) -> tuple[int, ...]:
        """Changes whenever the weights do, but for what is written through ``.data``."""
        values, mask = self._parameters["weight_values"], self._buffers["weight_mask"]  # no search by __getattr__
        assert values is not None
        assert mask is not None
        return values.data_ptr(), mask.data_ptr(), version_of(values), version_of(mask), values.numel()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_program": None}  # they belong to this process and this object

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        """Packed tensors of another number of nonzeros load too; if mask and values do not fit, both are refused."""
        with lock:
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


def check_weight(layer: str, weight: Any, shape: str, dims: int) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise Error(f"{layer}: weight must be a floating-point tensor, got {got}")
    if weight.dim() != dims:
        raise Error(f"{layer}: weight must be {shape}, got {list(weight.shape)}")


def fill(layer: nn.Module, sparse: SparseBase) -> nn.Module:
    with torch.no_grad():
        cast(Tensor, layer.weight).copy_(sparse.weight)
        if sparse.bias is not None:
            cast(Tensor, layer.bias).copy_(cast(Tensor, sparse.bias))
    return layer.train(sparse.training)
