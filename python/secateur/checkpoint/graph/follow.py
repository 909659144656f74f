"""A forward followed without values: each call that it makes becomes a node.

Nothing is patched, so other threads, and other models, notice nothing. Values know no sizes: code that needs one (a
branch, a loop, an index) raises, and then the model cannot be written down.
"""

from __future__ import annotations

import bisect
import dis
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import kinds, words
from .skeleton import CannotFollow, Missing, Skeleton, Unknown, why_not
from .watch import may_ask, watched

#: Longer forwards are not followed.
MOST_NODES = 20_000


#: Attributes, methods and functions whose results are numbers, and those whose results are tuples of tensors.
_SIZES = ("shape", "ndim", "dtype", "device", "size", "dim", "numel")
_TUPLES = ("chunk", "split", "tensor_split", "unbind")
_NOT_IN_PLACE = {
    f"operator.i{name}": f"operator.{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod")
}


class Value:
    """What stands for the result of a node, or for an input."""

    __slots__ = ("_log", "_number")
    _log: Log
    _number: int

    def __init__(self, log: Log, number: int) -> None:
        object.__setattr__(self, "_log", log)
        object.__setattr__(self, "_number", number)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Code of torch may ask for it, and finds no tensor; a model's own ``isinstance(x, Tensor)`` may not."""
        if not may_ask(sys._getframe(1).f_code.co_filename):
            raise CannotFollow("its forward asks for the type of a value")
        return Value

    def __getattr__(self, name: str) -> Any:
        if name in words.METHODS:
            return lambda *args, **kwargs: self._log.add("method", name, (self, *args), kwargs)
        if name in words.ATTRIBUTES:
            return self._log.add("attribute", name, (self,), {})
        raise CannotFollow(f"its forward uses {name} of a value")

    def __setattr__(self, name: str, value: Any) -> None:
        raise CannotFollow(f"its forward sets {name} of a value")

    def __iter__(self) -> Iterator[Value]:
        """``a, b = x.shape``: the number of names is that of the values."""
        frame = sys._getframe(1)
        instructions = list(dis.get_instructions(frame.f_code))
        at = instructions[bisect.bisect_left([one.offset for one in instructions], frame.f_lasti)]
        if at.opname != "UNPACK_SEQUENCE":
            raise CannotFollow("its forward goes through the parts of a value, whose number is unknown")
        return iter([self[i] for i in range(at.argval)])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Value:
        log = next((one._log for one in _values((args, kwargs or {}))), None)
        if log is None:
            raise CannotFollow(f"its forward calls {function}")
        return log.call(function, args, kwargs or {})

    def __getitem__(self, index: Any) -> Value:
        return self._log.call(operator.getitem, (self, index), {})


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Value, *args: Any) -> Any:
        raise CannotFollow(f"its forward needs the number itself ({name})")

    return refuse


def _operation(function: Any, reversed_: bool = False) -> Callable[..., Any]:
    def operate(self: Value, *args: Any) -> Value:
        return self._log.call(function, (*args, self) if reversed_ else (self, *args), {})

    return operate


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Value, f"__{_name}__", _operation(getattr(operator, _name)))
    setattr(Value, f"__r{_name}__", _operation(getattr(operator, _name), True))
    setattr(Value, f"__i{_name}__", _operation(getattr(operator, f"i{_name}")))
for _name in ("neg", "abs"):
    setattr(Value, f"__{_name}__", _operation(getattr(operator, _name)))
for _name in (
    "bool", "len", "int", "float", "index", "complex", "round", "contains", "eq", "ne", "lt", "le", "gt", "ge", "and",
    "or", "xor", "iand", "ior", "ixor", "lshift", "rshift", "invert", "hash", "str", "repr", "format", "setitem",
    "delitem", "call", "enter", "copy", "deepcopy", "reduce_ex", "trunc", "floor", "ceil", "array", "divmod", "pos",
    "fspath", "bytes", "reversed", "next", "await", "rand", "ror", "rxor",
):  # fmt: skip
    setattr(Value, f"__{_name}__", _refused(_name))


def _values(found: Any) -> Iterator[Value]:
    kind = type(found)
    if kind is Value:
        yield found
    elif kind in (list, tuple):
        for one in found:
            yield from _values(one)
    elif kind is dict:
        yield from _values(list(found.values()))
    elif kind is slice:
        yield from _values([found.start, found.stop, found.step])


