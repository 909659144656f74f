"""A threshold that writes over the output of the layer before it, where nobody else can see that output.

The page faults of another output take longer than the comparison. Whether somebody could see it is decided in each
call, by who makes the call: a hook may be hung on the layer at any time, and either module may be called by hand. So it
is the caller of both, a Sequential's forward or a graph's, that asks for it; the threshold itself stays as it was.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torchs

from .sparse_conv2d import SparseConv2d
from .sparse_linear import SparseLinear
from .threshold_relu import ThresholdReLU

# Their output is new memory, held nowhere else.
_MAKERS = (nn.Conv2d, nn.Linear, SparseConv2d, SparseLinear)


def _unseen(module: nn.Module) -> bool:
    """Whether nobody watches a module's calls."""
    held = module.__dict__
    return not (held["_forward_hooks"] or held["_forward_pre_hooks"] or "forward" in held)


def threshold_over(x: Tensor, threshold: nn.Module, maker: nn.Module) -> Any:
    """``threshold(x)`` for the output of ``maker``, which the caller hands on to nobody else: over it, where unseen."""
    if (
        type(x) is Tensor
        and type(threshold) is ThresholdReLU
        and type(maker) in _MAKERS
        and _unseen(threshold)
        and _unseen(maker)
        and not (torchs._global_forward_hooks or torchs._global_forward_pre_hooks)
        and not (x.requires_grad or torch.compiler.is_compiling())
    ):
        return threshold.over(x)
    return threshold(x)


class ChainSequential(nn.Sequential):
    """``nn.Sequential`` whose thresholds write over the outputs of the layers before them, where these are unseen."""

    def forward(self, input: Any) -> Any:
        before: nn.Module | None = None
        for module in self:
            if before is not None and type(module) is ThresholdReLU and type(before) in _MAKERS:
                input = threshold_over(input, module, before)
            else:
                input = module(input)
            before = module
        return input

    def _get_name(self) -> str:
        return "Sequential"


def chain_thresholds(model: nn.Module) -> None:
    """Ask for it wherever the order of the calls is known: in a Sequential, or in a traced graph. In place."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            _in_graph(module)
        elif type(module) is nn.Sequential and any(
            type(a) in _MAKERS and type(b) is ThresholdReLU for a, b in itertools.pairwise(module)
        ):
            module.__class__ = ChainSequential


def _in_graph(module: fx.GraphModule) -> None:
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            continue
        made = node.args[0]
        if made.op != "call_module" or len(made.users) != 1:
            continue
        threshold, maker = module.get_submodule(str(node.target)), module.get_submodule(str(made.target))
        if type(threshold) is not ThresholdReLU or type(maker) not in _MAKERS:
            continue
        with module.graph.inserting_before(node):
            held = [module.graph.create_node("get_attr", str(n.target)) for n in (node, made)]
        node.op, node.target, node.args = "call_function", threshold_over, (made, *held)
        changed = True
    if changed:
        module.recompile()


__all__ = ["ChainSequential", "chain_thresholds", "threshold_over"]
