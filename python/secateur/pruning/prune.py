"""The calls: :func:`prune` zeroes weights in place, :func:`sparsity` counts the zeros that are there.

Nothing is written before every layer has been looked at, so an error leaves the model as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .. import masks, ops
from .._base.checks import names_of
from .._base.errors import Error
from ..masks.optimizer_hooks import clear_state
from ..masks.weights import Entry, Weight, take_over
from ..ops.packing import mask_shape
from ..report import WEIGHT_COLUMNS, Report
from . import patterns
from .counting import row_of, total_of
from .criteria import Criterion, Decision, Field, Magnitude, MeanStd, Random, decide
from .patterns import Pattern
from .targets import Override, Task, plan


def prune(
    model: nn.Module,
    criterion: Criterion,
    *,
    pattern: str = "1x1",
    exclude: Iterable[Entry] | Entry = (),
    include: Iterable[Entry] | Entry = (),
    overrides: Mapping[Any, Override] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Report:
    """Zero weights of ``model`` in place, and keep them zero through whatever fine-tuning follows.

    Pruned are the weights of Linear, Conv1d-3d and ConvTranspose1d-3d (grouped and depthwise too), RNN, LSTM and GRU
    (and their cells) and MultiheadAttention; never biases; Embedding only by ``include``. A neuron is one output unit:
    dim 0 of the weight, dim 1 within a group of a transposed convolution, a row of an LSTM's weight, a token's vector
    in an embedding. Pruning again takes its statistics from the survivors (what no mask has pruned).

    Each pruned parameter stays a plain Parameter with zeros in it; its module gets a buffer ``<name>_mask`` (one bit a
    weight), which is re-applied after each step of any ``torch.optim`` optimizer (:mod:`secateur.masks`).

    In distributed training every process prunes alike, before DistributedDataParallel, FullyShardedDataParallel or
    ``fully_shard`` wraps the model, or one prunes and :func:`secateur.masks.broadcast` tells the others.

    Args:
        model: any module, a bare layer included.
        criterion: :class:`MeanStd`, :class:`Magnitude` or :class:`Random`.
        pattern: ``"1x1"`` zeros anywhere; ``"1xN"``, such as ``"1x4"``, blocks of N consecutive input channels at one
            kernel tap; ``"neuron"`` whole output units (their biases stay).
        exclude: layers to leave alone, by name (of a layer, a weight, or a module around it), glob pattern or type.
        include: layers to prune that are left out by default (embeddings), named alike.
        overrides: another criterion, pattern (``"1x4"``), ``(criterion, pattern)`` or None (leave alone) for some
            layers. A name counts more than a glob pattern, that more than a type; among equals the last counts.
        optimizer: the optimizer (or several) that goes on training the model: its momentum of pruned weights is zeroed.

    Returns:
        A report, one row a weight: layer, shape, weights, zeros, theta over the neurons, bytes dense and packed.

    Raises:
        Error: a bad argument, an entry that names no layer, a layer that cannot hold a mask, weights that are NaN or
            infinite. The model is then exactly as it was.

    Warns:
        UserWarning: a rule that prunes nothing, a layer emptied whole, a share of zeros not reached, a tied weight, a
            layer that cannot be pruned, MultiheadAttention's ``out_proj``. The report's notes repeat it.
    """
    report, said = prune_quietly(model, criterion, pattern, exclude, include, overrides, optimizer)
    for text in said:
        warnings.warn(f"prune: {text}", UserWarning, stacklevel=2)
    return report


def prune_quietly(
    model: nn.Module,
    criterion: Criterion,
    pattern: str,
    exclude: Iterable[Entry] | Entry,
    include: Iterable[Entry] | Entry,
    overrides: Mapping[Any, Override] | None,
    optimizer: Optimizer | Sequence[Optimizer] | None,
) -> tuple[Report, list[str]]:
    """:func:`prune`, with what is to be warned about returned instead."""
    optimizers = _check_optimizers(optimizer)
    tasks, said, notes = plan(model, criterion, pattern, exclude, include, overrides)
    with torch.no_grad():
        _decide(tasks)
        for task in tasks:  # from here on nothing that the caller did can fail
            _write(task)
        said += _clear(optimizers, tasks)
    said += _outcome(tasks)
    notes += [note for task in tasks for note in task.notes]
    rows = [row_of(task.weight, task) for task in tasks]
    return Report(
        f"prune: {criterion!r}, pattern {pattern}", WEIGHT_COLUMNS, rows, [*said, *notes], total_of(rows)
    ), said


def _check_optimizers(optimizer: Any) -> list[Optimizer]:
    if optimizer is None:
        return []
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not all(isinstance(each, Optimizer) for each in given):
        raise Error(f"prune: optimizer must be a torch.optim.Optimizer or a list of them, got {optimizer!r:.80}")
    return given


def _decide(tasks: list[Task]) -> None:
    """Look at every weight and fill in the tasks' masks; the fused tasks' come with the writing."""
    fields: dict[int, Field] = {}
    pools: dict[Any, list[Task]] = {}
    for task in tasks:
        value = task.weight.value
        # Through a sum first: one pass without a bool tensor (NaN and Inf survive it; a finite sum may still overflow).
        if not bool(torch.isfinite(value.sum(dtype=torch.float64))) and not bool(torch.isfinite(value).all()):
            raise Error(f"prune: {task.label} must hold finite weights, got {_first_bad(value)}")
        rule = task.rule
        task.alive = _alive(task.weight)
        task.gone = 0 if task.alive is None else value.numel() - int(task.alive.sum())
        if isinstance(rule, MeanStd) and rule.k is not None:
            task.fused = task.alive is None and task.pattern.block == 1 and not task.weight.layout.groups
            zeros = 0 if task.alive is not None else int((value == 0).sum())
            if zeros:
                task.gone = zeros
                task.notes.append(
                    f"{task.label} held {zeros:,} zeros without a mask: they count as weights in its mean and std "
                    "(secateur.masks.adopt makes them count as pruned)"
                )
            if task.fused:
                continue
        elif task.alive is None and bool((value == 0).any()):
            # A share of zeros means zeros of the total, whoever made them.
            task.alive = value != 0
            task.gone = value.numel() - int(task.alive.sum())
        whole = isinstance(rule, Random) and rule.unit == "neuron"
        if whole:
            task.pattern = Pattern(0)
        signed = isinstance(rule, MeanStd) and rule.of == "signed"
        fields[id(task)] = patterns.field(
            value, task.alive, task.weight.layout, task.pattern, signed=signed, precise=isinstance(rule, MeanStd)
        )
        task.step = fields[id(task)].largest
        pooled = isinstance(rule, Magnitude) and rule.scope == "global"
        if pooled:
            pools.setdefault(rule, []).append(task)
        else:  # decide now, so that only one layer's scores are in memory
            _settle([task], decide([fields.pop(id(task))], [task.weight.key], rule))
    for rule, pool in pools.items():
        _settle(pool, decide([fields.pop(id(t)) for t in pool], [t.weight.key for t in pool], rule))


def _settle(tasks: Sequence[Task], decisions: Sequence[Decision]) -> None:
    for task, decision in zip(tasks, decisions, strict=True):
        shape = task.weight.value.shape
        keep = patterns.keep_weights(decision.keep, task.alive, shape, task.weight.layout, task.pattern)
        task.mask = ops.mask_pack(keep)
        task.theta, task.k = decision.theta, decision.k


def _first_bad(value: Tensor) -> str:
    bad = (~torch.isfinite(value)).nonzero()
    where = [int(i) for i in bad[0]]
    return f"{float(value[tuple(where)])} at {where} ({len(bad)} such)"


def _alive(weight: Weight) -> Tensor | None:
    """What earlier pruning left, by our mask or torch.nn.utils.prune's; None where there was none."""
    if weight.foreign is not None:
        return weight.foreign.to(torch.bool)
    mask = masks.get_mask(weight.module, weight.parameter)
    if mask is None:
        return None
    value = weight.value
    fitting = mask_shape(value.shape)
    if tuple(mask.shape) != fitting:
        raise Error(
            f"prune: the mask of {weight.label} must be {list(fitting)} to fit its weight "
            f"{list(value.shape)}, got {list(mask.shape)}"
        )
    return ops.mask_unpack(mask.to(value.device), value.shape)