class Log:
    """The nodes of a forward, as JSON has them."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.nodes: list[list[Any]] = []
        self._read: dict[str, Value] = {}
        self._sizes: set[int] = set()  # values that are numbers or tuples of them
        self._tuples: set[int] = set()  # values that are tuples of tensors

    def input(self, name: str) -> Value:
        self.inputs.append(name)
        return Value(self, len(self.inputs) - 1)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        try:
            word = words.WORDS.get(function)
        except TypeError:
            word = None
        if word is None:
            raise CannotFollow(f"its forward calls {getattr(function, '__name__', function)}, which is in no table")
        if type(args[0]) is Value and args[0]._number in self._sizes | self._tuples:
            word = _NOT_IN_PLACE.get(word, word)  # of what ``+=`` gives a new one, and leaves the old
        if word.startswith("operator.") and all(one._number in self._sizes for one in _values(args)):
            made = self._new(self._node("function", word, args, kwargs))
            self._sizes.add(made._number)
            return made
        if word == "operator.pow" and type(args[0]) is not Value:
            raise CannotFollow("its forward takes a number to the power of a value")
        return self.add("function", word, args, kwargs)

    def tensor(self, path: str) -> Value:
        if path not in self._read:
            self._read[path] = self._new(["tensor", path])
        return self._read[path]

    def add(self, what: str, word: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        node = ["attribute", word, self.argument(args[0])] if what == "attribute" else None
        made = self._new(node or self._node(what, word, args, kwargs))
        if what != "module" and word.rpartition(".")[2] in _SIZES:
            self._sizes.add(made._number)
        if what != "module" and word.rpartition(".")[2] in _TUPLES:
            self._tuples.add(made._number)
        return made

    def _node(self, what: str, word: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        node: list[Any] = [what, word, [self.argument(one) for one in args]]
        # What begins with "_" is torch's own, such as how deep in the calls a warning is.
        if kept := {key: self.argument(one) for key, one in kwargs.items() if not key.startswith("_")}:
            node.append(kept)
        return node

    def _new(self, node: list[Any]) -> Value:
        if len(self.nodes) >= MOST_NODES:
            raise CannotFollow(f"its forward has more than {MOST_NODES} operations")
        self.nodes.append(node)
        return Value(self, len(self.inputs) + len(self.nodes) - 1)

    def argument(self, value: Any) -> Any:
        """A value as JSON has it."""
        kind = type(value)
        if kind is Value:
            return {"value": value._number}
        if value is None or kind in (bool, str):
            return value
        if kind is int and abs(value) < 2**63:
            return value
        if kind is float:
            return value if abs(value) < float("inf") else {"number": str(value)}
        if kind is list:
            return [self.argument(one) for one in value]
        if kind in (tuple, torch.Size):
            return {"tuple": [self.argument(one) for one in value]}
        if kind is slice:
            return {"slice": [self.argument(one) for one in (value.start, value.stop, value.step)]}
        if kind is dict and all(type(key) is str for key in value):
            return {"dict": {key: self.argument(one) for key, one in value.items()}}
        if kind is torch.dtype:
            return {"dtype": str(value).removeprefix("torch.")}
        if kind is torch.memory_format:
            return {"memory_format": str(value).removeprefix("torch.")}
        if value is Ellipsis:
            return {"ellipsis": True}
        if kind is Missing or kind is Unknown or isinstance(value, Tensor | nn.Module):
            raise CannotFollow("its forward computes with a tensor that is not read as an attribute of a module")
        raise CannotFollow(f"its forward computes with a {kind.__name__}")


def followed(model: nn.Module) -> tuple[Log, Any]:
    """The nodes of a model's forward in evaluation mode, and its result, both as JSON has them.

    Arguments of the forward that have defaults take them.

    Raises:
        CannotFollow: the model is not that simple. Whatever else its forward raises goes through.
    """
    if why := why_not(model):
        raise CannotFollow(why)
    log = Log()

    def call(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(module).__mro__[1] in kinds.BY_TYPE:
            return log.add("module", path, args, kwargs)
        return type(module).forward(module, *args, **kwargs)

    skeleton = Skeleton(model, call, log.tensor)
    if kinds.kind_of(model) is not None:
        return log, log.argument(log.add("module", "", (log.input(_input(model)[0]),), {}))
    inputs = [log.input(name) for name in _input(model)]
    before = skeleton.fingerprint()
    result = watched(lambda: type(skeleton.root).forward(skeleton.root, *inputs))
    made = log.argument(result)
    if skeleton.fingerprint() != before:
        raise CannotFollow("its forward changes a list or a dict of the model's")
    return log, made


def _input(model: nn.Module) -> list[str]:
    names = []
    for parameter in inspect.signature(type(model).forward).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise CannotFollow(f"its forward takes {parameter.name} by keyword only")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CannotFollow("its forward takes any number of arguments")
        if parameter.default is parameter.empty:
            names.append(parameter.name)
        elif not isinstance(parameter.default, bool | int | float | str | type(None) | torch.dtype):
            raise CannotFollow(f"its forward has a default for {parameter.name} that it could change")
    if len(names) < 2:
        raise CannotFollow("its forward takes nothing")
    return names[1:]
