"""The call :func:`restore`: the weights that a pruned network has left, solved again for what a dense one does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .. import masks, ops
from .._base.checks import names_of
from .._base.errors import Error
from .._base.signals import held_signals, keeps_grad_mode
from .._base.trial import trial
from .._base.wrappers import unwrapped
from ..calibration.calls import Calls
from ..calibration.columns import problem_of as why_unknown
from ..calibration.recalibrate import recalibrate
from ..calibration.walk import Walk
from ..calibration.working import working_copy
from ..masks.buffers import tell_written
from ..masks.weights import Weight, take_over, weights_of
from ..reconstruction.problem import problem
from ..reconstruction.survivors import solved
from ..report import Column, Report
from .criteria import Inputs
from .criteria.optimal_brain import bias_for, moments_of
from .sites import Site, batch_norms, in_order, solvable, take_again
from .verdict import bias_of

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("shape", "shape", "shape"),
    Column("weights", "weights", "count"),
    Column("sparsity", "zeros %", "percent"),
    Column("error_before", "error before", "number"),
    Column("error_after", "after", "number"),
)


@keeps_grad_mode
def restore(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Any],
    *,
    inputs: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Solve the weights that a pruned model has left again, for what ``dense`` computes; in place, without labels.

    Each layer with zeros, in the order of the calls, gets the weights and the bias of least squared distance from what
    the same layer of ``dense`` computes, given what the layers before it give by now. Zeros stay where they are,
    whether a mask of this package or of torch.nn.utils.prune holds them or nothing does; layers without zeros do not
    change. At the end :func:`recalibrate` sets normalization statistics and the moments of other layers.

    Args:
        model: changed in place; it is never run, its copies are.
        dense: the network before it was pruned: layers of the same names and shapes; only read.
        batches: tensors; tuples or lists whose first ``inputs`` values are the model's arguments; or dicts of its
            keyword arguments. A thousand images are enough; of an iterator's batches up to 1 GiB are kept.
        inputs: how many values of a tuple the model takes.
        seed: of the positions that are sampled (131,072 a layer).
        progress: show a progress bar.

    Returns:
        A report, one row a layer that was solved: layer, shape, weights, sparsity, and the squared error of its output
        as a share of what the layer gives in ``dense``, with the old weights (``error_before``) and the new ones
        (``error_after``).

    Raises:
        Error: no layer with zeros, a ``dense`` of other layers, no batch, batches that the model does not take, NaN or
            Inf, a layer with zeros that the batches never reach. The model is then as it was.

    Sources:
        Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022; He et al., "Channel Pruning for Accelerating
        Very Deep Neural Networks", ICCV 2017 (least squares on what the dense network computes).
    """
    own = {weight.key: weight for weight in weights_of(model, "restore")}
    if not isinstance(dense, nn.Module):
        raise Error(f"restore: dense must be a torch.nn.Module, got {type(dense).__name__}")
    chosen, left_out = _with_zeros(own.values())
    if not chosen:
        raise Error(f"restore: model must have a layer with zeros that can be solved, got none{left_out}")
    copies = [working_copy(model, "restore"), working_copy(dense, "restore", "dense")]
    calls = Calls(batches, "restore: batches", copies[0], inputs, again=True)
    rows: list[dict[str, Any]] = []
    solutions: list[tuple[str, Tensor, Tensor | None]] = []
    with torch.no_grad(), trial(copies[0]), trial(copies[1]):
        sites = _sites(chosen, copies, seed)
        walk = Walk(copies, calls)
        norms = batch_norms(copies[0])
        order = in_order(sites, walk, norms)
        for step in tqdm(order, desc="restoring layers", disable=not progress, leave=False):
            if isinstance(step, str):
                take_again(step, norms[step], walk)
                continue
            known = step.inputs(walk, "restore")
            with solvable(step, calls.caller):
                row, value, bias = _solve(step, known)
            _put(step.twins[0], value, bias)
            rows.append(row)
            solutions.append((step.weight.key, value, bias))
    after = working_copy(model, "restore")
    with torch.no_grad():
        found = {weight.key: weight for weight in weights_of(after, "restore")}
        for key, value, bias in solutions:
            _put(found[key], value, bias)
    set_again = recalibrate(after, calls.batches, dense, inputs=inputs, progress=progress)
    _copy_changes(after, unwrapped(model))
    notes = [f"recalibrate set {len(set_again)} layers", *set_again.notes, *walk.notes]
    notes += [site.note for site in sites if site.note]
    return Report("restore", COLUMNS, rows, notes + ([left_out.removeprefix(": ")] if left_out else []))


