"""From a module to a graph of its operations, with the facts that one run on the example shows of each.

Code that torch.fx cannot trace (control flow on values, ``isinstance(x, Tensor)``, state that changes) is left as one
operation of the graph, the smallest module that contains it. The graph is checked against the module on the example: a
wrong branch taken while tracing raises nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from .._base.modules import calls_watched, forward_replaced, has_stock_forward, hooks_of
from .._base.signals import held_signals
from .._base.state import State, in_torch, random_state, same_random_state, trial_from, was_written
from .._base.tensors import BASES, clones, same
from ..nn import (
    MaskedConv2d,
    MaskedLinear,
    Quantize,
    QuantizedConv2d,
    QuantizedLinear,
    SparseConv2d,
    SparseLinear,
    ThresholdReLU,
)
from . import operators
from .in_place import InPlaceProxy, InPlaceTracer
from .other_inputs import Others, other_inputs
from .writes import statically_writing

_QUANTIZED = (Quantize, QuantizedConv2d, QuantizedLinear)
_OURS = (MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, ThresholdReLU, *_QUANTIZED)

# While fx traces, nn.Module.__call__ and __getattr__ are replaced for the whole process.
tracing_lock = threading.RLock()
# A fork waits for it: patches made by tracing would stay in the child.
os.register_at_fork(
    before=tracing_lock.acquire, after_in_parent=tracing_lock.release, after_in_child=tracing_lock.release
)


class Untraceable(Exception):
    """The module's own forward cannot be made a graph; the message says why."""


@dataclass
class Meta:
    """A node's value on the example."""

    shape: tuple[int, ...] | None = None  # None: not one tensor
    dtype: torch.dtype | None = None
    device: str = ""
    geometry: tuple[Any, ...] = ()  # where in its storage it lies
    shares: list[fx.Node] = field(default_factory=list)  # inputs with which it shares memory
    writes: list[fx.Node] = field(default_factory=list)  # inputs that it writes into
    random: bool = False  # it draws random numbers
    constant: Tensor | None = None
    number: Any = None  # a value that is no tensor (sizes and numbers computed from them)


@dataclass
class Traced:
    """A module's forward as a graph, and the example's way through it."""

    graph: fx.Graph
    module: fx.GraphModule
    meta: dict[fx.Node, Meta]
    opaque: dict[str, str]  # target of a call_module node that is a graph of its own -> why
    names: dict[fx.Node, str]
    state: State  # the module's, before it was run
    expected: Any = None  # what the module makes of the example
    batch_bound: bool = False  # it holds for this batch size alone
    size_bound: bool = False  # it holds for this image size alone
    probes: list[tuple[Others, Any]] = field(default_factory=list)  # other inputs that it was tried on, and the results

    def forget(self) -> None:
        """Let go of the values that it was held against, and of the parameters."""
        self.expected, self.state = None, State(nn.Module())
        self.probes.clear()

    def has_effects(self, node: fx.Node) -> bool:
        """Whether a node does what no argument shows: draws random numbers, or may write, or calls hooks."""
        return self.meta[node].random or self.is_opaque(node)

    def is_opaque(self, node: fx.Node) -> bool:
        """Whether a node calls a module that is one operation here: it, or its hooks, may keep what they are given."""
        return node.op == "call_module" and str(node.target) in self.opaque


def _is_torch(module: nn.Module) -> bool:
    home = type(module).__module__
    if home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential):
        return True
    plain = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU)
    return type(module) in _OURS or any(has_stock_forward(module, kind) for kind in plain)


class _Proxy(InPlaceProxy):
    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a part of a value is assigned to")  # whoever does so runs in torch


