"""Masks of modules: zeros baked into a plain Parameter, one bit a weight beside it, re-applied after each step.

``prune`` gives a module a uint8 tensor ``<parameter>_mask`` (packed as :func:`secateur.ops.mask_pack` does) and marks
the module. Hooks on torch's optimizers (:mod:`~secateur.masks.optimizer_hooks`) re-apply it after every step. The
module's forward is untouched, so compile, export and every subclass keep working.

Why it is no buffer: whoever walks ``buffers()`` means numbers that can be averaged, and a model without masks (an
average that was made before the pruning) would have fewer of them. It is a plain attribute, is in the state_dict all
the same (:mod:`~secateur.masks.states`), and follows its weight to another device when it is next used.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .._base.errors import Error
from .._base.signals import held_signals
from . import states
from .marks import (
    MARK,
    Mark,
    Theta,
    apply_to,
    buffer_name,
    get_mask,
    mark_of,
    marked,
    masked_parameters,
    note,
)
from .states import after_load as _after_load  # noqa: F401  (the name in what earlier versions have pickled)


def check_room(module: nn.Module, parameter: str, where: str, caller: str = "prune") -> None:
    """Raise an Error if the name of the mask is taken by something else."""
    name = buffer_name(parameter)
    mark = mark_of(module)
    if (mark is None or parameter not in mark.thetas) and getattr(module, name, None) is not None:
        raise Error(f"{caller}: {where} must leave the name {name!r} free for its mask, but has such an attribute")


def attach(module: nn.Module, parameter: str, mask: Tensor, theta: Theta | None = None, *, fresh: bool = False) -> None:
    """Give a parameter its packed mask [rows, bytes]; the weight itself is not touched (see :func:`apply`).

    ``fresh``: the weights have been pruned just now, so an optimizer's state may be older (a mask that comes with a
    checkpoint says nothing of the kind).
    """
    mark = mark_of(module)
    if mark is None:
        mark = Mark(module)
        module.__dict__[MARK] = mark
    if len(mark.hooks) < 3:  # new, or an earlier version has pickled it
        for hook in mark.hooks:
            hook.remove()
        mark.hooks = states.register(module, mark)
    module._buffers.pop(buffer_name(parameter), None)
    module.__dict__[buffer_name(parameter)] = mask
    mark.thetas[parameter] = theta
    note(module, parameter, mask)
    if fresh:
        mark.unchecked.add(parameter)
    mark.lost.discard(parameter)


def detach(module: nn.Module, parameter: str) -> None:
    """Take a parameter's mask away; its zeros stay."""
    mark = mark_of(module)
    if mark is None or parameter not in mark.thetas:
        return
    name = buffer_name(parameter)
    module._buffers.pop(name, None)
    if getattr(module, "owns_mask", False):  # secateur.nn.MaskedLinear and its kin read None as "no mask"
        module.__dict__[name] = None
    else:
        module.__dict__.pop(name, None)
    del mark.thetas[parameter]
    mark.known.pop(parameter, None)
    mark.unchecked.discard(parameter)
    if not mark.thetas:
        for hook in mark.hooks:
            hook.remove()
        del module.__dict__[MARK]
        marked.discard(module)


def masked_modules(model: nn.Module, caller: str = "masked_modules") -> Iterator[tuple[str, nn.Module]]:
    """``(name, module)`` of every module in ``model`` that carries masks."""
    if not isinstance(model, nn.Module):
        raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if mark_of(module) is not None:
            yield name, module


def strip(model: nn.Module) -> nn.Module:
    """Take the masks away and leave the zeros: the state_dict loads strictly into the plain classes again.

    In place; from here on an optimizer may bring the zeros back. A model without masks is left as it is.

    Returns:
        The model given.
    """
    with held_signals(repeated=True):
        for _, module in list(masked_modules(model, "strip")):
            for parameter in masked_parameters(module):
                detach(module, parameter)
    return model


def apply(model: nn.Module) -> nn.Module:
    """Zero every pruned weight again: for updates by no ``torch.optim`` optimizer (averaging, copying by hand)."""
    places = [(m, parameter) for _, m in masked_modules(model, "apply") for parameter in masked_parameters(m)]
    for module, parameter in places:
        get_mask(module, parameter)  # one that was averaged must not zero what lives
    apply_to(places)
    tell_written(model)
    return model


def tell_written(model: nn.Module) -> None:
    """Tell the parts of ``model`` that keep a form of its weights (compiled ones) that these have been written."""
    for module in model.modules():
        changed = getattr(type(module), "_weights_changed", None)
        if changed is not None:
            changed(module)