def _write(task: Task) -> None:
    """Zero the weight, give it its mask, count."""
    weight = task.weight
    if weight.foreign is not None:
        take_over(weight)
        task.notes.append(f"{task.label}: took over the mask of torch.nn.utils.prune and removed its hook")
    value = weight.value
    if task.fused:
        rule = task.rule
        assert isinstance(rule, MeanStd)
        assert rule.k is not None
        task.k = rule.k
        task.mask, task.theta = ops.statistics_threshold_(value.detach(), rule.k, rule.of == "signed")
    else:
        assert task.mask is not None
        ops.mask_apply_(value.detach(), task.mask)
    theta = _summary(task.theta)
    for module, parameter in weight.places:
        masks.attach(module, parameter, task.mask, theta, fresh=True)
    task.zeros = int((value == 0).sum())


def _summary(theta: Tensor | None) -> masks.Theta | None:
    """Min, mean and max of theta over the neurons that have one (those with nothing left have none)."""
    if theta is None:
        return None
    known = theta[torch.isfinite(theta)].to(torch.float64)
    if known.numel() == 0:
        return None
    return float(known.min()), float(known.mean()), float(known.max())


def _clear(optimizers: Sequence[Optimizer], tasks: Sequence[Task]) -> list[str]:
    said = []
    for optimizer in optimizers:
        pairs = [
            (held, task.mask)
            for task in tasks
            for module, parameter in task.weight.places
            if task.mask is not None and (held := module._parameters[parameter]) is not None
        ]
        if not clear_state(optimizer, pairs):
            said.append(f"optimizer= was given a {type(optimizer).__name__} that holds none of the pruned weights")
    return said


