"""Prune activations: a ReLU's output below its channel's threshold becomes zero.

Definition (the source tutorial's rule, per channel j of a ReLU's output a, over calibration data)::

    theta_j = mean(a_j) - k * std(a_j), never below 0;   at inference  a <- 0 if a < theta_j else a

which at inference is FATReLU (Kurtz et al., ICML 2020) with a threshold per channel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .._base.errors import Error
from .._base.evaluator import Evaluator, checked_budget
from .._base.wrappers import unwrapped
from ..pruning.criteria import Criterion
from ..report import Column, Report
from .search import search
from .threshold_sites import Placed, place
from .thresholds import (
    Chosen,
    Granularity,
    Over,
    checked,
    counting,
    family_of,
    groups,
    makes_thresholds,
    prunes_nothing,
)

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("channels", "channels", "count"),
    Column("zeros_before", "zeros % before", "percent"),
    Column("sparsity", "after", "percent"),
    Column("theta_min", "theta min", "number"),
    Column("theta_mean", "mean", "number"),
    Column("theta_max", "max", "number"),
    Column("clamped", "clamped at 0", "count"),
)


def prune_activations(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Criterion | type[Criterion] | None = None,
    *,
    over: Over = "all",
    granularity: Granularity | None = None,
    max_accuracy_drop: float | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> nn.Module:
    """A new model in which every ReLU is a :class:`secateur.nn.ThresholdReLU`, calibrated on ``batches``.

    The given model is left as it is, its mode and its BatchNorm statistics included. All layers are calibrated together
    in one pass, in evaluation mode, on the network without thresholds (existing ``ThresholdReLU`` count as ReLU and are
    calibrated anew). Found and replaced: ``nn.ReLU``, ``nn.ReLU6``, ``F.relu``, ``torch.relu``, ``Tensor.relu``, their
    in-place forms, and ``F.relu6``; a module that is called at several places gets a threshold for each. A module whose
    own forward computes functional ReLUs is traced and becomes a ``torch.fx.GraphModule`` of the same name, with the
    same children, parameters and buffers; every other module keeps its class. The result trains, copies, pickles.

    With ``max_accuracy_drop`` the thresholds are searched for: first each layer alone, at five shares of zeros above
    its own (until it alone costs more than the budget), then all layers together, by bisection in the order of what
    a zero of each costs in accuracy, and by raising one layer at a time. Steps are logged
    (``logging.getLogger("secateur")``, level INFO) and kept in the report. With L layers, ``evaluate`` is called at
    most 7 L + 15 times; choose its data accordingly, and none that is to judge the result at the end.

    Args:
        model: any module.
        batches: an iterable of inputs, or of ``(input, target)`` tuples or lists whose first item is the input; inputs
            are moved to the model's device. It is gone through once, so a generator is fine.
        criterion: ``MeanStd(k=...)``; ``MeanStd(sparsity=...)``, which solves k for each layer so that its zeros (those
            that ReLU makes by itself included) reach that fraction; ``Magnitude(sparsity=...)``, which keeps the
            largest. Under ``max_accuracy_drop`` it says only how a threshold is made, the numbers are searched for:
            ``MeanStd`` (the default), ``Magnitude``, or an object of theirs.
        over: of which values of a ReLU's output ``MeanStd`` takes mean and std, and ``Magnitude`` takes its fraction:
            ``"all"``, or the ``"positive"`` ones only.
        granularity: who shares a threshold. ``"channel"``: each channel has its own (the default of ``MeanStd``; with
            ``Magnitude`` every channel reaches the fraction by itself). ``"layer"``: one for each layer (the default of
            ``Magnitude``). ``"scalar"``: one for the whole network, from the statistics and zeros of all its values
            together (the same as ``Magnitude``'s ``scope="global"``).
        max_accuracy_drop: how much accuracy the thresholds may cost, 0 to 1 (0.005 is half a point), against the given
            model. The returned model keeps to it as ``evaluate`` sees it, whose last call is for that model.
        evaluate: given a model in evaluation mode, on the device of ``model``, returns its accuracy, 0 to 1. Called
            without gradients: with a copy of ``model``, then each time with one other, whose thresholds change.
        exclude: names or patterns (``*``) of ReLUs to leave alone, as the report prints them.
        progress: show a progress bar.

    Returns:
        The new model; ``.report`` has a row for each layer: channels, zeros before and after on the calibration data,
        the thresholds, and how many of them had to be clamped at 0. Solved thresholds and the zeros after are counted
        from a histogram with logarithmic bins (at most 1/32 of a value wide, interpolated); the notes state the most
        that this can be off by. After a search it also has ``.sensitivity`` (see
        :func:`secateur.activation_sensitivity`), ``.steps``, ``.accuracy`` and ``.baseline``.

    Raises:
        Error: no ReLU was found, no batch came, a batch is no tensor or not what the model takes, an activation is NaN
            or infinite, an ``exclude`` that matches nothing, a criterion of another kind, ``granularity`` that is not
            ``"scalar"`` with ``scope="global"``; one of ``max_accuracy_drop`` and ``evaluate`` without the other,
            ``evaluate`` that returns no number from 0 to 1.
    """
    caller = "prune_activations"
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    searching = max_accuracy_drop is not None or evaluate is not None
    if searching:
        allowed, judge = checked_budget(caller, max_accuracy_drop), Evaluator(caller, evaluate)
        family = family_of(caller, criterion)
    elif isinstance(criterion, type) or not makes_thresholds(criterion):
        named = criterion is None or makes_thresholds(criterion)
        hint = "; without its numbers, only under max_accuracy_drop" if named else ""
        raise Error(f"{caller}: criterion must be MeanStd or Magnitude, got {criterion!r}{hint}")
    over, shared = checked(caller, criterion, over, granularity)
    placed = place(model, batches, exclude, progress, caller)
    parts = groups(placed.sites, over, shared)
    if searching:
        found = search(model, placed, parts, family, judge, allowed, progress)
        chosen = found.chosen
    else:
        assert isinstance(criterion, Criterion)
        chosen = {name: layer for part in parts.values() for name, layer in part.apply(criterion).items()}
        idle = [name for name, s in placed.sites.items() if prunes_nothing(s, chosen[name].theta)]
        if idle:
            placed.to_warn.append(f"{criterion} prunes nothing in {', '.join(idle)}: ReLU's own zeros are all there is")
    placed.set({name: layer.theta for name, layer in chosen.items()})
    _restore(unwrapped(model), placed.model)
    report = _report(placed, chosen, f"activations: {criterion}")
    if searching:
        report = found.report(report)
    placed.model.report = report  # type: ignore[assignment]
    for text in placed.to_warn:
        warnings.warn(f"{caller}: {text}", UserWarning, stacklevel=2)
    return placed.model


def _restore(given: nn.Module, made: nn.Module) -> None:
    """Parameters that the forward has written in a trial run; through ``data`` that is seen by nobody else."""
    values = dict(given.named_parameters())
    for name, p in made.named_parameters():
        known = values.get(name)
        if known is not None and known.layout == torch.strided and not torch.equal(p, known):
            p.data.copy_(known)


def _report(placed: Placed, chosen: Mapping[str, Chosen], title: str) -> Report:
    rows: list[dict[str, Any]] = []
    sums = {"before": 0.0, "after": 0.0, "off": 0.0}
    values = 0
    for path, s in placed.sites.items():
        theta = chosen[path].theta
        before, _ = s.zeros_below(torch.zeros_like(s.mean))
        after, off = s.zeros_below(counting(s, theta))
        rows.append(
            {
                "layer": path,
                "channels": s.channels,
                "values": s.total,
                "zeros_before": before / s.total,
                "sparsity": after / s.total,
                "sparsity_error": off / s.total,
                "k": chosen[path].k,
                "theta_min": float(theta.min()),
                "theta_mean": float(theta.mean()),
                "theta_max": float(theta.max()),
                "clamped": chosen[path].clamped,
            }
        )
        sums = {"before": sums["before"] + before, "after": sums["after"] + after, "off": sums["off"] + off}
        values += s.total
    notes = list(placed.to_warn)
    every = sum(layer.clamped for layer in chosen.values())
    if every:
        notes.append(f"{every} of the thresholds came out negative and became 0: those channels are plain ReLU")
    if values:
        notes.append(
            "zeros after are counted on the network without thresholds, from a histogram: "
            f"at most {100 * sums['off'] / values:.2g} points off"
        )
    total = {
        "layer": "total",
        "channels": sum(s.channels for s in placed.sites.values()),
        "values": values,
        "zeros_before": sums["before"] / values if values else None,
        "sparsity": sums["after"] / values if values else None,
        "clamped": every,
    }
    return Report(title, COLUMNS, rows, notes, total)