class _Tracer(InPlaceTracer):
    def __init__(self, opaque: set[nn.Module], inside: set[nn.Module], trained: bool) -> None:
        super().__init__(trained=trained)
        self.opaque = opaque
        self.inside = inside  # the model's modules: a forward may make others, such as a slice of a Sequential
        self.failed: nn.Module | None = None
        self._thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or _is_torch(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:  # another thread's model, running as it should
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None and m in self.inside:
                self.failed = m
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def absent_arguments(module: nn.Module, args: Sequence[Any]) -> dict[str, Any]:
    """The values that the forward's graph has fixed: arguments left to their defaults, numbers, strings."""
    fixed: dict[str, Any] = {}
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    for i, p in enumerate(parameters):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise Untraceable("its forward takes any number of arguments")
        if i >= len(args):
            fixed[p.name] = p.default
        elif isinstance(args[i], BASES):
            fixed[p.name] = args[i]
    return fixed


def trace(module: nn.Module, args: Sequence[Any], trained: bool = False) -> Traced:
    """The graph of ``module(*args)``. Raises :class:`Untraceable`; what the module itself raises goes through.

    The module is run, on copies of the arguments, and is afterwards as it was: attributes, tensors, random numbers. It
    must be nobody else's all the same, since other threads would see what it does meanwhile. A module inside it whose
    own forward writes what outlives the call (an attribute, a buffer, a list) is left as one operation; where the graph
    is to be ``trained``, one that computes under no_grad too.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise Untraceable("it is TorchScript")
    if forward_replaced(module):
        raise Untraceable("its forward was replaced")
    fixed = absent_arguments(module, args)
    opaque = {m: "it has forward hooks" for m in module.modules() if m is not module and hooks_of(m)}
    opaque = {m: why for m, why in opaque.items() if not isinstance(m, torch.jit.ScriptModule)}
    writers = statically_writing(module)
    theirs = clones(args)  # writes into them are compared too
    state = State(module)
    with torch.no_grad(), in_torch(), trial_from(state):
        expected = _own_forward(module)(*theirs)
        changed, drawn = state.changes(), random_state()
    if changed:
        writers.update(writers_of(module, args, state))
        if not writers:
            raise Untraceable(f"its forward writes {', '.join(changed)}, which outlives the call")
    if module in writers:
        raise Untraceable(f"its forward writes {writers[module]}, which outlives the call")
    opaque.update({m: f"its forward writes {what}, which outlives the call" for m, what in writers.items()})
    for m in module.modules():
        if not isinstance(m, torch.jit.ScriptModule) and any(map(was_written, _own_tensors(m))):
            if m is module:
                raise Untraceable("its parameters or buffers are written while the model runs")
            opaque.setdefault(m, "its parameters or buffers are written while the model runs")
    with torch.no_grad(), in_torch(), tracing_lock, held_signals(), trial_from(state):
        graph = _trace(module, opaque, fixed, trained)
        for node in list(graph.nodes):  # "this argument has been specialized": the caller handles it
            if node.op == "placeholder" and not _is_given(node, args, graph):
                drop_asserts(graph, node)
        _refuse_proxies(graph)
        traced = fx.GraphModule(module, graph)  # now, for fx keeps tensors made in the forward on the module
    examiner = _Examiner(traced)
    ours = clones(args)
    with torch.no_grad(), in_torch(), trial_from(state):
        try:
            got = _plain(examiner.run(*ours))
            alike = same_random_state(random_state(), drawn)
        except Exception as error:
            raise Untraceable(f"its graph does not run: {type(error).__name__}: {error}") from error
    # fx takes `x += y` for `x = x + y`, so a write into x can be lost.
    if not alike:
        raise Untraceable("its forward draws random numbers that are no part of its graph")
    if not same(got, expected) or not same(ours, theirs):
        raise Untraceable("its graph computes something else: its forward depends on more than its inputs")
    targets = {name: opaque[m] for name, m in module.named_modules(remove_duplicate=False) if m in opaque}
    made = Traced(graph, traced, examiner.meta, targets, {n: _name(n) for n in graph.nodes}, state, expected)
    _verify(made, module, args)
    return made


def _verify(made: Traced, module: nn.Module, args: Sequence[Any]) -> None:
    """Hold the graph against the forward on other values, another batch and another image size, where it takes them."""
    tried: dict[tuple[bool, bool], bool | None] = {}
    for others in other_inputs(args):
        alike = tried[others.batch, others.size] = _alike(made, module, others)
        if alike and others.batch and (others.size or tried.get((True, True), False) is None):
            return  # both hold, or it takes no other image size
        if alike is False and not (others.batch and others.size):
            if not others.batch and not others.size:
                raise Untraceable("its graph computes something else: its forward depends on more than its inputs")
            made.batch_bound |= others.batch
            made.size_bound |= others.size
    if tried.get((True, True)) is False and not (made.batch_bound or made.size_bound):
        made.batch_bound = made.size_bound = True


def _alike(made: Traced, module: nn.Module, others: Others) -> bool | None:
    """Whether the graph does on other inputs what the forward does; None: the forward does not take them."""
    expected = _own_on(module, others, made.state)
    if expected is None:
        return None
    with torch.no_grad(), in_torch(), trial_from(made.state):
        ours = clones(others.args)
        try:
            alike = same((_plain(made.module(*ours)), ours), expected)
        except Exception:
            alike = False
    if alike:
        made.probes.append((others, expected[0]))
    return alike


def _own_on(module: nn.Module, others: Others, state: State) -> tuple[Any, list[Any]] | None:
    """What the module makes of other inputs, and what it leaves in them; None where it does not take them."""
    theirs = clones(others.args)
    with torch.no_grad(), in_torch(), trial_from(state), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _own_forward(module)(*theirs), theirs
        except Exception:
            return None


def writers_of(module: nn.Module, args: Sequence[Any], state: State | None = None) -> dict[nn.Module, str]:
    """The modules in whose own forward, between the calls of others, the state changes; and what they write."""
    state = State(module) if state is None else state
    found: dict[nn.Module, str] = {}
    running = [module]
    with torch.no_grad(), in_torch(), trial_from(state):
        before, known = state.signature(), set(state.changes())

        def look() -> None:
            nonlocal before, known
            now = state.signature()
            if now != before:
                changes = state.changes()
                new = [name for name in changes if name not in known] or changes or ["its state"]
                found.setdefault(running[-1], ", ".join(new))
                before, known = now, set(changes)

        def enter(child: nn.Module, *_: Any) -> None:
            look()
            running.append(child)

        def leave(*_: Any) -> None:
            look()
            running.pop()

        with calls_watched([child for child in module.modules() if child is not module], enter, leave):
            before = state.signature()  # the hooks themselves are no change
            _own_forward(module)(*clones(args))
            look()
    return found


def _own_tensors(module: nn.Module) -> list[Tensor]:
    tables: list[dict[str, Any]] = [module._parameters, module._buffers]
    return [t for table in tables for t in dict.values(table) if isinstance(t, Tensor)]  # as they are: maybe packed


def _refuse_proxies(graph: fx.Graph) -> None:
    """A tracer's object among a node's arguments would stand for a value that no run computes."""
    for node in graph.nodes:
        for leaf in pytree.tree_leaves((node.args, node.kwargs)):
            if isinstance(leaf, fx.Proxy):
                raise Untraceable("torch.fx cannot trace it: a value of the tracer is left in its graph")


def _trace(module: nn.Module, opaque: dict[nn.Module, str], fixed: dict[str, Any], trained: bool) -> fx.Graph:
    inside = set(module.modules()) - {module}
    while True:
        tracer = _Tracer(set(opaque), inside, trained)
        try:
            return tracer.trace(module, concrete_args=fixed or None)
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            reason = f"torch.fx cannot trace it: {type(error).__name__}: {said}{_place(error)}"
            if tracer.failed is None or tracer.failed in opaque:
                raise Untraceable(reason) from error
            opaque[tracer.failed] = reason


def _place(error: Exception) -> str:
    """The line of the model's code that an error came from."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        home = str(frame.f_globals.get("__name__", ""))
        if home.partition(".")[0] not in ("torch", "secateur"):
            place = f" ({os.path.basename(frame.f_code.co_filename)}, line {line}, in {frame.f_code.co_name})"
    return place


def _is_given(node: fx.Node, args: Sequence[Any], graph: fx.Graph) -> bool:
    place = [n for n in graph.nodes if n.op == "placeholder"].index(node)
    return place < len(args) and not isinstance(args[place], BASES)


def drop_asserts(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        for check in list(user.users):
            if check.target is torch._assert:
                graph.erase_node(check)
        if not user.users:
            graph.erase_node(user)


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward without the module's own hooks, which stay outside of its graph."""
    return functools.partial(type(module).forward, module)


def _plain(value: Any) -> Any:
    """Plain lists and dicts, as the graph's code returns them, for the immutable ones of its output node."""
    if type(value) is immutable_list or type(value) is tuple or type(value) is list:
        kind = tuple if type(value) is tuple else list
        return kind(_plain(v) for v in value)
    if type(value) is immutable_dict or type(value) is dict:
        return {key: _plain(v) for key, v in value.items()}
    return value


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack)) if stack else ""
    return f"{path}.{node.name}" if path else node.name


