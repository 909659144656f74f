"""Packed weights of a compiled model. Its programs hold copies of their own, so the model's copy is kept as bits and
nonzeros, and becomes dense at the first access."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.fork import Lock
from .watched import Watch, WatchedTable

_LEAST = 4096  # weights: smaller ones are not worth it
_ZEROS = 0.25  # share from which it is smaller packed, by a good deal

_OURS_ALONE = 2  # references to a table: a name here, and the argument of getrefcount

_Packed = tuple[Tensor, Tensor, torch.Size]  # mask, values, shape


class PackedParameters(WatchedTable):
    """A module's table of parameters. A packed one becomes an ordinary parameter at the first access, and stays one, so
    that writes to it last. Copies and pickles are ordinary tables; making them unpacks nothing here."""

    def __init__(self, table: dict[str, Any], watch: Watch) -> None:
        super().__init__(table, watch)
        self._packed: dict[str, _Packed] = {}
        self._lock = Lock()

    def pack(self, name: str) -> None:
        """Pack one parameter, unless it is held elsewhere or would gain little. -0.0 becomes 0.0."""
        weight = super().get(name)
        if name in self._packed or type(weight) is not nn.Parameter or not _is_worth_it(weight):
            return
        with torch.no_grad():
            rows = weight.detach()
            keep = rows != 0
            packed = (ops.mask_pack(keep.flatten(1)), rows[keep], weight.shape)
        holder = weakref.ref(weight)
        del weight, rows, keep
        self.swap(name, None)
        if (held := holder()) is not None:
            self.swap(name, held)
        else:
            self._packed[name] = packed

    def _dense(self, name: str) -> nn.Parameter:
        with torch.no_grad():
            return nn.Parameter(ops.sparse_weight(*self._packed[name]), requires_grad=False)

    def _look(self, *names: str) -> None:
        with self._lock:
            for name in names or list(self._packed):
                if name in self._packed:
                    self.swap(name, self._dense(name))
                    del self._packed[name]

    def _plain(self) -> dict[str, Any]:
        with self._lock:
            return {k: self._dense(k) if k in self._packed else super(PackedParameters, self).get(k) for k in self}

    def unpacked(self) -> Iterator[tuple[str, Any]]:
        """The parameters that are not packed."""
        return ((k, super(PackedParameters, self).get(k)) for k in self if k not in self._packed)

    def __getitem__(self, name: str) -> Any:
        if name in self._packed:
            self._look(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._look(name)
        return super().get(name, default)

    def values(self) -> Any:
        self._look()
        return super().values()

    def items(self) -> Any:
        self._look()
        return super().items()

    def __iter__(self) -> Iterator[str]:  # its own, so that dict(table) asks for each item
        return super().__iter__()

    def __setitem__(self, name: str, value: Any) -> None:
        with self._lock:
            self._packed.pop(name, None)
            super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        with self._lock:
            self._packed.pop(name, None)
            super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        self._look(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        self._look()
        return super().popitem()

    def copy(self) -> dict[str, Any]:
        self._look()
        return dict(super().items())

    def __eq__(self, other: object) -> bool:
        self._look()
        return dict(super().items()) == other

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if get_spawning_popen() is not None:  # type: ignore[no-untyped-call,unused-ignore]
            self._look()  # a new process maps the memory itself: tensors made for the pickle would be gone by then
        return dict, (self._plain(),)


def _is_worth_it(weight: Tensor) -> bool:
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or weight.layout != torch.strided:
        return False
    if weight.dim() < 2 or weight.numel() < _LEAST or weight.requires_grad or not weight.is_contiguous():
        return False
    return int(torch.count_nonzero(weight)) <= (1 - _ZEROS) * weight.numel()


def pack_parameters(source: nn.Module, watch: Watch) -> None:
    """Pack the parameters of a model that gain by it."""
    for module in source.modules():
        plain = module.__dict__.get("_parameters")
        if isinstance(module, torch.jit.ScriptModule) or type(plain) is not WatchedTable:
            continue
        table = PackedParameters(plain, watch)
        module.__dict__["_parameters"] = table
        # Another holder of the table (a shallow copy of the module that torch runs) needs its parameters.
        if sys.getrefcount(plain) <= _OURS_ALONE:
            names = list(plain)
            del plain
            for name in names:
                table.pack(name)
            plain = WatchedTable(dict(table.unpacked()), watch)
        if not table._packed:
            module.__dict__["_parameters"] = plain


__all__ = ["PackedParameters", "pack_parameters"]
