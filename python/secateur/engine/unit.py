"""A module's forward in its fastest form (a unit), made at its first call and again for inputs of another kind.

A forward that torch.fx cannot trace runs as it is, and the children that it calls are replaced by units. An untraceable
module inside a graph is one call in it, and a unit of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._base.fork import Lock
from .._base.modules import hooks_of
from .._base.tensors import clones
from ..graph.tracing import Untraceable, trace
from ..graph.value_order import make_functional
from .backends.program import Backend
from .lowering.assemble import Assembled, assemble
from .lowering.partition import partition
from .lowering.segment import Decision
from .recognise.nodes import recognise
from .recognise.steps import Context

_MOST_STATES = 8  # image sizes kept at a time, where the graph depends on them


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


class CompiledForward:
    """A unit: called like the module; see the text above."""

    def __init__(self, module: nn.Module, path: str, settings: CompileSession) -> None:
        self.module = module
        self.path = path
        self.settings = settings
        self.size_bound = False
        self.states: OrderedDict[Key, Specialization] = OrderedDict()
        self.last: tuple[Key, Specialization] | None = None
        settings.units.setdefault(id(module), self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
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

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def key(self, args: Sequence[Any]) -> Key:
        """The key of a specialization: dtypes, devices, ranks, channels; image sizes only where the graph does."""
        return tuple(input_key(a, self.size_bound) for a in args)

    def state(self, args: Sequence[Any], key: Key | None = None) -> Specialization:
        key = self.key(args) if key is None else key
        found = self.states.get(key)
        if found is None:
            with self.settings.lock:
                found = self.states.get(self.key(args))
                if found is None:
                    if self.settings.sealed and not self._may_follow(key):
                        return Specialization(self._own, self.path, why="not what the example gave it")
                    found = self._make(args)
                    key = self.key(args)  # it may have turned out to depend on the size
                    self.states[key] = found
                    while len(self.states) > _MOST_STATES:
                        self.states.popitem(last=False)
        self.last = (key, found)
        return found

    def _may_follow(self, key: Key) -> bool:
        """Whether only the image size differs from inputs that it was made for."""
        return self.size_bound and any(_without_size(key) == _without_size(known) for known in self.states)

    def _make(self, args: Sequence[Any]) -> Specialization:
        try:
            return self._graph_state(args)
        except Untraceable as reason:
            return self._python_state(args, str(reason))

    def _graph_state(self, args: Sequence[Any]) -> Specialization:
        settings = self.settings
        traced = trace(self.module, args)
        order = make_functional(traced)
        ctx, reasons = recognise(traced, order, settings.backend.dtypes)
        parts = partition(ctx, reasons)
        children: list[CompiledForward] = []

        def opaque(target: str) -> nn.Module:
            unit = self._unit_of(self.module.get_submodule(target), target)
            children.append(unit)
            return module_with_forward(unit)

        assembled = assemble(ctx, parts, settings.backend, self.path, opaque)
        state = Specialization(assembled.module.forward, self.path, ctx, assembled, reasons, children=children)
        state.held = assembled.module
        self.size_bound |= ctx.size_bound
        self._decide(state, args)
        state.forward = _only_segment(assembled) or state.forward
        return state

    def _decide(self, state: Specialization, args: Sequence[Any]) -> None:
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
            with torch.no_grad():
                state.forward(*clones(args))
        finally:
            for handle in handles:
                handle.remove()

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
        called: set[int] = set()
        if not isinstance(module, torch.jit.ScriptModule):
            with _calls(module, called), torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._own(*clones(args))
        children: list[CompiledForward] = []
        clone = self._clone(module, "", called, children)
        forward = type(module).forward
        state = Specialization(lambda *a: forward(clone, *a), self.path, why=why, children=children, held=clone)
        if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
            state.forward = module.forward
        if children:  # each is made when the example reaches it
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                state.forward(*clones(args))
        return state

    def _clone(self, module: nn.Module, name: str, called: set[int], children: list[CompiledForward]) -> nn.Module:
        """The module with the same tensors, whose children run as units where its forward calls them."""
        if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
            return module
        clone = shallow_copy(module)
        for key, child in module._modules.items():
            if child is None:
                continue
            path = f"{name}.{key}" if name else key
            twin = self._clone(child, path, called, children)
            if id(child) in called and not isinstance(child, torch.jit.ScriptModule) and "forward" not in vars(child):
                unit = self._unit_of(child, path)
                children.append(unit)
                if twin is child:
                    twin = shallow_copy(child)
                twin.__dict__["forward"] = unit
            clone._modules[key] = twin
        return clone


def _only_segment(assembled: Assembled) -> Callable[..., Any] | None:
    """The segment's own forward, where the graph is nothing else: each Python call costs small networks time."""
    *inputs, call, output = assembled.module.graph.nodes
    if call.target in assembled.segments and output.args == (call,) and call.args == tuple(inputs):
        return assembled.segments[str(call.target)].forward
    return None


def module_with_forward(unit: CompiledForward) -> nn.Module:
    """The unit's module with its hooks, and the unit as its forward."""
    if isinstance(unit.module, torch.jit.ScriptModule):
        return unit.module
    twin = shallow_copy(unit.module)
    twin.__dict__["forward"] = unit
    return twin


def shallow_copy(module: nn.Module) -> nn.Module:
    """Another object with the same attributes, and a table of children of its own."""
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


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

    handles = []
    for child in module.modules():
        if child is module or isinstance(child, torch.jit.ScriptModule):
            continue
        handles.append(child.register_forward_pre_hook(enter, prepend=True))
        handles.append(child.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_key(value: Any, with_size: bool) -> Any:
    if isinstance(value, Tensor):
        shape = value.shape
        rank = len(shape)
        fixed = shape[1] if rank == 4 else shape[-1] if rank == 2 and value.is_floating_point() else None
        return value.dtype, value.device.type, value.layout, rank, fixed, shape[2:] if with_size else None
    if isinstance(value, bool | int | float | str | None):
        return type(value).__name__, value
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(input_key(v, with_size) for v in value)
    if isinstance(value, dict):
        return "dict", tuple((k, input_key(v, with_size)) for k, v in value.items())
    return type(value)


def _without_size(key: Any) -> Any:
    if isinstance(key, tuple) and len(key) == 6 and isinstance(key[0], torch.dtype):
        return key[:5]
    return tuple(_without_size(k) for k in key) if isinstance(key, tuple) else key


__all__ = ["CompileSession", "CompiledForward", "Specialization", "hooks_of", "module_with_forward"]
