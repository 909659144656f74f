"""Proxies for which ``x += y`` is what it is for tensors: an operation in place.

torch.fx's own read it as ``x = x + y``, which loses the write for everybody else who holds x.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx


class InPlaceProxy(fx.Proxy):
    """Records the augmented assignments, and assignments to parts (``x[:, 0] = 1``), as the calls that they are."""


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def assign(self: fx.Proxy, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return assign


for _function in (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift, operator.setitem,
):  # fmt: skip
    setattr(InPlaceProxy, f"__{_function.__name__}__", _recorded(_function))


class InPlaceTracer(fx.Tracer):
    """A tracer of such proxies. It refuses what runs under autocast, or under no_grad where the graph is to be trained:
    a graph would forget that."""

    def __init__(self, *args: Any, trained: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._autocast = torch._C._is_any_autocast_enabled()
        self._trained = trained

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        with torch.set_grad_enabled(self._trained or torch.is_grad_enabled()):
            return super().trace(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if self._trained and not torch.is_grad_enabled():
            raise NotImplementedError("a part of its forward runs under no_grad")
        if torch._C._is_any_autocast_enabled() != self._autocast:
            raise NotImplementedError("a part of its forward runs under autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


__all__ = ["InPlaceProxy", "InPlaceTracer"]
