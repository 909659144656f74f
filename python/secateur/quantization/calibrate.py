"""Calibration data through a prepared network, an observer at every value that may become bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.batches import inputs_of
from .._base.errors import Error
from .._base.held import every_module
from .._base.tensors import unusual_form
from .._base.trial import trial
from .._base.wrappers import unwrapped
from ..engine.compiled import CompiledModel
from ..nn import QATConv2d, QATLinear, QuantizedConv2d, QuantizedLinear, ThresholdReLU
from .grids import Grid, Method, Observer
from .layers import refuse_not_finite
from .network import Network, prepare


@dataclass
class Calibrated:
    """A network and the statistics of its values; values that share a grid share an observer."""

    network: Network
    example: Tensor  # the first batch
    observers: dict[fx.Node, Observer] = field(default_factory=dict)
    direct: dict[fx.Node, Observer] = field(default_factory=dict)  # of the inputs of layers that round by themselves
    inner: dict[str, Observer] = field(default_factory=dict)  # of the inputs of layers inside modules, by path
    limits: dict[fx.Node, float] = field(default_factory=dict)  # the most that a value's largest byte may stand for

    def grids(self, method: Method) -> dict[fx.Node, Grid]:
        known: dict[int, Grid] = {}
        limits: dict[int, float] = {}
        for node, observer in self.observers.items():
            if node in self.limits:
                limits[id(observer)] = min(limits.get(id(observer), float("inf")), self.limits[node])
        for observer in self.observers.values():
            if id(observer) not in known and observer.seen:
                known[id(observer)] = observer.grid(method, limits.get(id(observer)))
        return {node: known[id(o)] for node, o in self.observers.items() if id(o) in known}


def calibrate(model: nn.Module, batches: Any, progress: bool, caller: str) -> Calibrated:
    """Prepare a copy of ``model`` and show it all ``batches``."""
    model = unwrapped(model)
    if isinstance(model, CompiledModel):
        model = model.source
    if isinstance(model, torch.jit.ScriptModule):
        raise Error(f"{caller}: model must be the module itself, got what TorchScript made of it")
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(batches, Tensor):
        raise Error(f"{caller}: batches must be an iterable of batches, got one tensor: write [tensor]")
    if not isinstance(batches, Iterable):
        raise Error(f"{caller}: batches must be an iterable of batches, got {type(batches).__name__}")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(t):
            raise Error(f"{caller}: model must be initialized, but {name} is not: run it once on real data")
        if t.is_meta:
            raise Error(f"{caller}: model must have values, but {name} is on the meta device")
        if unusual := unusual_form(t):
            raise Error(f"{caller}: model must have dense parameters of an ordinary dtype, but {name} is {unusual}")
    for path, module in every_module(model).items():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            refuse_not_finite(caller, path, module)
    stream = inputs_of(model, batches, caller)
    first = next(stream, None)
    if first is None:
        raise Error(f"{caller}: batches must hold at least one batch, got none")
    network = prepare(model, first, caller)
    if not any(not layer.why for layer in network.all_layers.values()):
        why = sorted({layer.why for layer in network.all_layers.values()})
        kinds = QuantizedConv2d | QuantizedLinear | QATConv2d | QATLinear
        done = next((name for name, module in model.named_modules() if isinstance(module, kinds)), None)
        why_not = why or "none" if done is None else f"{done or type(model).__name__}, which is quantized already"
        raise Error(f"{caller}: model must have a Conv2d or Linear that can be quantized, got {why_not}")
    result = Calibrated(network, first)
    watched = _watched(result, caller)
    result.inner = {path: Observer(path, caller) for path, layer in network.inner.items() if not layer.why}
    handles = _hook(network, result.inner)
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:
        length = None
    try:
        for batch in tqdm(_chain(first, stream), desc="calibrating", total=length, disable=not progress, leave=False):
            with trial(network.template):
                watched(batch.clone())
    finally:
        for handle in handles:
            handle.remove()
        network.seen.restore()
    observers = [*result.observers.values(), *result.inner.values(), *result.direct.values()]
    if observers and not any(observer.seen for observer in observers):
        raise Error(f"{caller}: batches must hold at least one example, got none")
    return result


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _watched(result: Calibrated, caller: str) -> nn.Module:
    """The network with an observer after each candidate."""
    network = result.network
    if network.graph is None or network.values is None:
        return network.root
    groups = network.values.groups()
    shared: dict[fx.Node, Observer] = {}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(network.graph, copies))
    modules = dict(network.root.named_modules(remove_duplicate=False))
    held: dict[str, Any] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            layer = network.layers.get(node)
            held[str(copies[node].target)] = modules[str(node.target)] if layer is None else layer.module
        elif node.op == "get_attr":
            held[str(node.target)] = attribute(network.root, str(node.target))
    for i, node in enumerate(network.values.candidates()):
        name = network.names.get(node, node.name)
        observer = shared.setdefault(groups[node], Observer(name, caller))
        result.observers[node] = observer
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ThresholdReLU) and module.max is not None:
            result.limits[node] = module.max
        target = f"_observer_{i}"
        held[target] = observer
        at = copies[node]
        with graph.inserting_after(at):
            seen = graph.call_module(target, (at,))
        put_between(at, seen)
    for i, (node, layer) in enumerate(network.layers.items()):
        if network.values.inputs[node] and network.values.inputs[node][0] in network.values.pinned and not layer.why:
            # Its input is written later: it is looked at where the layer reads it.
            result.direct[node] = held[f"_input_{i}"] = Observer(layer.name, caller)
            with graph.inserting_before(copies[node]):
                read = graph.call_module(f"_input_{i}", (copies[node].args[0],))
            copies[node].args = (read, *copies[node].args[1:])
    made = nn.Module()
    for target in sorted(held, key=lambda path: path.count(".")):
        place(made, target, held[target])
    result_module = fx.GraphModule(made, graph)
    for module in result_module.modules():
        if type(module) in (nn.Module, Observer) or module is result_module:
            module.training = False
    return result_module


def _hook(network: Network, observers: dict[str, Observer]) -> list[Any]:
    handles = []
    for path, observer in observers.items():

        def watch(module: nn.Module, args: Any, observer: Observer = observer) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                observer.watch(args[0])

        handles.append(network.sources[path].register_forward_pre_hook(watch))
    return handles


def put_between(node: fx.Node, after: fx.Node) -> None:
    """Let all readers of ``node`` but ``after`` itself read ``after`` instead."""
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)


def attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def place(root: nn.Module, path: str, value: Any) -> None:
    """Hang a module or tensor where a graph looks for it, in modules that are there or are made; it may be there."""
    *parts, name = path.split(".")
    for part in parts:
        if part not in root._modules:
            if hasattr(root, part):
                return
            root._modules[part] = nn.Module().eval()
        root = cast(nn.Module, root._modules[part])
    if name in root._modules or name in root._parameters or name in root._buffers or name in vars(root):
        return
    if isinstance(value, nn.Module):
        root._modules[name] = value
    elif isinstance(value, nn.Parameter):
        root._parameters[name] = value
    elif isinstance(value, Tensor):
        root._buffers[name] = value
    else:
        root.__dict__[name] = value
