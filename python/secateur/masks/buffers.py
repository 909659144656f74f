"""Masks of modules: zeros baked into a plain Parameter, one bit a weight in a buffer, re-applied after each step.

``prune`` gives a module a uint8 buffer ``<parameter>_mask`` (packed as :func:`secateur.ops.mask_pack` does) and marks
the module. Hooks on torch's optimizers (:mod:`~secateur.masks.optimizer_hooks`) re-apply it after every step. The
module's forward is untouched, so compile, export and every subclass keep working.

Why the registry holds modules and not parameters: a module keeps its parameter's name when ``.to()``,
``load_state_dict(assign=True)`` or a swap replaces the object; and ``torch.utils.swap_tensors`` refuses tensors that
have weak references. The mark is a small object in the module's ``__dict__`` that goes along with deepcopy and pickle
and enters its new owner into the registry from ``__setstate__``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error
from . import sharding

_MARK = "_secateur_masks"
SUFFIX = "_mask"

#: Modules that carry masks and are alive.
marked: weakref.WeakSet[nn.Module] = weakref.WeakSet()

Theta = tuple[float, float, float]  # min, mean, max over the neurons


class Mark:
    """What a masked module carries: the names of its masked parameters, and what the report says about them."""

    def __init__(self, owner: nn.Module) -> None:
        # Weak: a cycle would keep a dropped model in memory until the next collection.
        self.owner: weakref.ref[nn.Module] | None = weakref.ref(owner)
        self.thetas: dict[str, Theta | None] = {}  # the masked parameters, in the order in which they were masked
        self.unchecked: set[str] = set()  # pruned since an optimizer stepped: its state may be older than the pruning
        self.lost: set[str] = set()  # reported as out of reach
        self.load_hook = owner.register_load_state_dict_post_hook(_after_load)
        marked.add(owner)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None if self.owner is None else self.owner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Both deepcopy and pickle make the new module before its state, so the owner here is the new one.
        owner = state["owner"]
        self.__dict__.update(state)
        self.owner = None if owner is None else weakref.ref(owner)
        if owner is not None:  # None: a shallow copy that has outlived its original
            marked.add(owner)


def mark_of(module: nn.Module) -> Mark | None:
    """The mark of this very module, if it carries masks."""
    mark = module.__dict__.get(_MARK)
    return mark if isinstance(mark, Mark) else None


def buffer_name(parameter: str) -> str:
    """``weight`` -> ``weight_mask``, ``weight_ih_l0`` -> ``weight_ih_l0_mask``."""
    return parameter + SUFFIX


def masked_parameters(module: nn.Module) -> dict[str, Theta | None]:
    """The names of this very module's masked parameters (not its children's), with their theta (min, mean, max)."""
    mark = mark_of(module)
    return {} if mark is None else dict(mark.thetas)


def get_mask(module: nn.Module, parameter: str) -> Tensor | None:
    """The packed mask uint8 [rows, bytes] of a masked parameter, or None."""
    mark = mark_of(module)
    if mark is None or parameter not in mark.thetas:
        return None
    mask = module._buffers.get(buffer_name(parameter))
    if mask is not None and mask.dtype != torch.uint8:
        # module.type(dtype) casts every buffer; 0..255 are exact in every float type down to bfloat16.
        mask = mask.to(torch.uint8)
        module._buffers[buffer_name(parameter)] = mask
    return mask


def check_room(module: nn.Module, parameter: str, where: str, caller: str = "prune") -> None:
    """Raise an Error if the name of the mask's buffer is taken by something else."""
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
        module.__dict__[_MARK] = mark
    name = buffer_name(parameter)
    if name in module._buffers:
        module._buffers[name] = mask
    else:
        module.register_buffer(name, mask)
    mark.thetas[parameter] = theta
    if fresh:
        mark.unchecked.add(parameter)
    mark.lost.discard(parameter)


def detach(module: nn.Module, parameter: str) -> None:
    """Take a parameter's mask away; its zeros stay."""
    mark = mark_of(module)
    if mark is None or parameter not in mark.thetas:
        return
    name = buffer_name(parameter)
    if getattr(module, "owns_mask", False):  # secateur.nn.MaskedLinear and its kin read None as "no mask"
        module._buffers[name] = None
    else:
        del module._buffers[name]
    del mark.thetas[parameter]
    mark.unchecked.discard(parameter)
    if not mark.thetas:
        mark.load_hook.remove()
        del module.__dict__[_MARK]
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
    for _, module in list(masked_modules(model, "strip")):
        for parameter in masked_parameters(module):
            detach(module, parameter)
    return model


def apply(model: nn.Module) -> nn.Module:
    """Zero every pruned weight again: for updates by no ``torch.optim`` optimizer (averaging, copying by hand)."""
    for _, module in masked_modules(model, "apply"):
        apply_to(module, masked_parameters(module))
    return model


def apply_mask(value: Tensor, mask: Tensor) -> None:
    if value.device.type == "meta":
        return
    ops.mask_apply_(value, mask if mask.device == value.device else mask.to(value.device))


def apply_to(module: nn.Module, parameters: Iterable[str]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            value = module._parameters.get(parameter)
            mask = get_mask(module, parameter)
            if value is None or mask is None:
                continue
            part = sharding.local_mask(module, parameter, value, mask)
            if part is not None:
                apply_mask(sharding.local_part(value), part)


def _after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """A state_dict without masks (``strict=False``) must not bring pruned weights back."""
    apply_to(module, masked_parameters(module))
