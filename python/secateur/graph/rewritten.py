"""A module rewritten by torch.fx that keeps its class name and what its graph does not mention."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn


class RewrittenModule(fx.GraphModule):
    """A GraphModule that keeps, through copies and pickles, its class name and what its graph doesn't mention."""

    def __init__(self, root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str = "GraphModule") -> None:
        for node in graph.nodes:
            if isinstance(node.type, str):  # "from __future__ import annotations": torch 2.13 can't pickle such a graph
                node.type = None
        super().__init__(root, graph, class_name)

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenModule:
        result = super().__deepcopy__(memo)
        assert isinstance(result, RewrittenModule)
        type(result).__name__ = type(self).__name__
        for key, value in vars(self).items():
            if key not in vars(result):
                object.__setattr__(result, key, copy.deepcopy(value, memo))
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _unpickle, arguments


def _unpickle(body: dict[str, Any], import_block: str) -> fx.GraphModule:
    plain = fx.graph_module.reduce_graph_module(body, import_block)
    assert isinstance(plain, fx.GraphModule)
    return as_graph_module(plain, plain.graph)


def as_graph_module(module: nn.Module, graph: fx.Graph) -> RewrittenModule:
    name = type(module).__name__
    result = RewrittenModule(module, graph, class_name=name)
    # fx keeps what the graph mentions. A mask beside its weight, a child that only training uses, a plain attribute:
    # all of it belongs to the model, so take the module's own tables over as they are.
    for key, value in vars(module).items():
        if (
            key in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
            or (key.startswith("_") and key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")))
            or (not key.startswith("_") and not hasattr(result, key))
        ):
            object.__setattr__(result, key, value)
    result.__dict__["_graphmodule_cls_name"] = name  # read when it is unpickled
    return result
