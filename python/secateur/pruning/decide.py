"""Decides for every weight; writes nothing.

A criterion's answer is checked and stored (a packed mask, new values in the weight's own type), so that writing cannot
fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import masks, ops
from .._base.errors import Error
from ..calibration.calls import Calls
from ..masks.weights import Weight
from ..ops.packing import mask_shape
from . import inputs
from .criteria import Criterion, Decision, Inputs, WeightView
from .criteria.base import Written, share_of
from .criteria.patterns import ANYWHERE, SemiStructured
from .sequence import Decided, decide_in_sequence
from .targets import Target, by_criterion
from .verdict import Verdict, bias_of


def decide(
    model: nn.Module, targets: Sequence[Target], data: Any, inputs_given: int = 1, progress: bool = False
) -> Decided:
    """Decide for every weight, pool by pool; then for those whose layers see what is left of the others.

    Args:
        model: never run; its copies are, on ``data`` where a criterion needs it. targets: weights and their criteria.
        inputs_given: how many values of a tuple the model takes.
    """
    check_data(targets, data)
    for target in targets:
        _check_finite(target)
    calls = None
    last = [t for t in targets if t.criterion.needs == "hessian"]
    if any(t.criterion.needs is not None for t in targets):
        again = bool(last)
        calls = Calls(data, "prune: data", model, inputs_given, again=again)
    first = [t for t in targets if t.criterion.needs != "hessian"]
    known = _inputs(model, first, calls, progress)
    verdicts: dict[int, Verdict] = {}
    # Single weights first, one at a time, so that only one layer's scores are in memory.
    pools = [[t] for t in first if not t.pooled] + by_criterion(t for t in first if t.pooled)
    for pool in pools:
        for target, verdict in zip(pool, _decide_pool(pool, known), strict=True):
            verdicts[id(target)] = verdict
    made = Decided()
    if last:
        assert calls is not None
        made = decide_in_sequence(model, last, list(verdicts.values()), calls, _known_view, _decide_one, progress)
        verdicts |= {id(verdict.target): verdict for verdict in made.verdicts}
    return replace(made, verdicts=[verdicts[id(target)] for target in targets])


def check_data(targets: Sequence[Target], data: Any) -> None:
    """An Error for data that is missing, or layers whose inputs cannot be known."""
    asking = [t for t in targets if t.criterion.needs is not None]
    if asking and data is None:
        what = {"norms": "norms", "gram": "Gram matrices", "hessian": "second moments"}[str(asking[0].criterion.needs)]
        raise Error(
            f"prune: data must be batches of inputs for {asking[0].criterion!r}, which needs the {what} of its layers' "
            "inputs, got None"
        )
    inputs.check([t.weight for t in asking], [str(t.criterion.needs) for t in asking])


def needless_data(targets: Sequence[Target], data: Any) -> list[str]:
    """A warning for data that no criterion needs."""
    if data is None or any(t.criterion.needs is not None for t in targets):
        return []
    criteria = ", ".join(repr(pool[0].criterion) for pool in by_criterion(targets))
    return [f"data was not looked at: {criteria} needs no inputs"]


def _check_finite(target: Target) -> None:
    value = target.weight.value
    # Through a sum first: one pass without a bool tensor (NaN and Inf survive it; a finite sum may still overflow).
    if not bool(torch.isfinite(value.sum(dtype=torch.float64))) and not bool(torch.isfinite(value).all()):
        raise Error(f"prune: {target.label} must hold finite weights, got {_first_bad(value)}")


def _first_bad(value: Tensor) -> str:
    bad = (~torch.isfinite(value)).nonzero()
    where = [int(i) for i in bad[0]]
    return f"{float(value[tuple(where)])} at {where} ({len(bad)} such)"


def _inputs(model: nn.Module, targets: Sequence[Target], calls: Calls | None, progress: bool) -> dict[int, Inputs]:
    asking = [t for t in targets if t.criterion.needs is not None]
    if not asking:
        return {}
    assert calls is not None
    weights = [t.weight for t in asking]
    needs = [str(t.criterion.needs) for t in asking]
    found = inputs.collect(model, weights, needs, calls, progress)
    return {id(target): one for target, one in zip(asking, found, strict=True)}


@dataclass(frozen=True)
class _Look:
    """A weight's state before it is pruned."""

    alive: Tensor | None  # bool, the weight's shape; None: every weight lives
    gone: int
    notes: tuple[str, ...] = ()


def _look(target: Target) -> _Look:
    value, criterion = target.weight.value, target.criterion
    alive = _alive(target.weight)
    if alive is not None:
        return _Look(alive, value.numel() - int(alive.sum()))
    zeros = int((value == 0).sum())
    if not zeros:
        return _Look(None, 0)
    if not criterion.zeros_count_in:
        # A share of zeros counts all zeros, whatever made them.
        return _Look(value != 0, zeros)
    note = (
        f"{target.label} held {zeros:,} zeros without a mask: they count as weights in {criterion.zeros_count_in} "
        "(secateur.masks.adopt makes them count as pruned)"
    )
    return _Look(None, zeros, (note,))


def _alive(weight: Weight) -> Tensor | None:
    """The weights that earlier pruning left, by our mask or torch.nn.utils.prune's; None where there was none."""
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


