"""From a model to the graph that is quantized: traced, BatchNorm folded, every layer found.

A module that torch.fx cannot trace stays one, and the layers inside it are handled one by one. If the model's own
forward cannot be traced, all layers are.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._base.errors import Error
from .._base.modules import hooks_of, pruning_hooks
from ..graph import operators
from ..graph.tracing import Meta, Untraceable, trace
from ..masks import attach
from ..nn.trainable_threshold import freeze_thresholds
from .kinds import kind_of
from .layers import Layer, fold_norm, foldable, is_layer, mask_of, plain, why_not
from .places import Values


@dataclass
class Network:
    """A copy of a model in evaluation mode, ready for observers and for layers of another kind.

    ``graph`` is None where the model cannot be traced; then ``root`` is the model and all layers are ``inner``.
    """

    root: nn.Module
    graph: fx.Graph | None
    values: Values | None
    names: dict[fx.Node, str]
    layers: dict[fx.Node, Layer] = field(default_factory=dict)
    inner: dict[str, Layer] = field(default_factory=dict)  # inside modules that stay modules, by path
    notes: list[str] = field(default_factory=list)
    class_name: str = "Module"
    attributes: dict[str, Any] = field(default_factory=dict)  # the model's own plain ones, such as num_classes

    @property
    def all_layers(self) -> dict[str, Layer]:
        """By name, in the order of the forward."""
        return {layer.name: layer for layer in [*self.layers.values(), *self.inner.values()]}


def prepare(model: nn.Module, example: Tensor, caller: str) -> Network:
    """Trace a copy of ``model``; the model itself is left alone."""
    work = freeze_thresholds(_copy(model)).eval()
    for module in work.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # observed values must not be overwritten
    with torch.no_grad():
        try:
            work(example.clone())
        except Error:
            raise
        except Exception as error:
            got = f"{str(example.dtype).removeprefix('torch.')} {list(example.shape)}"
            raise Error(
                f"{caller}: batches must be what the model takes, got {got}: {type(error).__name__}: {error}"
            ) from error
    if is_layer(work) or hooks_of(work):  # a bare layer is its own forward; hooks are outside of a graph
        work = nn.Sequential(work).eval()
    try:
        return _traced(work, example, type(model).__name__, _plain_attributes(model))
    except Untraceable as reason:
        network = Network(work, None, None, {}, class_name=type(model).__name__)
        network.notes.append(f"the model cannot be traced, so each layer is quantized by itself: {reason}")
        _take_inner(network, "", work)
        return network


def _copy(model: nn.Module) -> nn.Module:
    """A copy in which torch.nn.utils.prune's layers are plain ones with our mask: theirs cannot be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if not pruning_hooks(module):
            continue
        if why_not(module):
            for pruner in pruning_hooks(module):
                value = getattr(module, pruner._tensor_name)
                memo[id(value)] = value.detach().clone()
        else:
            memo[id(module)] = new = plain(module)
            if (mask := mask_of(module)) is not None:
                attach(new, "weight", mask)
    kept = list(memo.values())
    result = memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)
    del kept
    assert isinstance(result, nn.Module)
    return result


def _plain_attributes(model: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(model).items() if not k.startswith("_") and isinstance(v, str | int | float | bool)}


def _traced(work: nn.Module, example: Tensor, class_name: str, attributes: dict[str, Any]) -> Network:
    traced = trace(work, [example])
    graph, meta = traced.graph, traced.meta
    modules = dict(traced.module.named_modules(remove_duplicate=False))
    _out_of_place(graph, meta)
    for node in list(graph.nodes):  # arguments that were left to their defaults
        if node.op == "placeholder" and not node.users and node is not next(iter(graph.nodes)):
            graph.erase_node(node)
    network = Network(traced.module, graph, None, dict(traced.names), class_name=class_name, attributes=attributes)
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    made: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":
            target, module = str(node.target), modules[str(node.target)]
            if target in traced.opaque:
                network.notes.append(
                    f"{target} cannot be traced, so each layer in it is quantized by itself: {traced.opaque[target]}"
                )
                _take_inner(network, target, module)
            elif is_layer(module):
                why = why_not(module)
                if not why and len(node.args) != 1:
                    why = "its input is not its one positional argument"
                # A layer that is called twice is two layers with one weight: their inputs have grids of their own.
                again = target in made
                if not again:
                    made[target] = module if why else plain(module)
                name = target if not again else _another(target, network)
                network.layers[node] = Layer(name, made[target], why, mask_of(module))
            else:
                _keep_inner(network, target, module)
        elif (layer := _from_function(node, traced.module, network.names[node])) is not None:
            network.layers[node] = layer
            node.op, node.target, node.args, node.kwargs = "call_module", layer.name, (node.args[0],), {}
    _fold(network, modules, calls, meta)
    kinds = {n: kind_of(n, meta, modules, network.layers) for n in graph.nodes}
    network.values = Values(kinds, meta)
    return network


def _another(name: str, network: Network) -> str:
    taken = {layer.name for layer in network.layers.values()}
    n = 1
    while f"{name}_{n}" in taken:
        n += 1
    return f"{name}_{n}"


