"""Weights decided one by one, in the order in which the network calls their layers: each on what the ones before give.

Two copies of the model go side by side through the batches (:class:`~secateur.calibration.walk.Walk`): one is pruned as
the decisions are made, the other stays what the model was. The model itself is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .. import ops
from .._base.errors import Error
from .._base.trial import trial
from ..calibration.calls import Calls
from ..calibration.normalization import Statistics
from ..calibration.walk import Walk
from ..calibration.working import working_copy
from ..masks.weights import Weight, take_over, weights_of
from ..reconstruction.curves import Curve, allocated
from .criteria import Criterion, Inputs, WeightView
from .criteria.base import share_of
from .criteria.patterns import SemiStructured
from .sites import Site, batch_norms, in_order, solvable, take_again
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
        own = {id(t): t.criterion for t in targets}
        sites = {
            id(t): Site(
                t.weight,
                [found[t.weight.key] for found in twins],
                getattr(t.criterion, "seed", None) or 0,
                t.pattern.run if isinstance(t.pattern, SemiStructured) else 1,
            )
            for t in targets
        }
        pooled = [target for target in targets if target.pooled]
        if pooled:
            own |= _shared_out(pooled, _curves(pooled, sites, copies[1], calls, view, progress), sites)
        of = {id(sites[id(target)]): target for target in targets}
        walk = Walk(copies, calls)
        norms = batch_norms(copies[0])
        made = Decided()
        order = in_order(list(sites.values()), walk, norms)
        for step in tqdm(order, desc="pruning layers", disable=not progress, leave=False):
            if isinstance(step, str):
                if made.verdicts:  # what no pruned layer comes before is as it was
                    made.statistics[step] = take_again(step, norms[step], walk)
                continue
            target = of[id(step)]
            known = view(target, step.inputs(walk, "prune"))
            with solvable(step, calls.caller):
                verdict = decide(target, own[id(target)], known)
            _write(step.twins[0], verdict)
            made.verdicts.append(verdict)
    if made.statistics:
        count = len(made.statistics)
        made.notes.append(f"the statistics of {count} BatchNorm layers were taken again on the data, with the weights")
    made.notes += [site.note for site in sites.values() if site.note] + walk.notes
    return made


def _curves(
    targets: Sequence[Target],
    sites: dict[int, Site],
    network: nn.Module,
    calls: Calls,
    view: View,
    progress: bool,
) -> dict[int, Curve]:
    """Each layer's error at a ladder of zeros, on what the layers before it give as they are; by its target's id."""
    walk = Walk([network], calls)
    of = {id(sites[id(target)]): target for target in targets}
    found = {}
    order = in_order([sites[id(target)] for target in targets], walk, ())
    for site in tqdm(order, desc="measuring layers", disable=not progress, leave=False):
        assert isinstance(site, Site)
        target = of[id(site)]
        known = view(target, site.inputs(walk, "prune", site.twins[1:]))
        with solvable(site, calls.caller):
            found[id(target)] = target.criterion.curve(known)
    return found


def _shared_out(targets: Sequence[Target], curves: dict[int, Curve], sites: dict[int, Site]) -> dict[int, Criterion]:
    """The criterion for each target's own share of zeros."""
    found = {}
    for pool in by_criterion(targets):
        share = share_of(pool[0].criterion)
        if share is None:
            raise Error(f"prune: {pool[0].criterion!r} must have a sparsity for scope 'global'")
        gone = [float((sites[id(target)].twins[1].value == 0).double().mean()) for target in pool]
        shares = allocated([curves[id(target)] for target in pool], share, gone)
        for target, own in zip(pool, shares, strict=True):
            found[id(target)] = target.criterion.for_layer(own)
    return found


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
