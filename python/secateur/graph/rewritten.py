"""A module rewritten by torch.fx that stays what it was to its users: class, methods, attributes, hooks, containers."""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import fx, nn

from .in_place import InPlaceTracer
from .own_forward import Arguments, dispatching, takes_more

#: A module's own tables, which a graph's module takes over as they are.
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


class RewrittenModule(fx.GraphModule):
    """A GraphModule that keeps, through copies and pickles, its class name and what its graph doesn't mention."""

    #: The class whose methods it has; None: of none.
    original: type[nn.Module] | None = None
    #: Whether ``train``, ``load_state_dict`` and the like are torch's own, not those of ``original``.
    stock: bool = False

    def __init__(self, root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str = "GraphModule") -> None:
        for node in graph.nodes:
            if isinstance(node.type, str):  # "from __future__ import annotations": torch 2.13 can't pickle such a graph
                node.type = None
        super().__init__(root, graph, class_name)

    def recompile(self) -> Any:
        code = super().recompile()
        if self.__dict__.get("_arguments") is not None:
            kind: Any = type(self)
            kind.forward = dispatching(kind.forward, self.original)
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenModule:
        result = super().__deepcopy__(memo)
        assert isinstance(result, RewrittenModule)
        type(result).__name__ = type(self).__name__
        for key, value in vars(self).items():
            # Copied a second time from the memo: these very copies.
            if key not in vars(result) or _is_own(key):
                result.__dict__[key] = copy.deepcopy(value, memo)
        if "_arguments" in vars(result):
            result.recompile()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, imports) = super().__reduce__()
        body = {**body, "_tracer_cls": InPlaceTracer}  # the code is traced again: what it does in place stays so
        kind = self.original if self.original is not None and _importable(self.original) else None
        return _unpickle, (body, imports, kind, self.stock)


class _Bare(nn.Module):
    """Stands between GraphModule and the original class, whose constructor wants arguments."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Bare:
        made: _Bare = object.__new__(cls)
        return made

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _kind(original: type[nn.Module] | None, stock: bool) -> type[RewrittenModule]:
    """The class of a module that was an ``original``: its methods and properties, with the graph's forward."""
    if original is None or original is nn.Module or issubclass(original, fx.GraphModule):
        return RewrittenModule
    body: dict[str, Any] = {"original": original, "stock": stock, "__module__": __name__}
    if stock:
        body |= {name: value for name, value in vars(nn.Module).items() if not name.startswith("__")}
    return type(original.__name__, (RewrittenModule, _Bare, original), body)


def why_not_graph(module: nn.Module) -> str:
    """Why a module cannot become one that runs a graph; empty: it can."""
    ours = {name for name in vars(fx.GraphModule) if not name.startswith("__")} | {"_graph", "_code", "meta"}
    if isinstance(module, fx.GraphModule):
        return ""
    theirs = {name for kind in type(module).__mro__ if issubclass(kind, nn.Module) for name in vars(kind)}
    theirs -= set(dir(nn.Module))
    clash = sorted(ours & (theirs | set(vars(module)) | set(module._modules) | set(module._parameters)))
    return f"its attribute {clash[0]} is a name that torch.fx uses itself" if clash else ""


def _importable(kind: type) -> bool:
    """Whether pickle finds a class by its name."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def _is_own(key: str) -> bool:
    return key in _TABLES or (key.startswith("_") and key.endswith(("_hooks", "_hooks_with_kwargs", "_always_called")))


def _unpickle(
    body: dict[str, Any], import_block: str, original: type[nn.Module] | None = None, stock: bool = False
) -> fx.GraphModule:
    plain = fx.graph_module.reduce_graph_module(body, import_block)
    assert isinstance(plain, fx.GraphModule)
    result = as_graph_module(plain, plain.graph, original, stock)
    for key, value in body.items():
        if _is_own(key) or key not in vars(result):
            result.__dict__[key] = value
    if "_arguments" in vars(result):
        result.recompile()
    return result


def as_graph_module(
    module: nn.Module,
    graph: fx.Graph,
    original: type[nn.Module] | None = None,
    stock: bool = False,
    arguments: Arguments | None = None,
) -> RewrittenModule:
    """The module with this graph for its forward; it shares its tables, attributes and hooks with ``module``.

    Args:
        module: what it was, with all that the graph mentions. original: whose methods it has, ``module``'s own class
            where that is None. stock: torch's own ``train``, ``load_state_dict`` and so on, for a module whose parts
            are no longer those that the original's would look for. arguments: what the graph was made for; None: it has
            every argument of the original's forward.
    """
    name = type(module).__name__
    if original is None:
        original = module.original if isinstance(module, RewrittenModule) else type(module)
    result = _kind(original, stock)(module, graph, class_name=name)
    # fx keeps what the graph mentions. A mask beside its weight, a child that only training uses, a plain attribute:
    # all of it belongs to the model, so take the module's own tables over as they are.
    for key, value in vars(module).items():
        if _is_own(key) or key not in vars(result):
            result.__dict__[key] = value
    result.__dict__["_graphmodule_cls_name"] = name  # read when it is unpickled
    plain = original is None or issubclass(original, fx.GraphModule)
    if arguments is not None and original is not None and not plain and takes_more(original, arguments.given):
        result.__dict__["_arguments"] = arguments
        result.recompile()
    return result
