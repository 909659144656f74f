"""The calls: :func:`prune` zeroes weights in place, :func:`sparsity` counts the zeros that are there.

Nothing is written before every layer has been looked at, so an error leaves the model as it was; and Ctrl-C waits while
it is written, so that a model is pruned whole or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .. import masks, ops
from .._base.errors import Error
from .._base.signals import held_signals, keeps_grad_mode
from .._base.wrappers import unwrapped
from ..calibration.normalization import normalization_layers, write
from ..masks.buffers import tell_written
from ..masks.optimizer_hooks import clear_state
from ..masks.weights import Entry, take_over
from ..report import WEIGHT_COLUMNS, Report
from .counting import row_of, total_of
from .criteria import Criterion
from .decide import decide, needless_data
from .gpu import zeros_save_nothing
from .outcome import Pruned, outcome
from .targets import Override, assign_criteria
from .verdict import Verdict, bias_of


def prune(
    model: nn.Module,
    criterion: Criterion,
    *,
    pattern: str = "1x1",
    exclude: Iterable[Entry] | Entry = (),
    include: Iterable[Entry] | Entry = (),
    overrides: Mapping[Any, Override] | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    data: Iterable[Any] | None = None,
    inputs: int = 1,
    progress: bool = True,
) -> Report:
    """Zero weights of ``model`` in place, and keep them zero through whatever fine-tuning follows.

    Pruned are the weights of Linear, Conv1d-3d and ConvTranspose1d-3d (grouped and depthwise too), RNN, LSTM and GRU
    (and their cells) and MultiheadAttention; never biases; Embedding only by ``include``. A neuron is one output unit:
    dim 0 of the weight, dim 1 within a group of a transposed convolution, a row of an LSTM's weight, a token's vector
    in an embedding. Pruning again takes its statistics from the survivors (what no mask has pruned).

    Each pruned parameter stays a plain Parameter with zeros in it; its module gets a mask ``<name>_mask`` (one bit a
    weight, in the state_dict too), which is re-applied after each step of any ``torch.optim`` optimizer
    (:mod:`secateur.masks`). Compiled parts of the model take the new weights at their next call.

    In distributed training every process prunes alike, before DistributedDataParallel, FullyShardedDataParallel or
    ``fully_shard`` wraps the model, or one prunes and :func:`secateur.masks.broadcast` tells the others.

    Args:
        model: any module, a bare layer included, also within torch.compile, DataParallel or DistributedDataParallel.
        criterion: :class:`MeanStd`, :class:`Magnitude`, :class:`Random`, :class:`Wanda`, :class:`OptimalBrain` or
            another :class:`secateur.Criterion`.
        pattern: ``"1x1"`` zeros anywhere; ``"1xN"``, such as ``"1x4"``, blocks of N consecutive input channels at one
            kernel tap; ``"neuron"`` whole output units (their biases stay). ``"N:M"``, such as ``"2:4"``: the best N of
            M consecutive input channels (of a group) at one kernel tap stay; of a shorter last run as many. Sparse
            tensor cores multiply ``"2:4"`` (:func:`secateur.verify`). The criterion's ``sparsity`` must be 1 - N/M, its
            scope not ``"global"``.
        exclude: layers to leave alone, by name (of a layer, a weight, or a module around it), glob pattern or type.
        include: layers to prune that are left out by default (embeddings), named alike.
        overrides: another criterion, pattern (``"1x4"``), ``(criterion, pattern)`` or None (leave alone) for some
            layers. A name counts more than a glob pattern, that more than a type; among equals the last counts.
        optimizer: the optimizer that goes on training the model, or several that share its parameters: their momentum
            of pruned weights is zeroed.
        data: batches of inputs, for a criterion that needs to know the inputs of its layers: tensors; tuples or lists
            whose first ``inputs`` values are the model's arguments; or dicts of its keyword arguments. Copies of the
            model see them, in evaluation mode: once for :class:`Wanda`, again and again for :class:`OptimalBrain` (of
            an iterator's batches up to 1 GiB are kept).
        inputs: how many values of a tuple the model takes.
        progress: show a progress bar while copies of the model are run.

    Returns:
        A report, one row a weight: layer, shape, weights, zeros, theta over the neurons, bytes dense and packed.

    Raises:
        Error: a bad argument, an entry that names no layer, a layer that cannot hold a mask, weights that are NaN or
            infinite, a criterion whose decision does not fit. The model is then exactly as it was.

    Warns:
        UserWarning: optimizers that hold none of the pruned weights, a rule that prunes nothing, a layer emptied whole,
            data that no criterion needs, a share of zeros not reached, a tied weight, a layer that cannot be pruned,
            MultiheadAttention's ``out_proj``. The report's notes repeat it.
    """
    report, said = prune_quietly(
        model, criterion, pattern, exclude, include, overrides, optimizer, data, inputs, progress
    )
    for text in said:
        warnings.warn(f"prune: {text}", UserWarning, stacklevel=2)
    return report


@keeps_grad_mode
def prune_quietly(
    model: nn.Module,
    criterion: Criterion,
    pattern: str,
    exclude: Iterable[Entry] | Entry,
    include: Iterable[Entry] | Entry,
    overrides: Mapping[Any, Override] | None,
    optimizer: Optimizer | Iterable[Optimizer] | None,
    data: Iterable[Any] | None = None,
    inputs: int = 1,
    progress: bool = False,
    partly: bool = False,
) -> tuple[Report, list[str]]:
    """:func:`prune`, with its warnings returned instead of issued; ``partly`` on a schedule's way to the last share."""
    optimizers = check_optimizers(optimizer)
    targets, said, notes = assign_criteria(model, criterion, pattern, exclude, include, overrides, partly)
    said += needless_data(targets, data)
    with torch.no_grad():
        decided = decide(model, targets, data, inputs, progress)
        norms = normalization_layers(unwrapped(model))
        with held_signals(repeated=True):  # from here on no mistake of the caller's can raise
            pruned = [_write(verdict) for verdict in decided.verdicts]
            for name, statistics in decided.statistics.items():
                write(norms[name], statistics)
            said += _clear(optimizers, pruned)
            tell_written(model)
    said += outcome(pruned)
    notes += [note for one in pruned for note in one.notes] + decided.notes
    notes += zeros_save_nothing((one.target.weight.value, one.target.pattern) for one in pruned)
    rows = [row_of(one.target.weight, one) for one in pruned]
    return Report(
        f"prune: {criterion!r}, pattern {pattern}", WEIGHT_COLUMNS, rows, [*said, *notes], total_of(rows)
    ), said


def check_optimizers(optimizer: Any, caller: str = "prune") -> list[Optimizer]:
    """``optimizer=`` as a list."""
    if optimizer is None:
        return []
    many = isinstance(optimizer, Iterable) and not isinstance(optimizer, str | Mapping)
    given = list(optimizer) if many else [optimizer]
    if not all(isinstance(each, Optimizer) for each in given):
        raise Error(f"{caller}: optimizer must be a torch.optim.Optimizer or a list of them, got {optimizer!r:.80}")
    return given


def _write(verdict: Verdict) -> Pruned:
    """Write what was decided, give the weight its mask, count."""
    target, weight, notes = verdict.target, verdict.target.weight, list(verdict.notes)
    if weight.foreign is not None:
        take_over(weight)
        notes.append(f"{target.label}: took over the mask of torch.nn.utils.prune and removed its hook")
    value = weight.value
    if verdict.fused is not None:
        mask, theta, k = verdict.fused(value.detach())
    else:
        assert verdict.mask is not None
        mask, theta, k = verdict.mask, verdict.theta, verdict.k
        if verdict.values is not None:
            value.detach().copy_(verdict.values)
        ops.mask_apply_(value.detach(), mask)
    if verdict.bias is not None:
        bias = bias_of(weight)
        assert bias is not None
        bias.detach().copy_(verdict.bias)
    for module, parameter in weight.places:
        masks.attach(module, parameter, mask, _summary(theta), fresh=True)
    zeros = int((value == 0).sum())
    return Pruned(target, mask, zeros, verdict.gone, verdict.step, k, tuple(notes))


def _summary(theta: Tensor | None) -> masks.Theta | None:
    """Min, mean and max of theta over the neurons that have one (those with nothing left have none)."""
    if theta is None:
        return None
    known = theta[torch.isfinite(theta)].to(torch.float64)
    if known.numel() == 0:
        return None
    return float(known.min()), float(known.mean()), float(known.max())


def _clear(optimizers: Sequence[Optimizer], pruned: Sequence[Pruned]) -> list[str]:
    """Zero what the optimizers remember of the pruned weights, which may be spread over them."""
    pairs = [
        (held, one.mask)
        for one in pruned
        for module, parameter in one.target.weight.places
        if (held := module._parameters[parameter]) is not None
    ]
    hits = [clear_state(optimizer, pairs) for optimizer in optimizers]
    if not hits or any(hits):
        return []
    kinds = " and ".join(sorted({f"{'a' if len(hits) == 1 else 'several'} {type(o).__name__}" for o in optimizers}))
    return [f"optimizer= was given {kinds} that {'holds' if len(hits) == 1 else 'hold'} none of the pruned weights"]