def _decide_pool(pool: Sequence[Target], known: dict[int, Inputs]) -> list[Verdict]:
    """One call of the criterion, and its answer checked."""
    looks = [_look(target) for target in pool]
    criterion = pool[0].criterion
    if (fused := _fused(pool, looks)) is not None:
        (target,), (look,) = pool, looks
        return [Verdict(target, look.gone, 1, look.notes, fused=fused)]
    views = [_view(target, look, known.get(id(target))) for target, look in zip(pool, looks, strict=True)]
    answer = criterion.decide(views)
    _check_answer(criterion, answer, len(pool))
    return [_checked(*each) for each in zip(pool, looks, views, answer, strict=True)]


def _check_answer(criterion: Criterion, answer: Any, count: int) -> None:
    if not isinstance(answer, list | tuple) or not all(isinstance(one, Decision) for one in answer):
        raise Error(f"prune: {criterion!r} must return a list of Decisions, got {answer!r:.80}")
    if len(answer) != count:
        raise Error(f"prune: {criterion!r} must return one Decision a weight, got {len(answer)} for {count}")


def _fused(pool: Sequence[Target], looks: Sequence[_Look]) -> Callable[[Tensor], Written] | None:
    target = pool[0]
    if target.pooled or looks[0].alive is not None or target.pattern != ANYWHERE or target.weight.layout.groups:
        return None
    order = type(target.criterion).__mro__
    by = {name: next(i for i, one in enumerate(order) if name in vars(one)) for name in ("decide", "fused")}
    return target.criterion.fused() if by["fused"] <= by["decide"] else None


def _known_view(target: Target, known: Inputs) -> WeightView:
    return _view(target, _look(target), known)


def _decide_one(target: Target, criterion: Criterion, view: WeightView) -> Verdict:
    """One weight, by a criterion that may be another than its target's."""
    answer = criterion.decide([view])
    _check_answer(criterion, answer, 1)
    return _checked(target, _look(target), view, answer[0])


def _view(target: Target, look: _Look, known: Inputs | None) -> WeightView:
    weight = target.weight
    return WeightView(
        weight.key, weight.value, look.alive, weight.layout, target.pattern, bias_of(weight), known, weight.label
    )


def _checked(target: Target, look: _Look, view: WeightView, decision: Decision) -> Verdict:
    """The decision, stored so that it can be written; an Error for one that cannot."""
    weight = target.weight
    keep = _keep(target, view, decision.keep, look.alive is not None)
    _check_runs(target, keep)
    values = bias = None
    if decision.weight is not None:
        values = _numbers(target, "new weights", decision.weight, view.shape, weight.value.dtype)
        if bool((values != 0).logical_and_(~keep).any()):
            raise _bad(target, "new weights must be 0 where keep is False or a weight was pruned before, got others")
        values = weight.layout.stored(values, weight.value.shape)
    if decision.bias is not None:
        held = bias_of(weight)
        if held is None:
            raise _bad(target, "a new bias needs a layer with a bias of its own, which this one has not")
        bias = _numbers(target, "a new bias", decision.bias, held.shape, held.dtype)
    mask = ops.mask_pack(weight.layout.stored(keep, weight.value.shape))
    theta = None if decision.theta is None else _theta(target, decision.theta)
    if not isinstance(decision.k, float | int | None):
        raise _bad(target, f"k must be a number or None, got {decision.k!r:.80}")
    # Where rows are decided one by one, each rounds its share.
    step = view.largest * (view.shape[0] if target.criterion.scope == "row" else 1)
    return Verdict(target, look.gone, step, look.notes, mask, theta, decision.k, values, bias)


def _keep(target: Target, view: WeightView, keep: Any, masked: bool) -> Tensor:
    if not isinstance(keep, Tensor):
        raise _bad(target, f"keep must be a bool tensor {list(view.shape)}, got {type(keep).__name__}")
    if keep.dtype != torch.bool or keep.shape != view.shape:
        raise _bad(target, f"keep must be bool {list(view.shape)}, got {_form(keep)}")
    own: Tensor = keep.to(target.weight.value.device)
    return own & view.alive if masked else own


def _check_runs(target: Target, keep: Tensor) -> None:
    """Whoever ranks without drop_lowest may have forgotten the limit of "N:M"."""
    pattern, share = target.pattern, share_of(target.criterion)
    if not isinstance(pattern, SemiStructured) or share is None or not pattern.reached_by(share):
        return
    broken = pattern.broken(keep)
    if bool(broken.any()):
        where = f"{int(broken.sum()):,} of {broken.numel():,} runs (secateur.pruning.drop_lowest knows patterns)"
        rule = f'keep must leave at most {pattern.keep} of {pattern.run} input channels for pattern "{pattern}"'
        raise _bad(target, f"{rule}, but leaves more in {where}")


def _numbers(target: Target, what: str, values: Any, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """``values`` in the parameter's own type."""
    if not isinstance(values, Tensor):
        raise _bad(target, f"{what} must be a float tensor {list(shape)}, got {type(values).__name__}")
    if not values.dtype.is_floating_point or values.shape != shape:
        raise _bad(target, f"{what} must be float {list(shape)}, got {_form(values)}")
    own = values.detach().to(target.weight.value.device, dtype)
    if not bool(torch.isfinite(own).all()):
        raise _bad(target, f"{what} must be finite in {str(dtype).removeprefix('torch.')}, got {_first_bad(own)}")
    return own


def _theta(target: Target, theta: Any) -> Tensor:
    try:
        known: Tensor = torch.as_tensor(theta).detach().to(torch.float64)
        return known.reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise _bad(target, f"theta must be a number or a tensor of numbers, got {type(theta).__name__}") from None


def _form(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"


def _bad(target: Target, rule: str) -> Error:
    return Error(f"prune: {target.criterion!r} for {target.label}: {rule}")
