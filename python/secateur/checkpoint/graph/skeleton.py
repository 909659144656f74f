"""A model's structure without its values, for a forward to be followed on: what it does there reaches nobody else.

Modules are new objects, of classes that record their calls. Parameters and buffers, and tensors kept elsewhere, are
left out. Numbers, words and functions are shared, lists and dicts are copied, and any other object is replaced by one
that nobody can use: a forward that needs it cannot be written down.
"""

from __future__ import annotations

import abc
import enum
import functools
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._base.modules import forward_replaced, hooks_of, pruning_hooks
from ...engine.compiled import CompiledModel
from . import kinds


class CannotFollow(Exception):
    """A model that cannot be written down as a graph; the message says why."""

    #: ``raised``, where a forward is followed: those of this thread, also if something catches them.
    noted = threading.local()

    def __init__(self, why: str) -> None:
        super().__init__(why)
        getattr(self.noted, "raised", []).append(self)


_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), range, torch.dtype, torch.device, torch.memory_format,
    torch.layout, torch.Size, enum.Enum, type, types.BuiltinFunctionType, type(Ellipsis), types.ModuleType,
)  # fmt: skip
#: What a class may not have of its own: it computes, or saves, something that its forward does not show.
_MACHINERY = ("__call__", "_call_impl", "__getattr__", "__getattribute__", "__setattr__", "train", "eval", "state_dict",
              "_save_to_state_dict", "get_extra_state")  # fmt: skip
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
#: No larger models are followed.
MOST_MODULES = 20_000


class Unknown:
    """In place of an object of the model's that is neither number, word, list nor module."""

    def __init__(self, kind: str) -> None:
        object.__setattr__(self, "_kind", kind)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise CannotFollow(f"its forward uses an object of its own, a {object.__getattribute__(self, '_kind')}")


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise CannotFollow(f"its forward uses an object of its own, a {object.__getattribute__(self, '_kind')}")


for _name in (
    "__call__", "__bool__", "__len__", "__iter__", "__getitem__", "__setitem__", "__contains__", "__enter__", "__eq__",
    "__hash__", "__add__", "__radd__", "__mul__", "__rmul__", "__sub__", "__rsub__", "__truediv__", "__lt__", "__gt__",
    "__le__", "__ge__", "__int__", "__float__", "__index__", "__str__", "__repr__", "__format__", "__setattr__",
):  # fmt: skip
    setattr(Unknown, _name, _refuse)


_MARK = "_secateur_skeleton"


def is_skeleton(value: Any) -> bool:
    """Whether a module is a copy that :class:`Skeleton` made."""
    return _MARK in vars(type(value))


class Missing:
    """In place of a parameter, a buffer or another tensor: a place in the table of its module, and no value."""


def why_not(model: nn.Module) -> str:
    """Why a model cannot be followed, before it is tried; empty: it can be tried."""
    modules = list(model.named_modules(remove_duplicate=False))
    if len(modules) > MOST_MODULES:
        return f"it has more than {MOST_MODULES} modules"
    for name, module in modules:
        where = name or type(module).__name__
        if isinstance(module, CompiledModel):
            return f"{where} is compiled"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is TorchScript"
        if hooks_of(module) or pruning_hooks(module):
            return f"{where} has forward hooks"
        if any(not _is_ours(hook) for table in _HOOKS for hook in (getattr(module, table, None) or {}).values()):
            return f"{where} has hooks of its state_dict"
        if forward_replaced(module) or any(part in vars(module) for part in _MACHINERY):
            return f"the forward of {where} was replaced"
        if kinds.kind_of(module) is None and (why := _why_not_class(type(module))):
            return f"{where}: {why}"
    return ""


def _is_ours(hook: Any) -> bool:
    """Whether a hook of a state_dict is that of a mask, which is stored beside its weight."""
    return str(getattr(hook, "__module__", "")).startswith("secateur.masks.")


def _why_not_class(kind: type[nn.Module]) -> str:
    if kind.__module__.startswith("torch.nn.") and kind.forward not in (
        nn.Sequential.forward, nn.Module.forward, getattr(nn.ModuleList, "forward", None)
    ):  # fmt: skip
        return f"{kind.__name__} is not in the table of modules"
    if type(kind) not in (type, abc.ABCMeta) or getattr(kind.__init_subclass__, "__func__", None) is not None:
        return "its class keeps account of its subclasses"
    for name in _MACHINERY:
        if getattr(kind, name, None) is not getattr(nn.Module, name, None):
            owner = next(base for base in kind.__mro__ if name in vars(base))
            if not (issubclass(kind, fx.GraphModule) and name == "__call__"):
                return f"{owner.__name__} has a {name} of its own"
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            continue
        for name, value in vars(base).items():
            if isinstance(value, list | dict | set | Tensor | nn.Module) and not name.startswith("__"):
                return f"its class holds {name}, a {type(value).__name__} that all of them share"
    return ""


