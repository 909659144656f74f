"""A calibrated network with int8 layers: decides which values become bytes, and places the modules.

The caller makes the layers (frozen ones, or ones that train), so both networks are the same graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._base.copies import own_copy
from .._base.refused_hooks import CALL_HOOKS
from ..graph.own_forward import Arguments
from ..graph.rewritten import as_graph_module
from ..masks import attach, strip
from ..nn import Quantize, ThresholdReLU
from .calibrate import Calibrated, attribute, put_between
from .grids import Grid, Method
from .layers import Layer
from .network import Network
from .places import Values
from .shells import shells

#: makes the module of a layer, given the grid of its input, and the copies that are made already (as for deepcopy)
MakeLayer = Callable[[Layer, Grid, dict[int, Any]], nn.Module]


@dataclass
class Built:
    model: nn.Module
    made: dict[str, nn.Module] = field(default_factory=dict)  # the layers in int8, by name
    why: dict[str, str] = field(default_factory=dict)  # of the layers in fp32
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # parameters that the forward writes; their values

    def restore(self) -> None:
        """After a trial run."""
        for p, values in self.kept:
            p.data.copy_(values)


def build(
    calibrated: Calibrated, method: Method, fp32: Mapping[str, str], make_layer: MakeLayer, masked: bool = False
) -> Built:
    """The network with every layer in int8 but those that ``fp32`` names (name -> why). ``masked``: layers in fp32
    keep their masks, for training."""
    network = calibrated.network
    why = {name: layer.why or fp32.get(name, "") for name, layer in network.all_layers.items()}
    for name, observer in calibrated.inner.items():
        if not why[name] and not observer.seen:
            why[name] = "the batches never reach it"
    built = Built(nn.Identity(), why={name: reason for name, reason in why.items() if reason})
    memo: dict[int, Any] = {}  # replacements of the layers inside modules that stay modules
    used = {id(p) for layer in network.all_layers.values() for p in layer.module.parameters(recurse=False)}
    for original, new in network.made_of.items():
        if id(new) in used:  # not folded: whatever else holds the parameter goes on sharing it
            memo[original] = copy.deepcopy(new, memo)
    for name, layer in network.inner.items():
        old = network.sources.get(name)
        if old is None:
            continue
        if name not in built.why:
            memo[id(old)] = built.made[name] = make_layer(layer, calibrated.inner[name].grid(method), memo)
        elif not layer.why:
            memo[id(old)] = _real(layer, memo, masked)
    if network.graph is None or network.values is None:
        for p, _ in network.seen.kept:
            memo.setdefault(id(p), copy.deepcopy(p, memo))
        built.model = own_copy(network.root, "quantize", memo)
    else:
        built.model = _with_graph(calibrated, network.graph, network.values, method, make_layer, masked, memo, built)
    built.kept = [(memo[id(p)], values) for p, values in network.seen.kept if id(p) in memo]
    if not masked:
        strip(built.model)
    for module in built.model.modules():
        module.training = False
    return built


def _real(layer: Layer, memo: dict[int, Any], masked: bool) -> nn.Module:
    """A copy of a layer that stays in fp32."""
    module = copy.deepcopy(layer.module, memo)
    if masked and not layer.why and layer.mask is not None:
        attach(module, "weight", layer.mask.clone())
    return module


def _with_graph(
    calibrated: Calibrated, given: fx.Graph, values: Values, method: Method, make_layer: MakeLayer, masked: bool,
    memo: dict[int, Any], built: Built,
) -> nn.Module:  # fmt: skip
    network, grids = calibrated.network, calibrated.grids(method)
    int8 = {node for node, layer in network.layers.items() if layer.name not in built.why}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(given, copies))
    modules = dict(network.root.named_modules(remove_duplicate=False))
    held: dict[str, Any] = {}
    for node in given.nodes:
        if node in network.layers:
            layer = network.layers[node]
            copies[node].target = layer.name
            if node in int8:
                seen = calibrated.direct.get(node)
                grid = grids[values.roots(values.inputs[node][0])[0]] if seen is None else seen.grid(method)
                held[layer.name] = built.made[layer.name] = make_layer(layer, grid, memo)
            else:
                held[layer.name] = _real(layer, memo, masked)
            if str(node.target) != layer.name and isinstance(first := held.get(str(node.target)), nn.Module):
                _share_hooks(held[layer.name], first)
            if str(node.target) in modules:
                memo.setdefault(id(modules[str(node.target)]), held[layer.name])
        elif node.op == "call_module":
            held[str(node.target)] = copy.deepcopy(modules[str(node.target)], memo)
    for node in given.nodes:
        if node.op == "get_attr":
            held[str(node.target)] = copy.deepcopy(attribute(network.root, str(node.target)), memo)
    places = values.sites(int8)
    names = _names(network.names, places, {layer.name for layer in network.layers.values()} | set(modules))
    for node in places:
        at, name, grid = copies[node], names[node], grids[node]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        threshold = _threshold(module, values.meta[node].shape, grid)
        theta = None if threshold is None else torch.round(threshold / grid.scale).clamp(0, 255).to(torch.uint8)
        held[name] = Quantize(grid.scale, grid.zero_point, theta).to(calibrated.example.device)
        if theta is not None:
            at.target = name  # the thresholds are the Quantize's own
            continue
        with graph.inserting_after(at):
            rounded = graph.call_module(name, (at,))
        put_between(at, rounded)
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    graph.lint()
    top = shells(network, {name: held[name] for name in held if name in used}, memo)
    result = as_graph_module(top, graph, stock=True, arguments=_arguments(given, network))
    type(result).__name__ = network.class_name
    result.__dict__["_graphmodule_cls_name"] = network.class_name  # read when it is unpickled
    return result


def _share_hooks(module: nn.Module, first: nn.Module) -> None:
    """Another call of one layer: hooks are called at each."""
    for name in CALL_HOOKS:
        module.__dict__[name] = first.__dict__[name]


def _arguments(graph: fx.Graph, network: Network) -> Arguments:
    """What the graph takes. The model's own forward can take more where each layer that it calls is there once."""
    why = ""
    for node, layer in network.layers.items():
        if node.op != "call_module":
            why = f"{layer.name} is a function's, and its weights are an int8 layer's now"
        elif str(node.target) != layer.name:
            why = f"the calls of {node.target} are layers of their own"
    inputs = tuple(str(n.target) for n in graph.nodes if n.op == "placeholder")
    return Arguments("quantize", inputs, why, "without rounding between its layers")


def _threshold(module: nn.Module | None, shape: tuple[int, ...] | None, grid: Grid) -> Tensor | None:
    """The thresholds ``[C]`` of a ThresholdReLU that a byte can hold; None: it has to stay a layer of its own.

    It stays one if the value shares the grid of signed ones, or if a threshold lies above the largest byte.
    """
    if not isinstance(module, ThresholdReLU) or not shape or grid.zero_point != 0:
        return None
    channels = shape[1] if len(shape) > 2 else shape[-1]
    theta = module.theta.detach().expand(channels) if module.theta.numel() == 1 else module.theta.detach()
    return theta.clone() if bool((theta <= 255.5 * grid.scale).all()) else None


def _names(given: Mapping[fx.Node, str], places: Collection[fx.Node], taken: set[str]) -> dict[fx.Node, str]:
    """relu1 -> relu1_quantize: after what made the value, in the module that it belongs to."""
    result: dict[fx.Node, str] = {}
    used = set(taken)
    for node in places:
        wanted = name = f"{given.get(node, node.name)}_quantize"
        n = 0
        while name in used:
            n += 1
            name = f"{wanted}_{n}"
        used.add(name)
        result[node] = name
    return result
