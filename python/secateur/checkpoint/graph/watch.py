"""What a forward may not ask while it is followed: of what its values are, and what else decides its way.

A value that stands for a tensor raises where Python needs the number itself, so a branch on it is noticed. Some
questions raise nothing, and an answer of the moment would be written down as if it held for ever: of which type a value
is, whether gradients are on, what a list that all modules share holds, what is drawn at random. So each function of the
model's that runs is looked at before it does.
"""

from __future__ import annotations

import dis
import functools
import gc
import os
import random
import sys
import sysconfig
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..._base.fork import Lock
from .skeleton import CannotFollow, is_skeleton

T = TypeVar("T")

_lock = Lock()
_TORCH = os.path.dirname(torch.__file__) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules") + os.sep
_MACHINERY = tuple(os.path.join(_LAYERS, name) for name in ("module.py", "container.py"))
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
_OURS = str(Path(__file__).resolve().parents[2]) + os.sep
#: Files of torch whose functions change how others compute.
_MODES = tuple(
    os.path.join(_TORCH, *parts)
    for parts in (
        ("utils", "_contextlib.py"), ("autograd", "grad_mode.py"), ("amp", "autocast_mode.py"), ("random.py",),
        ("utils", "checkpoint.py"), ("_dynamo", ""), ("utils", "_device.py"),
    )
)  # fmt: skip
_QUESTIONS = frozenset({"type"})
_BUILTIN_QUESTIONS = frozenset({"id", "callable", "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled",
                                "is_autocast_cpu_enabled", "time", "perf_counter", "monotonic", "urandom", "getenv",
                                "globals", "locals", "vars", "setattr", "delattr", "next", "is_anomaly_enabled",
                                "get_default_dtype", "_get_tracing_state"})  # fmt: skip
_SHARED = (list, dict, set, deque, bytearray, Tensor, nn.Module)


def may_ask(path: str) -> bool:
    """Whether code of a file may ask for the type of a value: torch's may, but for ``torch.is_tensor``."""
    return not is_the_models(path) and path != _TORCH + "__init__.py"


def is_the_models(path: str) -> bool:
    """Whether code of a file is the model's own, or of a layer's forward."""
    if path.startswith(_TORCH):
        return path.startswith(_LAYERS) and not path.startswith(_MACHINERY)
    return not (path.startswith(_OURS) or (path.startswith(_PYTHON) and "-packages" + os.sep not in path))


def watched(run: Callable[[], T]) -> T:
    """``run()``, where no function of the model's asks what it may not.

    Raises:
        CannotFollow: one does.
    """
    result: list[T] = []
    errors: list[BaseException] = []
    raised: list[CannotFollow] = []

    def look(frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and is_the_models(frame.f_code.co_filename):
            _look_at_builtin(argument)
        elif event == "call":
            _look_at(frame)

    def work() -> None:
        CannotFollow.noted.raised = raised
        sys.setprofile(look)
        try:
            result.append(run())
        except BaseException as error:
            errors.append(error)
        finally:
            sys.setprofile(None)

    # A thread of its own, for the caller's may have a profiler already, and modes of torch that are not the model's.
    thread = threading.Thread(target=work, name="secateur.save", daemon=True)
    with _no_collection():
        thread.start()
        thread.join()
    if raised or errors:
        raise (raised or errors)[0]
    return result[0]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's collector, which runs whatever others have registered, from running amid a forward."""
    with _lock:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


@functools.lru_cache(maxsize=4096)
def _why_not_code(code: types.CodeType) -> str:
    """What code does that no value could show; empty: nothing."""
    before = None
    for one in dis.get_instructions(code):
        name = one.opname
        if name in ("PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH"):
            # It goes on after an error: then one that a value raises, and no tensor would, could decide its way.
            return "catches errors, or has a with statement"
        if name in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"writes {one.argval}"
        if name in ("STORE_DEREF", "DELETE_DEREF") and one.argval in code.co_freevars:
            return f"writes {one.argval} of the function around it"
        if name == "IS_OP" and before != "LOAD_CONST":  # x is None may be asked
            return "asks which object a value is"
        if name.startswith("LOAD_") and name != "LOAD_CONST" and one.argval in _QUESTIONS:
            return f"asks for the {one.argval} of a value"
        before = name
    return ""


def _look_at_builtin(function: Any) -> None:
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    if name in _BUILTIN_QUESTIONS:
        raise CannotFollow(f"its forward asks {name}()")
    if isinstance(owner, random.Random) or type(owner).__module__.startswith("numpy.random"):
        raise CannotFollow(f"its forward draws at random ({name})")


def _look_at(frame: types.FrameType) -> None:
    code = frame.f_code
    path = code.co_filename
    if path.startswith(_MODES):
        raise CannotFollow(f"its forward sets how torch computes ({code.co_name} of {os.path.basename(path)})")
    if path == random.__file__:
        raise CannotFollow(f"its forward draws at random ({code.co_name})")
    if not is_the_models(path):
        return
    if why := _why_not_code(code):
        raise CannotFollow(f"its forward {why} ({code.co_name})")
    for name in code.co_names:
        if _is_shared(frame.f_globals.get(name)):
            raise CannotFollow(f"its forward uses the global {name}")
    if code.co_freevars:
        held = frame.f_locals
        for name in code.co_freevars:
            if _is_shared(held.get(name)):
                raise CannotFollow(f"its forward uses {name} of the function around it")


def _is_shared(value: Any) -> bool:
    """Whether something that a function does not have of its own can be changed by one call, and seen by the next."""
    if type(value) is type and not issubclass(value, tuple):  # a named tuple's own tables stay as they are
        return any(isinstance(one, _SHARED) for name, one in vars(value).items() if not name.startswith("__"))
    return isinstance(value, _SHARED) and not is_skeleton(value)


__all__ = ["is_the_models", "may_ask", "watched"]