def _outcome(tasks: Sequence[Task]) -> list[str]:
    """What must not go unsaid about the result."""
    said = []
    nothing = [t for t in tasks if t.zeros <= t.gone and not _pooled(t)]
    for rule in dict.fromkeys(t.rule for t in nothing):
        names = [t.label for t in nothing if t.rule == rule]
        if isinstance(rule, MeanStd) and rule.k is not None:
            why = "no weight lies below theta = mean - k * std (a lower k prunes more; sparsity= solves k for you)"
        elif all(t.gone >= round((rule.sparsity or 0) * t.weight.value.numel()) for t in nothing if t.rule == rule):
            why = "that many zeros are there already"
        else:
            why = "its weights tie, or each neuron's are all alike (std 0), which keeps them"
        said.append(f"{rule!r} pruned nothing in {names_of(names)}: {why}")
    pools: dict[Any, list[Task]] = {}
    for task in tasks:
        if _pooled(task):
            pools.setdefault(task.rule, []).append(task)
    for rule, pool in pools.items():
        if all(t.zeros <= t.gone for t in pool):
            said.append(f"{rule!r} pruned nothing: that many zeros are there already")
    empty = [t.label for t in tasks if t.zeros == t.weight.value.numel()]
    if empty:
        said.append(f"no weight is left in {names_of(empty)}: emptied whole, its output is its bias alone")
    missed = []
    for task in tasks:
        share, total = task.rule.sparsity, task.weight.value.numel()
        if share is None or _pooled(task) or task.label in empty:
            continue
        if task.zeros > task.gone and abs(task.zeros - round(share * total)) > task.step:
            missed.append(f"{task.label} has {100 * task.zeros / total:.1f} %, not {100 * share:.1f} %")
    if missed:
        said.append(f"{names_of(missed)}: weights that tie, or neurons of equal weights, go or stay together")
    return said


def _pooled(task: Task) -> bool:
    return isinstance(task.rule, Magnitude) and task.rule.scope == "global"
