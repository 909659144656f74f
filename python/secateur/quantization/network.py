"""From a model to the graph that is quantized: traced, BatchNorm folded, every layer found.

A module that torch.fx cannot trace stays one, and the layers inside it are handled one by one. If the model's own
forward cannot be traced, all layers are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from .._base.copies import evaluating, own_copy
from .._base.errors import Error
from .._base.held import every_module, holders_of
from .._base.modules import pruning_hooks
from .._base.trial import trial
from ..graph import operators
from ..graph.rewritten import why_not_graph
from ..graph.tracing import Meta, Traced, Untraceable, trace
from ..graph.value_order import make_functional
from ..masks import attach
from ..nn.trainable_threshold import freeze_thresholds
from .kinds import kind_of
from .layers import Layer, fold_norm, foldable, is_layer, mask_of, plain, why_not
from .places import Values
from .watched import Seen, watched


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
    template: nn.Module = field(default_factory=nn.Module)  # the copy that was traced: containers, attributes, hooks
    sources: dict[str, nn.Module] = field(default_factory=dict)  # what ``inner`` layers are in the copy
    opaque: set[str] = field(default_factory=set)  # modules that stay modules, by target
    folded: list[str] = field(default_factory=list)  # BatchNorms that are part of the layers before them now
    seen: Seen = field(default_factory=Seen)
    made_of: dict[int, nn.Parameter] = field(default_factory=dict)  # id of a parameter -> its copy in the layers

    @property
    def all_layers(self) -> dict[str, Layer]:
        """By name, in the order of the forward."""
        return {layer.name: layer for layer in [*self.layers.values(), *self.inner.values()]}


def prepare(model: nn.Module, example: Tensor, caller: str) -> Network:
    """Trace a copy of ``model``; the model itself is left alone."""
    work = evaluating(freeze_thresholds(_copy(model, caller)))
    seen = _first_run(work, example, caller)
    if is_layer(work):  # a bare layer is its own forward
        work = evaluating(nn.Sequential(work))
        seen.parents = {}
    try:
        if any("__call__" in vars(kind) for kind in _own_classes(type(work))):
            raise Untraceable(f"{type(work).__name__} has a __call__ of its own")
        if why := why_not_graph(work):
            raise Untraceable(why)
        with trial(work):
            traced = trace(work, [example], trained=caller == "prepare_qat")
        seen.restore()
        if traced.batch_bound or traced.size_bound:
            raise Untraceable("its graph would hold for this input's size alone")
        return _traced(traced, work, seen, type(model).__name__)
    except Untraceable as reason:
        network = Network(work, None, None, {}, class_name=type(model).__name__, template=work)
        network.seen = seen
        network.notes.append(f"the model cannot be traced, so each layer is quantized by itself: {reason}")
        _take_inner(network, "", work, seen)
        return network


#: Classes whose ``__call__`` only calls forward.
_CALLS = (fx.GraphModule, torch.jit.ScriptModule)


def _own_classes(kind: type) -> list[type]:
    return [k for k in kind.__mro__ if k is not nn.Module and not issubclass(k, _CALLS)]


def _first_run(work: nn.Module, example: Tensor, caller: str) -> Seen:
    with trial(work), watched(work) as seen:
        try:
            work(example.clone())
        except Error:
            raise
        except Exception as error:
            got = f"{str(example.dtype).removeprefix('torch.')} {list(example.shape)}"
            raise Error(
                f"{caller}: batches must be what the model takes, got {got}: {type(error).__name__}: {error}"
            ) from error
    return seen


def _copy(model: nn.Module, caller: str) -> nn.Module:
    """A copy in which torch.nn.utils.prune's layers are plain ones with our mask."""
    memo: dict[int, Any] = {}
    for module in every_module(model).values():
        if not isinstance(module, torch.jit.ScriptModule) and pruning_hooks(module) and not why_not(module):
            memo[id(module)] = new = plain(module)
            if (mask := mask_of(module)) is not None:
                attach(new, "weight", mask)
    kept = list(memo.values())
    result = memo[id(model)] if id(model) in memo else own_copy(model, caller, memo)
    del kept
    assert isinstance(result, nn.Module)
    return result


def _traced(traced: Traced, work: nn.Module, seen: Seen, class_name: str) -> Network:
    pinned = set(make_functional(traced).pinned)
    graph, meta = traced.graph, traced.meta
    modules = dict(traced.module.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):  # arguments that were left to their defaults
        if node.op == "placeholder" and not node.users and node is not next(iter(graph.nodes)):
            graph.erase_node(node)
    network = Network(traced.module, graph, None, dict(traced.names), class_name=class_name, template=work)
    network.seen = seen
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    made: dict[int, tuple[nn.Module, str]] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":
            target, module = str(node.target), modules[str(node.target)]
            if target in traced.opaque:
                if target not in network.opaque:
                    network.opaque.add(target)
                    why = traced.opaque[target]
                    network.notes.append(
                        f"{target} cannot be traced, so each layer in it is quantized by itself: {why}"
                    )
                    _take_inner(network, target, module, seen)
            elif is_layer(module):
                why = why_not(module) or seen.why(module)
                if not why and len(node.args) != 1:
                    why = "its input is not its one positional argument"
                # A layer that is called twice is two layers with one weight: their inputs have grids of their own.
                again = id(module) in made
                if not again:
                    made[id(module)] = (module if why else plain(module, network.made_of), why)
                name = target if not again else _another(target, network)
                layer, before = made[id(module)]
                network.layers[node] = Layer(name, layer, why or before, mask_of(module))
            else:
                _keep_inner(network, target, module)
        elif (function := _from_function(node, traced.module, network)) is not None:
            network.layers[node] = function
            node.op, node.target, node.args, node.kwargs = "call_module", function.name, (node.args[0],), {}
    _fold(network, modules, calls, meta, pinned)
    kinds = {n: kind_of(n, meta, modules, network.layers) for n in graph.nodes}
    network.values = Values(kinds, meta, pinned)
    return network


