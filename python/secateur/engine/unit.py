"""A module's forward in its fastest form (a unit), made at its first call and again for inputs of another kind.

A forward that torch.fx cannot trace, or that writes what outlives the call, runs as it is, and the children that it
calls get units for their forwards: the modules stay the same objects, so what the forward keeps on them, and the hooks
that hang on them, are where everybody looks for them. An untraceable module inside a graph is one call in it, and a
unit of its own.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .._base.errors import Error
from .._base.fork import Lock
from .._base.modules import StandIn, calls_watched, forward_replaced
from .._base.state import MODE, in_torch, live, state_kept, trial_from
from .._base.tensors import alike, clones
from ..graph.tracing import Traced, Untraceable, trace
from ..graph.value_order import make_functional
from .backends.program import Backend
from .lowering.assemble import Assembled, assemble
from .lowering.partition import partition
from .lowering.segment import Decision
from .recognise.nodes import recognise
from .recognise.steps import Context

_MOST_STATES = 8  # kinds of inputs kept at a time
MOST_MADE = 64  # kinds of inputs that are planned for at all: after that, new ones run in torch


@dataclass
class CompileSession:
    """The state that all units of one compiled model share."""

    backend: Backend
    budget_s: float
    decisions: dict[str, Decision] = field(default_factory=dict)
    units: dict[int, CompiledForward] = field(default_factory=dict)  # id of a module -> its unit
    lock: Lock = field(default_factory=Lock)
    deadline: float = 0.0
    sealed: bool = False  # compiled: modules that were never reached stay torch
    recorder: list[tuple[CompiledForward, tuple[Any, ...]]] | None = None  # set while profiling


@dataclass
class Specialization:
    """A unit made for one kind of inputs."""

    forward: Callable[..., Any]
    path: str
    ctx: Context | None = None
    assembled: Assembled | None = None
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    why: str = ""  # of a forward that runs as it is
    children: list[CompiledForward] = field(default_factory=list)
    held: Any = None


Key = tuple[Any, ...]


class CompiledForward(StandIn):
    """A unit: called like the module; see the text above."""

    def __init__(self, module: nn.Module, path: str, settings: CompileSession) -> None:
        self.module = module
        self.path = path
        self.settings = settings
        self.size_bound = False
        self.batch_bound = False
        self.states: OrderedDict[Key, Specialization] = OrderedDict()
        self.made = 0
        self.last: tuple[Key, Specialization] | None = None
        self._replaced = vars(module)["forward"] if forward_replaced(module) else None
        settings.units.setdefault(id(module), self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or MODE.plain or torch._C._is_any_autocast_enabled():
            return self._own(*args, **kwargs)
        if self.settings.recorder is not None:
            self.settings.recorder.append((self, args))
        return self.run(args, self.key(args))

    def run(self, args: Sequence[Any], key: Key) -> Any:
        """A call whose key is known."""
        last = self.last
        if last is not None and last[0] == key:
            return last[1].forward(*args)
        return self.state(args, key).forward(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of a module runs as its class does, or as the forward that replaced its class's."""
        if self._replaced is not None:
            return copy.deepcopy(self._replaced, memo)
        return ClassForward(copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._replaced is not None:
            return _itself, (self._replaced,)
        return ClassForward, (self.module,)

    @property
    def replaced(self) -> Any:
        """The forward that hung on the module itself; None: it has its class's."""
        return self._replaced

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        if self._replaced is not None:
            return self._replaced(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def key(self, args: Sequence[Any]) -> Key:
        """The key of a specialization: dtypes, devices, ranks, channels; sizes only where the graph depends on them."""
        return tuple([input_key(a, self.size_bound, self.batch_bound) for a in args])

    def state(self, args: Sequence[Any], key: Key | None = None) -> Specialization:
        key = self.key(args) if key is None else key
        found = self.states.get(key)
        if found is None:
            with self.settings.lock:
                found = self.states.get(self.key(args))
                if found is None:
                    if (self.settings.sealed and not self.states) or self.made >= MOST_MADE:
                        return Specialization(self._own, self.path, why="not what the example gave it")
                    if is_empty(args):
                        return Specialization(self._in_torch, self.path, why="it is given nothing to compute with")
                    self.made += 1
                    with live(self.settings.sealed):
                        found = self._make(args)
                    key = self.key(args)  # it may have turned out to depend on the size
                    self.states[key] = found
                    while len(self.states) > _MOST_STATES:
                        self.states.popitem(last=False)
        self.last = (key, found)
        return found

    def _in_torch(self, *args: Any) -> Any:
        with in_torch():
            return self._own(*args)

    def _make(self, args: Sequence[Any]) -> Specialization:
        try:
            try:
                return self._graph_state(args)
            except Untraceable as reason:
                return self._python_state(args, str(reason))
        except (Error, MemoryError):
            raise
        except Exception as error:
            if "memory" in str(error) or not self._runs(args):
                raise
            where = self.path or type(self.module).__name__
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            warnings.warn(f"compile: {where} runs in torch, for planning it failed: {said}", UserWarning, stacklevel=2)
            return Specialization(self._in_torch, self.path, why=f"planning it failed: {said}")

    def _runs(self, args: Sequence[Any]) -> bool:
        try:
            with torch.no_grad(), in_torch(), state_kept(self.module):
                self._own(*clones(args))
        except Exception:
            return False
        return True

    def _graph_state(self, args: Sequence[Any]) -> Specialization:
        settings = self.settings
        traced = trace(self.module, args)
        order = make_functional(traced)
        ctx, reasons = recognise(traced, order, settings.backend.dtypes)
        parts = partition(ctx, reasons)
        children: list[CompiledForward] = []

        def opaque(target: str) -> nn.Module:
            module = self.module.get_submodule(target)
            if isinstance(module, torch.jit.ScriptModule) or forward_replaced(module):
                return module
            unit = self._unit_of(module, target)
            children.append(unit)
            module.__dict__["forward"] = unit
            return module

        assembled = assemble(ctx, parts, settings.backend, self.path, opaque)
        state = Specialization(assembled.module.forward, self.path, ctx, assembled, reasons, children=children)
        state.held = assembled.module
        self.size_bound |= ctx.size_bound or traced.size_bound
        self.batch_bound |= traced.batch_bound
        self._decide(state, args, traced)
        self._probe(state, traced)
        traced.forget()
        state.forward = _only_segment(assembled) or state.forward
        return state

    def _probe(self, state: Specialization, traced: Traced) -> None:
        """Where the engine's form does not hold for another batch or image size, it is made for this one alone."""
        for others, expected in traced.probes:
            bound = (self.batch_bound or not others.batch) and (self.size_bound or not others.size)
            if bound:
                continue
            with torch.no_grad(), trial_from(traced.state):
                try:
                    holds = alike(state.forward(*clones(others.args)), expected, _near)
                except Error:
                    raise
                except Exception:
                    holds = False
            if not holds:
                self.batch_bound |= others.batch
                self.size_bound |= others.size

    def _decide(self, state: Specialization, args: Sequence[Any], traced: Traced) -> None:
        """Run the example through; each segment chooses its form on the inputs that reach it."""
        assembled = state.assembled
        assert assembled is not None
        work = sum(segment.flops for segment in assembled.segments.values())
        handles = []
        for segment in assembled.segments.values():

            def hook(module: Any, inputs: Any, share: float = segment.flops / max(work, 1.0)) -> None:
                left = max(self.settings.deadline - time.perf_counter(), 1.0)
                module.decide(inputs, self.path, self.settings.decisions, 0.8 * share * left)

            handles.append(segment.register_forward_pre_hook(hook))
        try:
            with torch.no_grad(), trial_from(traced.state):
                made = state.forward(*clones(args))
        finally:
            for handle in handles:
                handle.remove()
        if alike(made, traced.expected, _near):
            return
        for segment in assembled.segments.values():  # no step may be wrong; that one is must not be silent either
            if segment.engine:
                segment.engine, segment.decision = False, Decision(False, "the network's result differs with it")
        with torch.no_grad(), trial_from(traced.state):
            made = state.forward(*clones(args))
        if not alike(made, traced.expected, _near):
            raise Untraceable("its graph, cut into segments, computes something else")

    def forget_weights(self) -> None:
        """Drop the dense weights: the programs have their own."""
        for unit in self.settings.units.values():
            for state in unit.states.values():
                for step in state.ctx.steps.values() if state.ctx is not None else ():
                    step.forget_weight()
                for segment in state.assembled.segments.values() if state.assembled is not None else ():
                    for step in segment.steps:
                        step.forget_weight()

    # ---- forwards that are no graph ----

    def _unit_of(self, module: nn.Module, name: str) -> CompiledForward:
        units = self.settings.units
        if id(module) not in units:
            path = f"{self.path}.{name}" if self.path else name
            units[id(module)] = CompiledForward(module, path, self.settings)
        return units[id(module)]

    def _python_state(self, args: Sequence[Any], why: str) -> Specialization:
        module = self.module
        state = Specialization(self._own, self.path, why=why)
        if self._replaced is not None or isinstance(module, torch.jit.ScriptModule):
            if isinstance(module, torch.jit.ScriptModule):
                state.forward = module.forward
            return state
        called: set[int] = set()
        with torch.no_grad(), in_torch(), state_kept(module), _calls(module, called):
            self._own(*clones(args))
        for name, child in module.named_modules():
            if id(child) in called and not isinstance(child, torch.jit.ScriptModule) and not forward_replaced(child):
                unit = self._unit_of(child, name)
                state.children.append(unit)
                child.__dict__["forward"] = unit
        if state.children:  # each is made when the example reaches it
            with torch.no_grad(), state_kept(module):
                self._own(*clones(args))
        return state


def _itself(forward: Any) -> Any:
    return forward


class ClassForward(StandIn):
    """What a copied module has in place of its unit: the forward of its class."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)


def is_empty(args: Sequence[Any]) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() == 0 for leaf in pytree.tree_leaves(list(args)))


def _near(a: Any, b: Any) -> bool:
    """Whether two values of a result are alike but for rounding (of bytes too)."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() or not bool(torch.isfinite(b).all()):
        return True
    return float((a - b).norm()) <= 0.05 * float(b.norm()) + 1e-6


def _only_segment(assembled: Assembled) -> Callable[..., Any] | None:
    """The segment's own forward, where the graph is nothing else: each Python call costs small networks time."""
    *inputs, call, output = assembled.module.graph.nodes
    if call.target in assembled.segments and output.args == (call,) and call.args == tuple(inputs):
        return assembled.segments[str(call.target)].forward
    return None


def undressed(module: nn.Module) -> nn.Module:
    """The model, its units taken off."""
    for each in module.modules():
        forward = vars(each).get("forward")
        if isinstance(forward, StandIn):
            del each.__dict__["forward"]
            if isinstance(forward, CompiledForward) and forward.replaced is not None:
                each.__dict__["forward"] = forward.replaced
    return module


@contextmanager
def _calls(module: nn.Module, called: set[int]) -> Iterator[None]:
    """Note which modules the module's own forward calls (not those that they call in turn)."""
    depth = 0

    def enter(child: nn.Module, *_: Any) -> None:
        nonlocal depth
        if depth == 0:
            called.add(id(child))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    with calls_watched([child for child in module.modules() if child is not module], enter, leave):
        yield


def input_key(value: Any, with_size: bool = False, with_batch: bool = False) -> Any:
    if isinstance(value, Tensor):
        shape = value.shape
        rank = len(shape)
        fixed = shape[1] if rank == 4 else shape[-1] if rank == 2 and value.is_floating_point() else None
        if not with_size:
            return value.dtype, value.device.type, value.layout, rank, fixed, shape[:1] if with_batch else None
        size = shape if with_batch else shape[1:] if rank != 4 else shape[2:]
        return value.dtype, value.device.type, value.layout, rank, fixed, size
    if isinstance(value, bool | int | float | str | None):
        return type(value).__name__, value
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple([input_key(v, with_size, with_batch) for v in value])
    if isinstance(value, dict):
        return "dict", tuple([(k, input_key(v, with_size, with_batch)) for k, v in value.items()])
    return type(value)


__all__ = ["MOST_MADE", "CompileSession", "CompiledForward", "Specialization", "input_key", "is_empty", "undressed"]