class _Examiner(fx.Interpreter):
    """Runs the graph, and notes shapes, constants, aliasing and in-place writes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.meta: dict[fx.Node, Meta] = {}

    def run_node(self, n: fx.Node) -> Any:
        inputs = {node: _tensors(self.env[node]) for node in n.all_input_nodes}
        versions = {node: [t._version for t in tensors] for node, tensors in inputs.items()}
        random = torch.random.get_rng_state()
        result = super().run_node(n)
        if n.op == "output":
            return result
        meta = self.meta[n] = _describe(result)
        meta.random = not torch.equal(random, torch.random.get_rng_state())
        memory = {t.untyped_storage()._cdata for t in _tensors(result)}
        for node, tensors in inputs.items():
            if memory & {t.untyped_storage()._cdata for t in tensors}:
                meta.shares.append(node)
            if versions[node] != [t._version for t in tensors]:
                meta.writes.append(node)
        constants = [self.meta[node].constant is not None or _is_number(self.meta[node]) for node in inputs]
        called = operators.of(n)
        folds = called is not None and called.folds and not operators.in_place(n)
        known = any(self.meta[node].constant is not None for node in inputs)
        if isinstance(result, Tensor) and n.op == "get_attr" and was_written(result):
            return result
        if isinstance(result, Tensor) and (n.op == "get_attr" or (folds and known and all(constants))):
            meta.constant = result.detach()
        return result


def _is_number(meta: Meta) -> bool:
    return meta.shape is None and isinstance(meta.number, BASES) and meta.number is not None


def _tensors(value: Any) -> list[Tensor]:
    return [
        t for t in pytree.tree_leaves(value) if isinstance(t, Tensor) and t.layout == torch.strided
        and not t.is_inference()
    ]  # fmt: skip


def _describe(value: Any) -> Meta:
    if isinstance(value, Tensor):
        strided = value.layout == torch.strided
        where = (value.storage_offset(), tuple(value.shape), value.stride(), value.dtype) if strided else ()
        return Meta(tuple(value.shape), value.dtype, value.device.type if strided else "sparse", where)
    simple = not _tensors(value)
    return Meta(number=value if simple else None)


__all__ = ["Meta", "Traced", "Untraceable", "drop_asserts", "trace", "tracing_lock", "writers_of"]
