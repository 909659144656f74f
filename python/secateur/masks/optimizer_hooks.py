"""Two global hooks around every ``torch.optim`` step, whatever the optimizer and whenever it was made.

After the step, one call of the operator for each device zeroes the pruned weights that it moved. Before it, an
optimizer that remembers weights from before their pruning is reported, once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .. import ops
from . import sharding
from .marks import apply_to, get_mask, mark_of, marked, mask_all, stored_mask, was_written

#: Optimizers that have been reported as stale.
_reported: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def clear_state(optimizer: Optimizer, pruned: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Zero what an optimizer remembers of pruned weights: momentum, averages, and the pending gradient.

    Args:
        optimizer: any ``torch.optim`` optimizer. pruned: (parameter, packed mask) pairs.

    Returns:
        How many of the parameters the optimizer holds. LBFGS's flat history mixes all weights: it is dropped whole.
    """
    held = _held(optimizer)
    hits = 0
    remembered: list[tuple[Tensor, Tensor]] = []
    for parameter, mask in pruned:
        if id(parameter) not in held:
            continue
        hits += 1
        if parameter.grad is not None and parameter.grad.layout == torch.strided:
            remembered.append((parameter.grad, mask))
        remembered += [(value, mask) for value in _elementwise(optimizer, parameter)]
    mask_all(remembered)
    if hits:
        for key in [key for key, state in optimizer.state.items() if "old_dirs" in state]:
            del optimizer.state[key]
    return hits


def _elementwise(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimizer's tensors that hold one value per weight of ``parameter``."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape and v.dim() > 0]


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not marked:
        return
    held = _held(optimizer)
    mine: list[tuple[nn.Module, str]] = []
    for module in tuple(marked):
        mark = mark_of(module)
        if mark is None:
            continue
        for parameter in mark.thetas:
            value = module._parameters.get(parameter)
            if value is not None and id(value) in held:
                mine.append((module, parameter))
            elif value is None and parameter not in mark.lost:
                mark.lost.add(parameter)
                warnings.warn(
                    f"secateur: the pruned {parameter!r} of a {type(module).__name__} is no parameter any more "
                    "(another library has replaced it): its mask is not applied after optimizer steps",
                    stacklevel=2,
                )
    apply_to(mine)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Look at masks that something else has written, while the weights still show whether they are right.

    Report a state older than the pruning, once for each optimizer: this is the earliest point where it is known.
    """
    if not marked or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
        return  # a CUDA graph cannot capture a check of values; the hook after the step is captured
    held: set[int] | None = None
    for module in tuple(marked):
        mark = mark_of(module)
        if mark is None:
            continue
        written = [parameter for parameter in mark.thetas if was_written(module, parameter)]
        if not mark.unchecked and not written:
            continue
        held = _held(optimizer) if held is None else held
        for parameter in written:
            if id(module._parameters.get(parameter)) in held:
                get_mask(module, parameter)
        for parameter in tuple(mark.unchecked):
            value = module._parameters.get(parameter)
            if value is None or id(value) not in held:
                continue
            mark.unchecked.discard(parameter)
            mask = stored_mask(module, parameter)
            mask = None if mask is None else sharding.local_mask(module, parameter, value, mask)
            if mask is not None and optimizer not in _reported and _remembers(optimizer, value, mask):
                _reported.add(optimizer)
                warnings.warn(
                    f"secateur: this {type(optimizer).__name__} is older than the pruning and still holds momentum of "
                    "weights that are pruned now. They stay zero all the same; pass optimizer= to prune to clear it",
                    stacklevel=2,
                )


def _remembers(optimizer: Optimizer, parameter: Tensor, mask: Tensor) -> bool:
    with torch.no_grad():
        for value in _elementwise(optimizer, parameter):
            value = sharding.local_part(value)
            if value.device.type != "meta":
                here = mask.to(value.device)
                if not torch.equal(ops.mask_apply(value, here), value):
                    return True
    return False


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