def _out_of_place(graph: fx.Graph, meta: dict[fx.Node, Meta]) -> None:
    """In-place calls become functional ones, and later readers of their input read the result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        writes = meta.get(node, Meta()).writes
        if not writes:
            continue
        source = node.args[0] if node.args else None
        shared = {n for n, m in meta.items() if source in m.shares and n is not node}
        if writes != [source] or not isinstance(source, fx.Node) or shared or meta[source].shares:
            raise Untraceable(f"{node.name} writes over a value in a way that cannot be undone")
        if node.op == "call_function" and node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_function" and (plain := operators.out_of_place(node.target)) is not None:
            node.target = plain
        elif node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
            node.target = str(node.target)[:-1]
        else:
            raise Untraceable(f"{node.name} writes over its input")
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)
        meta[node].writes, meta[node].shares = [], []


def _from_function(node: fx.Node, root: fx.GraphModule, name: str) -> Layer | None:
    """F.conv2d and F.linear with parameters of the model: the layer that they are; None for other nodes."""
    known = operators.of(node)
    if known is None or known not in (operators.CONV2D, operators.LINEAR):
        return None

    def tensor(value: Any) -> Tensor | None:
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        found: Any = root
        for part in str(value.target).split("."):
            found = getattr(found, part)
        return found if isinstance(found, Tensor) else None

    x, weight, bias = known.read(node, "input"), tensor(known.read(node, "weight")), known.read(node, "bias")
    if not isinstance(x, fx.Node) or weight is None or (bias is not None and tensor(bias) is None):
        return None
    made: nn.Conv2d | nn.Linear
    if known is operators.LINEAR:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        stride, padding = known.read(node, "stride", 1), known.read(node, "padding", 0)
        dilation, groups = known.read(node, "dilation", 1), known.read(node, "groups", 1)
        if any(isinstance(v, fx.Node) for v in (stride, padding, dilation, groups)) or weight.dim() != 4:
            return None
        k, c, r, s = weight.shape
        made = nn.Conv2d(c * groups, k, (r, s), stride, padding, dilation, groups, bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone())
    made.bias = None if bias is None else nn.Parameter(tensor(bias).detach().clone())  # type: ignore[union-attr]
    made.eval()
    if why_not(made):
        return None
    node.args = (x,)
    return Layer(name, plain(made))


def _fold(network: Network, modules: dict[str, nn.Module], calls: Counter[str], meta: dict[fx.Node, Meta]) -> None:
    assert network.graph is not None
    shared = Counter(id(layer.module) for layer in network.layers.values())
    for node in list(network.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        source, norm = node.args[0], modules.get(str(node.target))
        if not isinstance(source, fx.Node) or source not in network.layers or norm is None or len(source.users) != 1:
            continue
        layer = network.layers[source]
        if layer.why or shared[id(layer.module)] > 1 or not isinstance(layer.module, nn.Conv2d | nn.Linear):
            continue
        # Over [N, L, C] a BatchNorm1d's channel is not the linear layer's.
        of_rows = isinstance(layer.module, nn.Linear) and len(meta[source].shape or ()) != 2
        if of_rows or not foldable(norm, layer.module.weight.shape[0]):
            continue
        fold_norm(layer.module, norm)  # type: ignore[arg-type]
        node.replace_all_uses_with(source)
        network.graph.erase_node(node)
        meta.pop(node, None)


def _take_inner(network: Network, path: str, module: nn.Module) -> None:
    """The layers inside a module that stays one; BatchNorm is folded where a Sequential shows the order."""
    for inner in module.modules():
        if type(inner) is nn.Sequential:
            _fold_sequence(inner)
    for name, inner in module.named_modules():
        where = ".".join(part for part in (path, name) if part)
        if not is_layer(inner) or any(where.startswith(f"{outer}.") for outer in network.inner):
            continue  # a MultiheadAttention's own projection
        why = why_not(inner)
        network.inner[where] = Layer(where, inner if why else plain(inner), why, mask_of(inner))


def _keep_inner(network: Network, path: str, module: nn.Module) -> None:
    """torch's modules that compute with their layers' weights by themselves: such layers stay, and are reported."""
    for name, inner in module.named_modules():
        if is_layer(inner) and not any(f"{path}.{name}".startswith(f"{outer}.") for outer in network.inner):
            why = f"{type(module).__name__} computes with its weights by itself"
            network.inner[f"{path}.{name}"] = Layer(f"{path}.{name}", inner, why)


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Conv2d or Linear, then BatchNorm, as neighbours, each with no other user that could be seen."""
    names = list(sequence._modules)
    for first, second in itertools.pairwise(names):
        layer, norm = sequence._modules[first], sequence._modules[second]
        if layer is None or norm is None or not is_layer(layer) or why_not(layer):
            continue
        if isinstance(norm, nn.BatchNorm1d) != isinstance(layer, nn.Linear):
            continue
        new = plain(layer)
        if foldable(norm, new.weight.shape[0]):
            fold_norm(new, norm)  # type: ignore[arg-type]
            if (mask := mask_of(layer)) is not None:
                attach(new, "weight", mask)
            sequence._modules[first], sequence._modules[second] = new, nn.Identity()
