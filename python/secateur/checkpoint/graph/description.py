"""The text of a graph, read and checked word by word. FORMAT.md is its specification.

What is checked here needs no tensor; :mod:`~secateur.checkpoint.graph.building` checks it against those of the file.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..format.container import unique
from ..format.description import GRAPH
from . import kinds, words
from .follow import MOST_NODES
from .skeleton import MOST_MODULES

#: Longer texts are neither written nor read.
MOST_TEXT = 2 * 2**20

_MOST_DEPTH = 8  # of lists in lists
_MOST_PARTS = 32  # of a module's name
_MOST_NAME = 200
_MOST_WORD = 200  # characters of a string that is an argument
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PART = re.compile(r"[A-Za-z0-9_-]+")
#: The names of inputs may not hide those that a forward needs.
_TAKEN = {"self", "torch", "device", "inf", "nan", "operator", "math", "fx_pytree", "pytree", "NoneType", "Ellipsis",
          "getattr", "slice", "tuple", "list", "dict"}  # fmt: skip
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
_MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d,
}  # fmt: skip
_NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_ROOT = fx.GraphModule(nn.Module(), fx.Graph())


@dataclass(frozen=True)
class Reference:
    """An argument that is the value of an input or a node, by its number."""

    number: int


@dataclass(frozen=True)
class Node:
    """One call. ``word``: of a function, a method, an attribute, or the path of a module or tensor."""

    what: str
    word: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Description:
    """The whole of it, checked."""

    inputs: tuple[str, ...]
    modules: Mapping[str, tuple[kinds.Kind, Any]]
    same: Mapping[str, str]  # path of a module -> the path, in ``modules``, of the same one
    tensors: Mapping[str, bool]  # of no module of the table: whether they are parameters
    nodes: tuple[Node, ...]
    output: Any


def metadata_of(text: str) -> dict[str, str]:
    """What a file's metadata says of a graph."""
    return {GRAPH: text}


def text_in(metadata: Mapping[str, str]) -> str | None:
    """The text of the graph in a file's metadata; None: there is none.

    Raises:
        ValueError: it is too long.
    """
    text = metadata.get(GRAPH)
    if text is None:
        return None
    if len(text) > MOST_TEXT:
        raise ValueError(f"it takes {len(text)} characters, and {MOST_TEXT} is the most")
    return text


