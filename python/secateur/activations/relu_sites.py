"""Find every place of a model where a ReLU is computed, by a module or a function, and make each a module of its own.

Modules are found by name. Functional calls are found by watching one forward pass, which tells *which* module's forward
computes them; only those modules are then traced (torch.fx, their children as leaves). So control flow elsewhere does
no harm, and the other modules keep their class.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .._base.held import every_module
from .._base.modules import forward_replaced, hooks_of
from .._base.signals import held_signals
from .._base.state import state_kept
from .._base.trial import flags_kept
from ..graph import operators
from ..graph.in_place import InPlaceTracer
from ..graph.own_forward import Arguments
from ..graph.rewritten import RewrittenModule, as_graph_module, why_not_graph
from ..graph.tracing import drop_asserts, tracing_lock
from ..masks import masked_parameters
from ..nn.threshold_relu import ThresholdReLU
from .calibration import Calibrator

_LIMITS: dict[operators.Operator, float | None] = {operators.RELU: None, operators.RELU6: 6.0}
#: what counts as a functional ReLU -> (upper clamp, works in place whatever its arguments)
FUNCTIONS: dict[Callable[..., Any], tuple[float | None, bool]] = {
    function: (limit, writes) for row, limit in _LIMITS.items() for function, writes in operators.callables(row).items()
}

_DROPOUTS: dict[Any, type[nn.Module]] = {
    row.functions[0]: row.modules[0]
    for row in operators.TABLE
    if row.kind == "dropout" and row.functions and row.modules
}

#: makes the module that replaces a ReLU: (name of the site, upper clamp, in place, the module that it was) -> module
Make = Callable[[str, "float | None", bool, "nn.Module | None"], nn.Module]


def relu_kind(module: nn.Module) -> tuple[float | None, bool] | None:
    """(upper clamp, in place) of a module that computes a ReLU, None for any other."""
    if forward_replaced(module):
        return None
    if isinstance(module, ThresholdReLU | Calibrator):
        return module.max, module.inplace
    if isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward:
        return None, module.inplace
    if isinstance(module, nn.ReLU6) and type(module).forward is nn.Hardtanh.forward:
        return 6.0, module.inplace
    return None


@dataclass
class Calls:
    """What one call of a module's own forward was seen to do."""

    functional: int = 0
    modules: Counter[int] = field(default_factory=Counter)  # id of a ReLU module -> how often
    given: tuple[str, ...] = ()  # the names of the arguments it was called with
    edited: str = ""  # the class of a child that changed a list or dict that it was given


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.stack: list[Calls] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FUNCTIONS and self.stack:
            self.stack[-1].functional += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[nn.Module, list[Calls]]]:
    """While open, note for each module what every call of its own forward does about ReLUs."""
    seen: dict[nn.Module, list[Calls]] = {}
    mode = _Watch()
    containers: list[list[tuple[Any, Any]]] = []  # what each running module was given, and a shallow copy

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if mode.stack and relu_kind(module) is not None:
            mode.stack[-1].modules[id(module)] += 1
        try:
            given = tuple(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        except (TypeError, ValueError):
            given = ()
        calls = Calls(given=given)
        mode.stack.append(calls)
        containers.append([(c, c.copy()) for c in _containers((*args, *kwargs.values()))])
        if relu_kind(module) is None:
            seen.setdefault(module, []).append(calls)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.stack.pop()
        edited = any(not _holds_the_same(now, before) for now, before in containers.pop())
        if edited and mode.stack:
            mode.stack[-1].edited = type(module).__name__

    hooks = []
    for module in every_module(model).values():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        with mode:
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _containers(values: Any) -> Iterator[Any]:
    """The lists and dicts among ``values``, those inside others too."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, list | dict):
            yield value
        if isinstance(value, list | tuple | dict):
            yield from _containers(value)


def _holds_the_same(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def needs_rewriting(module: nn.Module, calls: list[Calls]) -> bool:
    """Whether replacing this module's children can't give every ReLU of its forward a threshold of its own."""
    if any(c.functional for c in calls):
        return True
    # A Sequential that lists one ReLU twice has two names for it, which is enough.
    return not isinstance(module, nn.Sequential) and any(n > 1 for c in calls for n in c.modules.values())


class _OwnForward(InPlaceTracer):
    """Traces a module's own forward: every child is a leaf, and a buffer is read at each call."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Fixed(TorchFunctionMode):
    """While a forward is traced: whether it computes with a tensor that hangs in a plain attribute, as the weights of
    ``torch.nn.utils.prune`` do, which are made anew at each call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.found = ""
        self._names = {
            id(value): f"{path}.{name}" if path else name
            for path, each in every_module(module).items()
            for name, value in vars(each).items()
            if isinstance(value, Tensor)
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__" or func in (Tensor.T.__get__, Tensor.mT.__get__):  # type: ignore[attr-defined]
            leaves = pytree.tree_leaves((args, kwargs or {}))
            if not any(isinstance(leaf, fx.Proxy) for leaf in leaves):  # else the graph reads it by its name
                self.found = self.found or next((self._names[id(x)] for x in leaves if id(x) in self._names), "")
        return func(*args, **(kwargs or {}))


def _trace(module: nn.Module, calls: list[Calls]) -> fx.Graph:
    """The graph of the module's own forward, for the arguments that it was seen to be called with."""
    given = {c.given for c in calls}
    if len(given) > 1:
        raise NotImplementedError("it is called with different sets of arguments")
    if editor := next((c.edited for c in calls if c.edited), ""):  # a graph hands every call lists of its own
        raise NotImplementedError(f"a child, {editor}, changes a list that it is given")
    parameters = inspect.signature(module.forward).parameters.values()
    absent = {
        p.name: p.default
        for p in parameters
        if p.name not in next(iter(given), ()) and p.default is not inspect.Parameter.empty
    }
    graphs, constants = [], {}
    for mode in (True, False):
        with flags_kept(module), state_kept(module), tracing_lock, held_signals():
            if hasattr(module, "train_graph"):
                module.train(mode)  # torchvision's, with a graph for each mode
            else:
                module.training = mode
            with _Fixed(module) as fixed:
                graph = _OwnForward(trained=True).trace(module, concrete_args=dict(absent) or None)
            if fixed.found:
                raise NotImplementedError(f"it computes with {fixed.found}, which a graph would take as it is now")
            graphs.append(graph)
            for node in graph.nodes:
                if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((node.args, node.kwargs))):
                    raise NotImplementedError("a value of the tracer is left in its graph")
                if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
                    constants[str(node.target)] = getattr(module, str(node.target))
    for name, value in constants.items():  # tensors that the forward makes of numbers
        setattr(module, name, value)
    training, evaluating = graphs
    if [(n.op, str(n.target)) for n in training.nodes] != [(n.op, str(n.target)) for n in evaluating.nodes]:
        raise NotImplementedError("it computes something else while training")
    for a, b in zip(training.nodes, evaluating.nodes, strict=True):
        if str((a.args, a.kwargs)) != str((b.args, b.kwargs)):
            _mark_dropout(b)
    evaluating._tracer_cls = None  # so that pickle needs no class of ours to read the module back
    return evaluating


