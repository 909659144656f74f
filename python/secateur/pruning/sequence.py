"""Weights decided one by one, in the order in which the network calls their layers: each on what the ones before give.

Two copies of the model go side by side through the batches (:class:`~secateur.calibration.walk.Walk`): one is pruned as
the decisions are made, the other stays what the model was. The model itself is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .. import ops
from .._base.errors import Error
from .._base.trial import trial
from ..calibration.calls import Calls
from ..calibration.columns import groups_of
from ..calibration.hessian import InputMoments, Sampler, add_uses
from ..calibration.normalization import Pooled, Statistics, write
from ..calibration.walk import Walk
from ..calibration.working import working_copy
from ..masks.weights import Weight, take_over, weights_of
from ..reconstruction.curves import Curve, allocated
from .criteria import Criterion, Inputs, WeightView
from .criteria.base import share_of
from .inputs import width_of
from .targets import Target, by_criterion
from .verdict import Verdict, bias_of

#: What a criterion sees of a target whose layer's inputs are known.
View = Callable[[Target, Inputs], WeightView]
#: Decides for a target by a criterion: the target's own, or the one for the layer's own share of zeros.
Decide = Callable[[Target, Criterion, WeightView], Verdict]


@dataclass
class Decided:
    """Of the targets, in the order of the calls of their layers; and what else is to be written."""

    verdicts: list[Verdict] = field(default_factory=list)
    statistics: dict[str, Statistics] = field(default_factory=dict)  # of normalization layers, by name
    notes: list[str] = field(default_factory=list)


@dataclass
class _Layer:
    target: Target
    criterion: Criterion  # with the layer's own share
    twins: list[Weight]  # its weight in the copy that is pruned, and in the one that stays

    @property
    def names(self) -> list[str]:
        """The modules that hold the weight."""
        weight = self.target.weight
        return [each.module_name for each in (weight, *weight.aliases)]


def decide_in_sequence(
    model: nn.Module,
    targets: Sequence[Target],
    others: Sequence[Verdict],
    calls: Calls,
    view: View,
    decide: Decide,
    progress: bool,
) -> Decided:
    """Go through the network once (twice for scope "global") and decide for each target.

    Args:
        others: weights that other criteria prune: the network that is pruned has them so from the start.
    """
    with ExitStack() as stack:
        copies = [working_copy(model, "prune") for _ in range(2)]
        for each in copies:
            stack.enter_context(trial(each))
        twins = [{weight.key: weight for weight in weights_of(each)} for each in copies]
        for weight in (w for found in twins for w in found.values() if w.foreign is not None):
            take_over(weight)
        for verdict in others:
            _write(twins[0][verdict.target.weight.key], verdict)
        layers = [_Layer(t, t.criterion, [found[t.weight.key] for found in twins]) for t in targets]
        pooled = [layer for layer in layers if layer.target.pooled]
        if pooled:
            _share_out(pooled, _curves(pooled, copies[1], calls, view, progress))
        return _decide_all(layers, copies, calls, view, decide, progress)


def _curves(layers: Sequence[_Layer], network: nn.Module, calls: Calls, view: View, progress: bool) -> dict[int, Curve]:
    """Each layer's error at a ladder of zeros, on what the layers before it give as they are; by its target's id."""
    walk = Walk([network], calls)
    found = {}
    for layer in tqdm(_in_order(layers, walk, ()), desc="measuring layers", disable=not progress, leave=False):
        assert isinstance(layer, _Layer)
        inputs = _inputs(layer, walk, layer.twins[1:], calls)
        found[id(layer.target)] = layer.criterion.curve(view(layer.target, inputs))
    return found


def _share_out(layers: Sequence[_Layer], curves: dict[int, Curve]) -> None:
    """Give each layer the criterion for its own share of zeros."""
    for pool in by_criterion(layer.target for layer in layers):
        mine = [layer for layer in layers if any(layer.target is target for target in pool)]
        share = share_of(pool[0].criterion)
        if share is None:
            raise Error(f"prune: {pool[0].criterion!r} must have a sparsity for scope 'global'")
        gone = [float((layer.twins[1].value == 0).double().mean()) for layer in mine]
        shares = allocated([curves[id(layer.target)] for layer in mine], share, gone)
        for layer, own in zip(mine, shares, strict=True):
            layer.criterion = layer.criterion.for_layer(own)


def _decide_all(
    layers: Sequence[_Layer],
    copies: Sequence[nn.Module],
    calls: Calls,
    view: View,
    decide: Decide,
    progress: bool,
) -> Decided:
    walk = Walk(copies, calls)
    made = Decided()
    norms = {
        name: module
        for name, module in copies[0].named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    for step in tqdm(_in_order(layers, walk, norms), desc="pruning layers", disable=not progress, leave=False):
        if isinstance(step, str):
            if made.verdicts:  # what no pruned layer comes before is as it was
                pooled = Pooled()
                for uses in walk.uses([step]):
                    for use in uses[0]:
                        pooled.add(use.args[0] if use.args else use.kwargs["input"])
                made.statistics[step] = pooled.statistics()
                write(norms[step], made.statistics[step])
            continue
        verdict = decide(step.target, step.criterion, view(step.target, _inputs(step, walk, step.twins, calls)))
        _write(step.twins[0], verdict)
        made.verdicts.append(verdict)
    if made.statistics:
        made.notes.append(
            f"the statistics of {len(made.statistics)} BatchNorm layers were taken again with the weights, on the data"
        )
    made.notes += walk.notes
    return made


def _in_order(layers: Sequence[_Layer], walk: Walk, norms: Iterable[str]) -> list[_Layer | str]:
    """Layers, and names of normalization layers, in the order of their first calls; an Error for layers not called."""
    of = {name: layer for layer in layers for name in layer.names}
    found: list[_Layer | str] = []
    for name in walk.begin([*dict.fromkeys(of), *norms]):
        # A module may hold several weights (an LSTM), and a weight may be in several modules.
        here = [layer for layer in layers if name in layer.names and layer not in found]
        found += here if name in of else [name]
    for layer in layers:
        if layer not in found:
            raise Error(
                f"prune: data must reach {layer.target.label}, but the model never calls it with an input (exclude it)"
            )
    return found


def _inputs(layer: _Layer, walk: Walk, twins: Sequence[Weight], calls: Calls) -> Inputs:
    """The sums over a layer's inputs in the networks of ``twins``; with two of them, how those go together."""
    weight, label = layer.target.weight, layer.target.label
    groups, width = groups_of(weight.module, weight.parameter), width_of(weight)
    into = InputMoments.empty(groups, width, weight.value.device, len(twins) > 1)
    sampler = Sampler(getattr(layer.criterion, "seed", 0), label, calls.count)
    for batch, uses in enumerate(walk.uses(list(dict.fromkeys(layer.names)))):
        choices = [[sampler.choice(batch, i, len(uses[0])) for i in range(len(uses[0]))] for _ in twins]
        add_uses(into, [twin.places for twin in twins], uses, choices, label, "prune")
    if into.count == 0:
        raise Error(f"prune: data must reach {label}, but the model gives it no positions (exclude it)")
    if not bool(torch.isfinite(into.gram).all()):
        raise Error(f"prune: data must give {label} finite inputs, got NaN or Inf")
    free = bias_of(weight) is not None or (len(weight.places) == 1 and weight.module_name in walk.normalized)
    squares = into.gram.diagonal(dim1=1, dim2=2)
    return Inputs(into.count, into.sum, squares, into.gram, into.other, into.cross, free)


def _write(twin: Weight, verdict: Verdict) -> None:
    """Put a decision into the copy."""
    value = twin.value.detach()
    if verdict.fused is not None:
        verdict.fused(value)
        return
    assert verdict.mask is not None
    if verdict.values is not None:
        value.copy_(verdict.values)
    ops.mask_apply_(value, verdict.mask)
    if verdict.bias is not None:
        bias = bias_of(twin)
        assert bias is not None
        bias.detach().copy_(verdict.bias)