def parse(text: str) -> Description:
    """The description that a text is. Raises ValueError: it is none."""
    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if type(found) is not dict or found.keys() != {"inputs", "modules", "same", "tensors", "nodes", "output"}:
        raise ValueError("it must be an object of inputs, modules, same, tensors, nodes and output")
    inputs = _inputs(found["inputs"])
    modules, same, tensors = (_table(found[name], name) for name in ("modules", "same", "tensors"))
    held = {path: _module(path, about) for path, about in modules.items()}
    for path, other in same.items():
        if type(other) is not str or other not in held or path in held:
            raise ValueError(f"{path!r:.60} must be the same as a module, got {other!r:.60}")
    for path, role in tensors.items():
        if type(role) is not str or role not in ("parameter", "buffer") or not path:
            raise ValueError(f"{path!r:.60} must be a parameter or a buffer, got {role!r:.60}")
    nodes = found["nodes"]
    if type(nodes) is not list or len(nodes) > MOST_NODES:
        raise ValueError(f"nodes must be at most {MOST_NODES}")
    made = [_node(node, len(inputs) + i, held) for i, node in enumerate(nodes)]
    output = _argument(found["output"], len(inputs) + len(made), 0)
    if "" in held and (len(held) > 1 or same or tensors or len(made) != 1 or output != Reference(len(inputs))):
        raise ValueError("a module without a name must be all of the model")
    return Description(
        inputs, held, same, {path: role == "parameter" for path, role in tensors.items()}, tuple(made), output
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _inputs(found: Any) -> tuple[str, ...]:
    if type(found) is not list or not 1 <= len(found) <= 64:
        raise ValueError("inputs must be 1 to 64 names")
    for name in found:
        if type(name) is not str or not is_input(name):
            raise ValueError(f"an input must have a name that Python can have, got {name!r:.60}")
    if len(set(found)) != len(found):
        raise ValueError("inputs must have different names")
    return tuple(found)


def is_input(name: str) -> bool:
    return (
        len(name) <= _MOST_NAME and _NAME.fullmatch(name) is not None and not keyword.iskeyword(name)
        and name not in _TAKEN and not name.startswith("__")
    )  # fmt: skip


def is_path(path: str) -> bool:
    """Whether the path of a module, or of a tensor, can be one of a model that is made of a file."""
    parts = path.split(".")
    return len(parts) <= _MOST_PARTS and all(
        len(part) <= _MOST_NAME and _PART.fullmatch(part) is not None and not keyword.iskeyword(part)
        and not hasattr(_ROOT, part)
        for part in parts
    )  # fmt: skip


def _table(found: Any, what: str) -> dict[str, Any]:
    if type(found) is not dict or len(found) > MOST_MODULES:
        raise ValueError(f"{what} must be an object of at most {MOST_MODULES} names")
    for path in found:
        if not is_path(path) and (path or what != "modules"):
            raise ValueError(f"{what} must have names that Python can have, got {path!r:.60}")
    return found


def _module(path: str, about: Any) -> tuple[kinds.Kind, Any]:
    if type(about) is not list or len(about) != 2 or type(about[0]) is not str:
        raise ValueError(f"{path!r:.60} must have a kind and arguments")
    kind = kinds.BY_WORD.get(about[0])
    if kind is None:
        raise ValueError(f"{path!r:.60} has the unknown kind {about[0]!r:.60}")
    return kind, about[1]


def _node(found: Any, number: int, modules: Mapping[str, Any]) -> Node:
    if type(found) is not list or len(found) < 2 or not all(type(one) is str for one in found[:2]):
        raise ValueError(f"node {number} must say what it calls")
    what, word, *rest = found
    known = {
        "function": word in words.FUNCTIONS, "method": word in words.METHODS, "attribute": word in words.ATTRIBUTES,
        "module": word in modules, "tensor": is_path(word),
    }  # fmt: skip
    if not known.get(what, False):
        raise ValueError(f"node {number} calls the unknown {what!r:.60} {word!r:.60}")
    if what == "tensor":
        if rest:
            raise ValueError(f"node {number} gives a tensor arguments")
        return Node(what, word)
    if what == "attribute":
        arguments = (_argument(rest[0], number, 0),) if len(rest) == 1 else ()
        if not arguments or type(arguments[0]) is not Reference:
            raise ValueError(f"node {number} must ask a value for its {word}")
        return Node(what, word, arguments)
    if not 1 <= len(rest) <= 2 or type(rest[0]) is not list or (len(rest) == 2 and type(rest[1]) is not dict):
        raise ValueError(f"node {number} must have arguments")
    args = tuple(_argument(one, number, 0) for one in rest[0])
    named = rest[1] if len(rest) == 2 else {}
    for name in named:
        if not _NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > _MOST_NAME:
            raise ValueError(f"node {number} has an argument with the name {name!r:.60}")
    if what == "method" and (not args or type(args[0]) is not Reference):
        raise ValueError(f"node {number} must call {word} of a value")
    if what == "function" and word.startswith("operator.") and (named or not _operands(word, args)):
        raise ValueError(f"node {number} must give {word} its operands")
    return Node(what, word, args, tuple((name, _argument(one, number, 0)) for name, one in named.items()))


def _operands(word: str, args: tuple[Any, ...]) -> bool:
    """Whether an operator has as many operands as it takes, and a value where code of a number would mean another."""
    name = word.removeprefix("operator.")
    if name in ("neg", "abs"):
        return len(args) == 1 and type(args[0]) is Reference
    if len(args) != 2:
        return False
    if name in ("getitem", "pow") or name.startswith("i"):  # iadd and its like
        return type(args[0]) is Reference
    return any(type(one) is Reference for one in args)


def _argument(found: Any, number: int, depth: int) -> Any:
    """A value of an argument; those of nodes before ``number`` as :class:`Reference`."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"node {number} has lists in lists, more than {_MOST_DEPTH}")
    kind = type(found)
    if found is None or kind is bool:
        return found
    if kind is int:
        if abs(found) >= 2**63:
            raise ValueError(f"node {number} has a number of more than 63 bits")
        return found
    if kind is float:
        if not math.isfinite(found):
            raise ValueError(f"node {number} has a number that is not finite")
        return found
    if kind is str:
        if len(found) > _MOST_WORD:
            raise ValueError(f"node {number} has a word of {len(found)} characters")
        return found
    if kind is list:
        return [_argument(one, number, depth + 1) for one in found]
    if kind is not dict or len(found) != 1:
        raise ValueError(f"node {number} has the argument {found!r:.60}")
    ((what, value),) = found.items()
    if what == "value" and type(value) is int and 0 <= value < number:
        return Reference(value)
    if what == "tuple" and type(value) is list:
        return tuple(_argument(one, number, depth + 1) for one in value)
    if what == "slice" and type(value) is list and len(value) == 3:
        ends = [_argument(one, number, depth + 1) for one in value]
        if all(one is None or type(one) in (int, Reference) for one in ends):
            return slice(*ends)
    if what == "dict" and type(value) is dict and all(len(key) <= _MOST_WORD for key in value):
        return {key: _argument(one, number, depth + 1) for key, one in value.items()}
    for name, table in (("dtype", _DTYPES), ("memory_format", _MEMORY_FORMATS), ("number", _NUMBERS)):
        if what == name and type(value) is str and value in table:
            return table[value]
    if what == "ellipsis" and value is True:
        return Ellipsis
    raise ValueError(f"node {number} has the argument {found!r:.60}")