def _mark_dropout(node: fx.Node) -> None:
    if node.target not in _DROPOUTS:
        raise NotImplementedError(f"it passes self.training to {node.target}")
    node.meta["follows_training"] = True


def _free_name(module: nn.Module, wanted: str) -> str:
    name, n = wanted, 0
    while hasattr(module, name):
        n += 1
        name = f"{wanted}_{n}"
    return name


def _site_name(module: nn.Module, node: fx.Node) -> str:
    """Named after the layer before the ReLU, if there is one: conv1_relu says more than relu_2."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    if isinstance(source, fx.Node) and source.op == "call_module":
        return _free_name(module, str(source.target).replace(".", "_") + "_relu")
    return _free_name(module, "relu")


def _relu_call(node: fx.Node) -> tuple[float | None, bool] | None:
    known = operators.of(node)
    if known is None or known not in _LIMITS:
        return None
    return _LIMITS[known], operators.in_place(node) or bool(known.read(node, "inplace", False))


def rewrite(module: nn.Module, path: str, calls: list[Calls], make: Make) -> RewrittenModule:
    """A module like this one (same children, parameters, buffers, class name) in which every ReLU call is a module.

    ``path`` is the module's own name in the model, the prefix of the names that ``make`` is given.
    Raises the error of fx if it cannot trace the module.
    """
    if masked_parameters(module):
        # Its class keeps its masks; a graph of the same name would let the pruned weights come back.
        raise NotImplementedError("it is a pruned layer that computes its own ReLU")
    if forward_replaced(module):
        raise NotImplementedError("its forward was replaced")
    if why := why_not_graph(module):
        raise NotImplementedError(why)
    graph = _trace(module, calls)
    arguments = Arguments("prune_activations", calls[0].given, lost="without thresholds for its functional ReLUs")
    complete = _drop_absent(graph, arguments.given)
    used: set[str] = set()
    for node in list(graph.nodes):
        if node.op == "call_module":
            child_name = str(node.target)
            child = module.get_submodule(child_name)
            kind = relu_kind(child)
            if kind is None:
                continue
            if child_name not in used or hooks_of(child):  # what hooks keep on it belongs to its last call
                used.add(child_name)
                continue
            name = _free_name(module, child_name.replace(".", "_"))
            module.add_module(name, make(f"{path}.{name}" if path else name, *kind, child).train(module.training))
            node.target = name
            arguments.why_not = f"the calls of {child_name} have thresholds of their own"
        elif (call := _relu_call(node)) is not None:
            name = _site_name(module, node)
            made = make(f"{path}.{name}" if path else name, *call, None)
            module.add_module(name, made.train(module.training))
            source = node.args[0] if node.args else node.kwargs["input"]
            node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}
        elif node.meta.get("follows_training"):
            _swap_dropout(module, node)
    return as_graph_module(module, graph, arguments=arguments if complete else None)


def _drop_absent(graph: fx.Graph, given: tuple[str, ...]) -> bool:
    """Makes ``given`` the only inputs: the defaults of the others are in the graph. False: it has another form."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if type(graph._codegen) is not fx.graph.CodeGen or any(str(n.target).startswith("*") for n in inputs):
        return False
    for node in inputs:
        if node.target not in given:
            drop_asserts(graph, node)
            if node.users:
                return False
            graph.erase_node(node)
    return True


def _swap_dropout(module: nn.Module, node: fx.Node) -> None:
    """F.dropout(x, p, training=self.training) -> nn.Dropout, which follows train() and eval() where a graph can't."""
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    name = _free_name(module, "dropout")
    layer = _DROPOUTS[node.target](bound.arguments["p"], bound.arguments["inplace"])
    module.add_module(name, layer.train(module.training))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (bound.arguments["input"],), {}