def _another(name: str, network: Network) -> str:
    taken = {layer.name for layer in network.layers.values()}
    n = 1
    while f"{name}_{n}" in taken:
        n += 1
    return f"{name}_{n}"


def _from_function(node: fx.Node, root: fx.GraphModule, network: Network) -> Layer | None:
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
    if weight.dim() != made.weight.dim() or not weight.is_floating_point():
        return None

    def parameter(t: Tensor) -> nn.Parameter:
        new = nn.Parameter(t.detach().clone(), t.requires_grad)
        return network.made_of.setdefault(id(t), new) if isinstance(t, nn.Parameter) else new

    made.weight = parameter(weight)
    made.bias = None if bias is None else parameter(cast(Tensor, tensor(bias)))
    made.eval()
    if why_not(made):
        return None
    node.args = (x,)
    return Layer(network.names[node], made)


def _fold(
    network: Network, modules: dict[str, nn.Module], calls: Counter[str], meta: dict[fx.Node, Meta],
    pinned: set[fx.Node],
) -> None:  # fmt: skip
    assert network.graph is not None
    shared = Counter(id(p) for layer in network.layers.values() for p in layer.module.parameters(recurse=False))
    elsewhere = Counter(id(p) for _, p in network.template.named_parameters(remove_duplicate=False))
    elsewhere += Counter(holders_of(network.template))
    tied = {id(new) for original, new in network.made_of.items() if elsewhere[original] > 1}
    for node in list(network.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        source, norm = node.args[0], modules.get(str(node.target))
        if not isinstance(source, fx.Node) or source not in network.layers or norm is None or len(source.users) != 1:
            continue
        layer = network.layers[source]
        if layer.why or source in pinned or not isinstance(layer.module, nn.Conv2d | nn.Linear):
            continue
        if any(shared[id(p)] > 1 or id(p) in tied for p in layer.module.parameters(recurse=False)):
            continue  # it is called again, or its weight is another layer's too
        # Over [N, L, C] a BatchNorm1d's channel is not the linear layer's.
        of_rows = isinstance(layer.module, nn.Linear) and len(meta[source].shape or ()) != 2
        if of_rows or not foldable(norm, layer.module.weight.shape[0]):
            continue
        fold_norm(layer.module, norm)  # type: ignore[arg-type]
        network.folded.append(str(node.target))
        node.replace_all_uses_with(source)
        network.graph.erase_node(node)
        meta.pop(node, None)


def _take_inner(network: Network, path: str, module: nn.Module, seen: Seen) -> None:
    """The layers inside a module that stays one; BatchNorm is folded where a Sequential was seen to run the two."""
    for inner in every_module(module).values():
        if type(inner) is nn.Sequential:
            _fold_sequence(inner, seen)
    for name, inner in every_module(module).items():
        where = ".".join(part for part in (path, name) if part)
        if not is_layer(inner) or any(where.startswith(f"{outer}.") for outer in network.inner):
            continue  # a MultiheadAttention's own projection
        why = why_not(inner) or seen.why(inner)
        network.sources[where] = inner
        network.inner[where] = Layer(where, inner if why else plain(inner, network.made_of), why, mask_of(inner))


def _keep_inner(network: Network, path: str, module: nn.Module) -> None:
    """torch's modules that compute with their layers' weights by themselves: such layers stay, and are reported."""
    for name, inner in module.named_modules():
        if is_layer(inner) and not any(f"{path}.{name}".startswith(f"{outer}.") for outer in network.inner):
            why = f"{type(module).__name__} computes with its weights by itself"
            network.inner[f"{path}.{name}"] = Layer(f"{path}.{name}", inner, why)


def _fold_sequence(sequence: nn.Sequential, seen: Seen) -> None:
    """Conv2d or Linear, then BatchNorm, as neighbours, each with no other user that could be seen."""
    names = list(sequence._modules)
    for first, second in itertools.pairwise(names):
        layer, norm = sequence._modules[first], sequence._modules[second]
        if layer is None or norm is None or not is_layer(layer) or why_not(layer) or seen.why(layer):
            continue
        if seen.parents.get(layer) != {sequence} or seen.parents.get(norm) != {sequence}:
            continue  # called one by one: whoever does so may look at what is between them
        if list(sequence).count(layer) > 1 or list(sequence).count(norm) > 1 or seen.tied(layer):
            continue
        if isinstance(norm, nn.BatchNorm1d) != isinstance(layer, nn.Linear):
            continue
        new = plain(layer)
        if foldable(norm, new.weight.shape[0]):
            fold_norm(new, norm)  # type: ignore[arg-type]
            if (mask := mask_of(layer)) is not None:
                attach(new, "weight", mask)
            sequence._modules[first], sequence._modules[second] = new, nn.Identity().eval()