class Skeleton:
    """The copy of a model. ``paths``: its modules, by identity -> the first of their names."""

    def __init__(self, model: nn.Module, call: Callable[..., Any], tensor: Callable[[str], Any]) -> None:
        """``call(path, module, args, kwargs)`` is what calling a module does, ``tensor(path)`` what reading a parameter
        or buffer gives."""
        self._call, self._tensor = call, tensor
        self._classes: dict[type[nn.Module], type[nn.Module]] = {}
        self._kept: list[Any] = []  # what ids in the memo stand for
        self._memo: dict[int, Any] = {}
        self.paths: dict[nn.Module, str] = {}
        self._first = {module: name for name, module in reversed(list(model.named_modules()))}
        self.root: nn.Module = self._module(model)

    def _module(self, module: nn.Module) -> Any:
        if id(module) in self._memo:
            return self._memo[id(module)]
        if module not in self._first:
            return self._keep(module, Unknown("module that is not a submodule"))
        made = object.__new__(self._class(type(module)))
        self._keep(module, made)
        self.paths[made] = self._first[module]
        table = vars(made)
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                keys = [*dict.keys(value)]  # a packed table unpacks what is read
                table[name] = {key: self._missing(value, key) for key in keys}
            elif name == "_modules":
                table[name] = {key: None if child is None else self._module(child) for key, child in value.items()}
            elif name == "_non_persistent_buffers_set":
                table[name] = set(value)
            elif name.startswith("_") and isinstance(value, OrderedDict) and "hooks" in name:
                table[name] = OrderedDict()
            elif name == "_compiled_call_impl":
                table[name] = None
            elif name != "training":
                table[name] = self._value(value)
        table["training"] = False
        return made

    @staticmethod
    def _missing(table: Any, key: str) -> Any:
        """None for what a module does not have, such as a bias."""
        packed = getattr(table, "_packed", ())
        return Missing() if key in packed or dict.__getitem__(table, key) is not None else None

    def _class(self, kind: type[nn.Module]) -> type[nn.Module]:
        if kind not in self._classes:
            skeleton = self

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                return skeleton._call(skeleton.paths[module], module, args, kwargs)

            def read(module: nn.Module, name: str) -> Any:
                for table in ("_parameters", "_buffers"):
                    if name in vars(module)[table]:
                        if vars(module)[table][name] is None:
                            return None
                        path = skeleton.paths[module]
                        return skeleton._tensor(f"{path}.{name}" if path else name)
                if name in vars(module)["_modules"]:
                    return vars(module)["_modules"][name]
                raise AttributeError(f"{kind.__name__} has no attribute {name}")

            def write(module: nn.Module, name: str, value: Any) -> None:
                raise CannotFollow(f"its forward writes {name}")

            own = {_MARK: True, "__call__": call, "__getattr__": read, "__setattr__": write, "__delattr__": write,
                   "__module__": kind.__module__, "__qualname__": kind.__qualname__}  # fmt: skip
            metaclass: Any = type(kind)
            self._classes[kind] = metaclass(kind.__name__, (kind,), own)
        return self._classes[kind]

    def _keep(self, value: Any, made: Any) -> Any:
        self._kept.append(value)
        self._memo[id(value)] = made
        return made

    def _value(self, value: Any) -> Any:
        try:
            return self._copied(value)
        except CannotFollow:  # a key, or a member of a set, that is unknown
            return Unknown(type(value).__name__)

    def _copied(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        kind = type(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return Unknown("tensor that is neither a parameter nor a buffer")
        if kind in (dict, OrderedDict):
            made = self._keep(value, kind())
            for key, one in value.items():
                dict.__setitem__(made, self._value(key), self._value(one))
            return made
        if kind in (list, set):
            made = self._keep(value, kind())
            for one in value:
                made.append(self._value(one)) if kind is list else made.add(self._value(one))
            return made
        if kind in (tuple, frozenset):
            return kind(self._value(one) for one in value)
        if kind is slice:
            return value
        if kind is types.FunctionType:
            return value  # what it refers to is looked at when it is called
        if kind is types.MethodType and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self._module(value.__self__))
        if kind is functools.partial:
            return functools.partial(
                self._value(value.func), *map(self._value, value.args),
                **{key: self._value(one) for key, one in value.keywords.items()},
            )  # fmt: skip
        return Unknown(kind.__name__)

    def fingerprint(self) -> list[Any]:
        """Differs if a list, dict or table of the skeleton was changed."""
        found: list[Any] = []
        seen: set[int] = set()

        def look(value: Any) -> None:
            found.append(id(value))
            if type(value) not in (dict, OrderedDict, list, set, tuple) or id(value) in seen:
                return
            seen.add(id(value))
            for one in list(value.items() if isinstance(value, dict) else value):
                look(one[0]) if isinstance(value, dict) else None
                look(one[1] if isinstance(value, dict) else one)

        for module in self.paths:
            if type(module).__mro__[1] not in kinds.BY_TYPE:
                for name, value in vars(module).items():
                    found.append(name)
                    if "hooks" not in name:
                        look(value)
        return found
