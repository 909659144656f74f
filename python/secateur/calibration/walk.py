"""The way of all batches through a network, layer by layer, while the layers behind are being changed.

A network that can be traced is run operation by operation: what is alive before a layer is kept for all batches, and
the next layer's inputs are computed from there, so that the whole walk costs one run of the network. Where that takes
more memory than allowed, it is computed again from the last place that was kept. A network that cannot be traced is run
from its beginning for each layer.

Several networks of the same form go side by side (a pruned one, and the dense one that it came from).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from .._base.errors import Error
from ..graph.tracing import Untraceable, trace
from .calls import Call, Calls

#: Of activations so many bytes are kept.
KEPT_BYTES = 1 << 30

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Use:
    """One call of a layer: which of the names it was called by (an index), and with what."""

    place: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Reached(BaseException):
    """Ends a run at the last call that it is made for. No Exception: a model may catch those."""


@dataclass(frozen=True)
class _Span:
    """Where the calls of a layer are: nodes first to last."""

    first: int
    last: int


@dataclass
class Walk:
    """The way through ``models``.

    Args:
        models: ours, each within a trial; the first one is traced.
        calls: what they are called with; gone through again and again.
        kept_bytes: how much memory the values between layers may take, all batches together.
    """

    models: Sequence[nn.Module]
    calls: Calls
    kept_bytes: int = KEPT_BYTES
    notes: list[str] = field(default_factory=list)
    normalized: set[str] = field(default_factory=set)  # layers whose output goes straight into a BatchNorm

    def __post_init__(self) -> None:
        self._named = [dict(model.named_modules()) for model in self.models]
        for named in self._named[1:]:
            if named.keys() != self._named[0].keys():
                missing = sorted(named.keys() ^ self._named[0].keys())
                raise Error(
                    f"{self.calls.caller.partition(':')[0]}: dense must have model's layers, differs in {missing[0]}"
                )
        self._sizes: list[torch.Size] | None = None  # the only sizes that the graph holds for
        self._order: list[str] = []  # each call of any module of interest on the first batch
        self._nodes: list[fx.Node] = []
        self._roots: list[nn.Module] = list(self.models)
        self._dies: dict[int, list[fx.Node]] = {}
        self._at = 0  # nodes before this one have been computed in what is kept
        self._kept: list[list[Values]] | None = None

    def begin(self, names: Sequence[str]) -> list[str]:
        """Look at the first batch: the ``names`` of those layers that it reaches, in the order of their first calls."""
        first = next(iter(self.calls))
        seen: list[str] = []
        results: list[tuple[str, weakref.ref[Tensor]]] = []

        def enter(name: str, given: tuple[tuple[Any, ...], Mapping[str, Any]]) -> None:
            seen.append(name)
            if isinstance(self._named[0][name], _BatchNorm) and given[0]:
                self.normalized |= {before for before, result in results if result() is given[0][0]}

        def leave(module: nn.Module, args: Any, output: Any, name: str) -> None:
            if isinstance(output, Tensor):
                results.append((name, weakref.ref(output)))

        handles = [self._named[0][name].register_forward_hook(partial(leave, name=name)) for name in names]
        try:
            with _watched(self._named[0], {name: name for name in names}, enter):
                first.run(self.models[0])
        finally:
            for handle in handles:
                handle.remove()
        self._order = seen
        self._trace(first)
        return list(dict.fromkeys(seen))

    def _trace(self, first: Call) -> None:
        if first.kwargs:
            self.notes.append("arguments by name: the network is run from its beginning for each layer")
            return
        args = first.arguments()[0]
        sizes = {t.shape[0] for t in first.tensors() if t.dim()}
        small = [pytree.tree_map(lambda v: v[:2] if isinstance(v, Tensor) and v.dim() else v, a) for a in args]
        try:
            traced = trace(self.models[0], small if len(sizes) == 1 else args)
            if traced.batch_bound:
                raise Untraceable("its graph holds for one batch size alone")
        except Untraceable as why:
            self.notes.append(f"the network is run from its beginning for each layer: {why}")
            return
        self._sizes = [t.shape[1:] for t in first.tensors()] if traced.size_bound else None
        self._nodes = list(traced.graph.nodes)
        self._roots = [traced.module]
        for model in self.models[1:]:
            # Tensors that the forward makes are no attributes of the model: they hang on the traced one.
            root = nn.Module()
            root.__dict__.update({k: v for k, v in vars(traced.module).items() if k not in vars(model)})
            root._modules, root._parameters = model._modules, model._parameters
            root._buffers = {**traced.module._buffers, **model._buffers}
            self._roots.append(root)
        last: dict[fx.Node, int] = {}
        for i, node in enumerate(self._nodes):
            for read in node.all_input_nodes:
                last[read] = i
        for node, i in last.items():
            self._dies.setdefault(i, []).append(node)

    def uses(self, names: Sequence[str]) -> Iterator[list[list[Use]]]:
        """For each batch, for each model: the calls of the layers ``names`` (those that share one weight).

        Layers must be asked for in the order of their calls; the models may be changed between two of them, and so may
        the layers asked for, when their inputs have been seen.
        """
        expected = sum(name in names for name in self._order)
        keys = {name: place for place, name in enumerate(names)}
        where = self._find(names)
        if where is None:
            for call in self.calls:
                yield [self._seen(m, keys, expected, partial(call.run, self.models[m])) for m in self._each]
            return
        span = range(where.first, where.last + 1)
        for values in self._before(where.first):
            # What is kept must not be written by a run that is only a look ahead.
            ahead = [dict(each) if len(span) == 1 and expected == 1 else _copied(each) for each in values]
            yield [self._seen(m, keys, expected, partial(self._run, m, ahead[m], span)) for m in self._each]

    @property
    def _each(self) -> range:
        return range(len(self.models))

    def _seen(self, m: int, keys: Mapping[str, int], expected: int, run: Callable[[], Any]) -> list[Use]:
        seen: list[Use] = []

        def note(place: int, use: tuple[tuple[Any, ...], Mapping[str, Any]]) -> None:
            seen.append(Use(place, *use))
            if len(seen) >= expected:
                raise _Reached

        try:
            with _watched(self._named[m], keys, note):
                run()
        except _Reached:
            pass
        return seen

    def _find(self, names: Sequence[str]) -> _Span | None:
        """None: the graph does not call these layers, for there is none, or the network is itself the layer."""
        wanted = {id(self._named[0][name]) for name in names}
        places = [
            i
            for i, node in enumerate(self._nodes)
            if node.op == "call_module"
            and any(id(m) in wanted for m in self._roots[0].get_submodule(str(node.target)).modules())
        ]
        return _Span(places[0], places[-1]) if places else None

    def _before(self, place: int) -> Iterator[list[Values]]:
        """For each batch, the values that are alive before the node ``place``, of each model."""
        if place < self._at:  # an earlier layer again: from the beginning
            self._kept, self._at = None, 0
        kept: list[list[Values]] | None = None
        span = range(self._at, place)
        if self._kept is not None:
            if not span:
                yield from self._kept
                return
            for number, values in enumerate(self._kept):
                own = values if kept is not None else [_copied(each) for each in values]
                self._advance(own, span)
                if number == 0 and _bytes(own) * len(self._kept) <= self.kept_bytes:
                    kept = []
                if kept is not None:
                    kept.append(own)
                yield own
        else:
            for number, call in enumerate(self.calls):
                own = [self._start(call) for _ in self._each]
                self._advance(own, span, call)
                if number == 0 and self.calls.count and _bytes(own) * self.calls.count <= self.kept_bytes:
                    kept = []
                if kept is not None:
                    kept.append(own)
                yield own
        if kept is not None:
            self._kept, self._at = kept, place

    def _start(self, call: Call) -> Values:
        if self._sizes is not None and [t.shape[1:] for t in call.tensors()] != self._sizes:
            raise Error(f"{self.calls.caller} must be of one image size for this model, whose forward depends on it")
        args = call.arguments()[0]
        holders = [node for node in self._nodes if node.op == "placeholder"]
        given = args + [node.args[0] if node.args else None for node in holders[len(args) :]]
        return dict(zip(holders, given, strict=False))

    def _advance(self, values: list[Values], span: range, call: Call | None = None) -> None:
        try:
            for m in self._each:
                self._run(m, values[m], span)
        except Error:
            raise
        except Exception as error:
            if call is not None:
                raise call.refused(error) from error
            what = f"{type(error).__name__}: {error}"
            raise Error(f"{self.calls.caller} must be what the model takes: {what}") from error

    def _run(self, m: int, values: Values, span: range) -> None:
        """Compute the nodes of ``span``, and let go of what no later node reads."""
        root = self._roots[m]

        def value(node: fx.Node) -> Any:
            return _attribute(root, str(node.target)) if node.op == "get_attr" else values[node]

        for i in span:
            node = self._nodes[i]
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
            if node.op == "call_module":
                values[node] = root.get_submodule(str(node.target))(*args, **kwargs)
            elif node.op == "call_function":
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            del args, kwargs  # what is dead now goes at once
            for dead in self._dies.get(i, ()):
                values.pop(dead, None)
            if not node.users:
                values.pop(node, None)


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _copied(values: Values) -> Values:
    """Copies that share memory among themselves as the originals do."""
    return dict(zip(values, copy.deepcopy(list(values.values())), strict=True))


def _bytes(values: list[Values]) -> int:
    """The memory of all tensors, shared storage counted once."""
    leaves = pytree.tree_leaves([list(each.values()) for each in values])
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in leaves if isinstance(t, Tensor)}
    return sum(storages.values())


class _watched:
    """While open, ``seen(key, (args, kwargs))`` is called before each call of the modules named by ``keys``."""

    def __init__(
        self, named: Mapping[str, nn.Module], keys: Mapping[str, Any], seen: Callable[[Any, Any], None]
    ) -> None:
        self._hooks: list[Any] = []
        self._named, self._keys, self._seen = named, keys, seen

    def __enter__(self) -> None:
        for name, key in self._keys.items():

            def watch(module: nn.Module, args: Any, kwargs: Any, key: Any = key) -> None:
                self._seen(key, (args, kwargs))

            self._hooks.append(self._named[name].register_forward_pre_hook(watch, with_kwargs=True))

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()


__all__ = ["KEPT_BYTES", "Use", "Walk"]
