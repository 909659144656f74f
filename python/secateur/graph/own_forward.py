"""Arguments that a graph was not made for: optional ones that nobody gave when it was traced.

The graph has their defaults inside. Where other values come, the model's own forward runs, on the parts that the graph
runs, or an Error says why it cannot.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._base.errors import Error


@dataclass
class Arguments:
    """What a module's graph was traced with, of its own forward's arguments."""

    caller: str  # the function that made it
    given: tuple[str, ...]  # the names of those that are the graph's inputs, in order
    why_not: str = ""  # why the own forward cannot run on the graph's parts; empty: it can
    lost: str = ""  # what the own forward does not do
    said: bool = field(default=False, compare=False)


def dispatching(graph_forward: Callable[..., Any], own: type[nn.Module] | None) -> Callable[..., Any]:
    """The graph's forward for the arguments that it was made for, and the ``own`` class's for the others."""
    signature = None if own is None else inspect.signature(own.forward)

    @functools.wraps(graph_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments: Arguments = self._arguments
        if not kwargs and len(args) == len(arguments.given):
            return graph_forward(self, *args)
        if signature is None or own is None:
            raise Error(f"{arguments.caller}: the result takes {', '.join(arguments.given)}: its class is not here")
        try:
            bound = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise Error(f"{arguments.caller}: {error}") from None
        bound.pop(next(iter(signature.parameters)))
        inputs = [bound.pop(name) for name in arguments.given if name in bound]
        other = [name for name, value in bound.items() if not _is_default(value, signature.parameters[name].default)]
        if not other and len(inputs) == len(arguments.given):
            return graph_forward(self, *inputs)
        return _own(self, own, arguments, ", ".join(other) or "fewer arguments", args, kwargs)

    return forward


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    return type(value) is type(default) and not isinstance(value, Tensor) and bool(value == default)


def _own(
    module: nn.Module, own: type[nn.Module], arguments: Arguments, which: str, args: tuple[Any, ...], kwargs: Any
) -> Any:
    caller = arguments.caller
    if arguments.why_not:
        raise Error(f"{caller}: {own.__name__} was seen without {which}, and cannot take it now: {arguments.why_not}")
    if not arguments.said:
        arguments.said = True
        warnings.warn(
            f"{caller}: {own.__name__} is called with {which}, which it was not seen with: its own forward runs"
            + (f", {arguments.lost}" if arguments.lost else ""),
            stacklevel=3,
        )
    try:
        return own.forward(module, *args, **kwargs)
    except AttributeError as error:  # a part that the graph does not use is not there
        raise Error(f"{caller}: {own.__name__} was seen without {which}, and cannot take it now: {error}") from error


def takes_more(own: type[nn.Module], given: tuple[str, ...]) -> bool:
    """Whether the own forward has arguments besides those that are ``given``."""
    try:
        return list(inspect.signature(own.forward).parameters)[1:] != list(given)
    except (TypeError, ValueError):
        return False


__all__ = ["Arguments", "dispatching", "takes_more"]
