"""Weights on a walk through copies of a network: where each one is called, and what is known of its inputs there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._base.errors import Error
from ..calibration.columns import groups_of
from ..calibration.hessian import InputMoments, Sampler, add_uses
from ..calibration.normalization import Pooled, Statistics, write
from ..calibration.walk import Walk
from ..masks.weights import Weight
from .criteria import Inputs
from .inputs import parts_of, width_of
from .verdict import bias_of


@dataclass(eq=False)
class Site:
    """A weight of the caller's model, and what it is in the copies that are walked through."""

    weight: Weight
    twins: list[Weight]
    seed: int = 0  # of the positions that are sampled
    run: int = 1  # of channels, which no part of a wide layer should cut

    @property
    def names(self) -> list[str]:
        """The modules that hold the weight."""
        return [each.module_name for each in (self.weight, *self.weight.aliases)]

    @property
    def note(self) -> str:
        """What the report should say of it; empty: nothing."""
        parts = parts_of(self.weight, self.run)
        if parts == 1:
            return ""
        width = width_of(self.weight)
        return f"{self.weight.label} is solved in {parts} parts of its {width:,} inputs (H in diagonal blocks)"

    def inputs(self, walk: Walk, caller: str, twins: Sequence[Weight] = ()) -> Inputs:
        """Sums over the layer's inputs in the networks of ``twins`` (all); with two, how those go together."""
        weight, twins = self.weight, twins or self.twins
        parts = parts_of(weight, self.run)
        groups, width = max(groups_of(weight.module, weight.parameter), parts), width_of(weight) // parts
        into = InputMoments(groups, width, weight.value.device, len(twins) > 1)
        sampler = Sampler(self.seed, weight.label, walk.calls.count)
        for batch, uses in enumerate(walk.uses(list(dict.fromkeys(self.names)))):
            choices = [[sampler.choice(batch, i, len(uses[0])) for i in range(len(uses[0]))] for _ in twins]
            add_uses(into, [twin.places for twin in twins], uses, choices, weight.label, caller)
        if into.count == 0:
            raise Error(f"{walk.calls.caller} must reach {weight.label}, but the model gives it no positions")
        sums, products = into.sums(), into.products()
        if not all(bool(torch.isfinite(each).all()) for each in products):
            raise Error(f"{walk.calls.caller} must give {weight.label} finite inputs, got NaN or Inf")
        free = bias_of(weight) is not None or (len(weight.places) == 1 and weight.module_name in walk.normalized)
        squares = products[0].diagonal(dim1=1, dim2=2)
        other, cross = (sums[1], products[1]) if len(twins) > 1 else (None, None)
        return Inputs(into.count, sums[0], squares, products[0], other, cross, free, parts)


def in_order(sites: Sequence[Site], walk: Walk, norms: Iterable[str]) -> list[Site | str]:
    """Sites, and names of normalization layers, in the order of their first calls; an Error for sites not called."""
    of = {name for site in sites for name in site.names}
    found: list[Site | str] = []
    for name in walk.begin([*dict.fromkeys(name for site in sites for name in site.names), *norms]):
        # A module may hold several weights (an LSTM), and a weight may be in several modules.
        found += [site for site in sites if name in site.names and site not in found] if name in of else [name]
    for site in sites:
        if site not in found:
            raise Error(
                f"{walk.calls.caller} must reach {site.weight.label}, but the model never calls it with an input "
                "(exclude it)"
            )
    return found


@contextmanager
def solvable(site: Site, caller: str) -> Iterator[None]:
    """An Error where a layer's matrix cannot be factored for all its damping."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise Error(
            f"{caller} must give {site.weight.label} inputs whose second moments float64 can tell apart: {error}"
        ) from error


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def take_again(name: str, layer: _BatchNorm, walk: Walk) -> Statistics:
    """The statistics of a BatchNorm layer of the walk's first network, on what comes to it now; written into it."""
    pooled = Pooled()
    for uses in walk.uses([name]):
        for use in uses[0]:
            pooled.add(use.args[0] if use.args else use.kwargs["input"])
    made = pooled.statistics()
    write(layer, made)
    return made