def _with_zeros(weights: Iterable[Weight]) -> tuple[list[Weight], str]:
    """The weights with zeros that can be solved, and why others cannot."""
    chosen, not_solved = [], []
    for weight in weights:
        if weight.problem is not None or not weight.default or not bool((weight.value == 0).any()):
            continue
        if not bool(torch.isfinite(weight.value).all()):
            raise Error(f"restore: {weight.label} must hold finite weights, got NaN or Inf")
        why = why_unknown(weight.module, weight.parameter)
        if why:
            not_solved.append(f"{weight.label} ({why})")
        else:
            chosen.append(weight)
    return chosen, f": not solved: {names_of(not_solved)}" if not_solved else ""


def _sites(chosen: Sequence[Weight], copies: Sequence[nn.Module], seed: int) -> list[Site]:
    twins = [{weight.key: weight for weight in weights_of(each, "restore")} for each in copies]
    for weight in (w for found in twins for w in found.values() if w.foreign is not None):
        take_over(weight)
    sites = []
    for weight in chosen:
        other = twins[1].get(weight.key)
        if other is None or other.value.shape != weight.value.shape:
            got = "none" if other is None else f"{list(other.value.shape)}"
            raise Error(f"restore: dense must have model's layers, {weight.key} {list(weight.value.shape)}, got {got}")
        sites.append(Site(weight, [twins[0][weight.key], other], seed))
    return sites


def _solve(site: Site, known: Inputs) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    """The row, the new weight (in its shape, float64) and bias of a layer."""
    pruned, dense = site.twins
    layout = site.weight.layout
    shape = layout.neurons(pruned.value).shape
    old, wanted = (known.rows(layout.neurons(each.value.detach()).to(torch.float64)) for each in site.twins)
    keep = old != 0
    mask = masks.get_mask(site.weight.module, site.weight.parameter)
    if mask is not None:  # a survivor that is zero by chance may live again
        alive = ops.mask_unpack(mask.to(old.device), pruned.value.shape)
        keep = known.rows(layout.neurons(alive))
    task = problem(wanted, *moments_of(known), keep)
    new = solved(task, keep)
    reference = max(task.reference, 1e-300)
    row = {
        "layer": site.weight.label,
        "shape": tuple(pruned.value.shape),
        "weights": keep.numel(),
        "zeros": int((~keep).sum()),
        "sparsity": float((~keep).double().mean()),
        "error_before": task.error(old) / reference,
        "error_after": task.error(new) / reference,
    }
    bias = None
    held, other = bias_of(pruned), bias_of(dense)
    if held is not None and known.free_mean:
        start = torch.zeros_like(held) if other is None else other
        bias = bias_for(start.detach(), wanted, new, known)
    stored = layout.stored(known.neurons(new, shape), pruned.value.shape)
    if not bool(torch.isfinite(stored.to(pruned.value.dtype)).all()):
        raise Error(f"restore: new weights of {site.weight.label} must be finite in its type, got NaN or Inf")
    return row, stored, bias


def _put(weight: Weight, value: Tensor, bias: Tensor | None) -> None:
    name = weight.parameter if weight.foreign is None else weight.parameter + "_orig"
    stored = weight.module._parameters[name]
    assert stored is not None
    stored.detach().copy_(value)
    if bias is not None:
        weight.module._parameters["bias"].detach().copy_(bias)  # type: ignore[union-attr]


def _copy_changes(source: nn.Module, model: nn.Module) -> None:
    """Write what differs in ``source``, a copy of ``model``, into ``model``."""
    made = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    with torch.no_grad(), held_signals(repeated=True):
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            if not torch.equal(t, made[name]):
                t.detach().copy_(made[name])
        tell_written(model)
