"""What a module carries beside its masked parameters: the masks, a mark with what is known of them, their registry.

Why the registry holds modules and not parameters: a module keeps its parameter's name when ``.to()``,
``load_state_dict(assign=True)`` or a swap replaces the object; and ``torch.utils.swap_tensors`` refuses tensors that
have weak references. The mark is a small object in the module's ``__dict__`` that goes along with deepcopy and pickle
and enters its new owner into the registry from ``__setstate__``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import ops
from .._base.errors import Error
from . import agreement, sharding

MARK = "_secateur_masks"
SUFFIX = "_mask"
_NEVER = -2  # no version of a tensor

#: Modules that carry masks and are alive.
marked: weakref.WeakSet[nn.Module] = weakref.WeakSet()

Theta = tuple[float, float, float]  # min, mean, max over the neurons


class Known(NamedTuple):
    """The bits of a mask that was given or found right: their digest, and the tensor's version counter then."""

    digest: int | None
    version: int


class Mark:
    """What a masked module carries: the names of its masked parameters, and what the report says about them."""

    def __init__(self, owner: nn.Module) -> None:
        # Weak: a cycle would keep a dropped model in memory until the next collection.
        self.owner: weakref.ref[nn.Module] | None = weakref.ref(owner)
        self.thetas: dict[str, Theta | None] = {}  # the masked parameters, in the order in which they were masked
        self.unchecked: set[str] = set()  # pruned since an optimizer stepped: its state may be older than the pruning
        self.lost: set[str] = set()  # reported as out of reach
        self.known: dict[str, Known] = {}  # the masks' bits when they were given
        self.hooks: tuple[RemovableHandle, ...] = ()  # on the owner's state_dict
        marked.add(owner)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None if self.owner is None else self.owner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Both deepcopy and pickle make the new module before its state, so the owner here is the new one.
        owner = state["owner"]
        self.__dict__.update(state)
        if "load_hook" in state:  # of an earlier version, whose masks stay buffers until one is replaced
            self.hooks = (state["load_hook"],)
        # A copy's version counter starts anew, and the mask may have been written before it was copied.
        self.known = {name: known._replace(version=_NEVER) for name, known in state.get("known", {}).items()}
        self.owner = None if owner is None else weakref.ref(owner)
        if owner is not None:  # None: a shallow copy that has outlived its original
            marked.add(owner)


def mark_of(module: nn.Module) -> Mark | None:
    """The mark of this very module, if it carries masks."""
    mark = module.__dict__.get(MARK)
    return mark if isinstance(mark, Mark) else None


def buffer_name(parameter: str) -> str:
    """``weight`` -> ``weight_mask``, ``weight_ih_l0`` -> ``weight_ih_l0_mask``."""
    return parameter + SUFFIX


def masked_parameters(module: nn.Module) -> dict[str, Theta | None]:
    """The names of this very module's masked parameters (not its children's), with their theta (min, mean, max)."""
    mark = mark_of(module)
    return {} if mark is None else dict(mark.thetas)


def get_mask(module: nn.Module, parameter: str) -> Tensor | None:
    """The packed mask uint8 [rows, bytes] of a masked parameter, or None.

    One whose bits were changed by something else is held against the weights first: where it agrees with them it is the
    mask from now on, and where it would zero weights that live it is made anew from them, which a warning says.

    Raises:
        Error: it would zero weights that live, and this process holds only a part of them.
    """
    mask = stored_mask(module, parameter)
    if mask is not None and module.__dict__[MARK].known.get(parameter) != _known(mask):
        mask = _settled(module, parameter, mask)
    return mask


def stored_mask(module: nn.Module, parameter: str) -> Tensor | None:
    """The mask as it lies there, on its weight's device: for each step of an optimizer, in which nothing may wait."""
    mark = mark_of(module)
    if mark is None or parameter not in mark.thetas:
        return None
    place = _place(module, parameter)
    mask = place.get(buffer_name(parameter))
    value = module._parameters.get(parameter)
    if mask is not None and value is not None and value.device != mask.device and value.device.type != "meta":
        known = mark.known.get(parameter)
        fresh = known is None or known.version == agreement.version_of(mask)
        place[buffer_name(parameter)] = mask = mask.to(value.device)
        if known is not None:
            mark.known[parameter] = known._replace(version=agreement.version_of(mask) if fresh else _NEVER)
    return mask


def _place(module: nn.Module, parameter: str) -> dict[str, Any]:
    """Where a module keeps a mask: among its attributes, or as a buffer in what an earlier version has pickled."""
    name = buffer_name(parameter)
    return module._buffers if name in module._buffers else module.__dict__


def was_written(module: nn.Module, parameter: str) -> bool:
    """Whether torch has counted writes to a mask since it was given: asked before each step, so it reads no bits."""
    mask, mark = stored_mask(module, parameter), mark_of(module)
    if mask is None or mark is None:
        return False
    known = mark.known.get(parameter)
    return known is None or known.version != agreement.version_of(mask)


def _known(mask: Tensor) -> Known:
    return Known(agreement.digest(mask), agreement.version_of(mask))


def note(module: nn.Module, parameter: str, mask: Tensor) -> None:
    """From here on these are the bits that the mask was given."""
    module.__dict__[MARK].known[parameter] = _known(mask)


def _settled(module: nn.Module, parameter: str, mask: Tensor) -> Tensor:
    """The mask, after a write that was not ours or in a copy."""
    known, value = module.__dict__[MARK].known.get(parameter), module._parameters.get(parameter)
    if not agreement.readable(mask):
        return mask
    if value is not None and (known is None or known.digest != agreement.digest(mask)):
        part = sharding.local_mask(module, parameter, value, mask)
        here = sharding.local_part(value)
        if part is not None and agreement.prunes_living(part, here):
            if part is not mask:
                raise Error(
                    f"the mask of {parameter!r} of a {type(module).__name__} was changed by something else, and prunes "
                    "weights that are not zero; this process holds a part of them only: load it again"
                )
            agreement.say_mended()
            mask = write(module, parameter, mask, agreement.living(value))
    note(module, parameter, mask)
    return mask


def write(module: nn.Module, parameter: str, mask: Tensor, bits: Tensor) -> Tensor:
    """Put other bits where ``mask`` lies, a place that CUDA graphs and tied weights know; anew where none may write."""
    with torch.no_grad():
        if mask.is_inference() and not torch.is_inference_mode_enabled():
            _place(module, parameter)[buffer_name(parameter)] = mask = bits.to(mask.device, copy=True)
        else:
            mask.copy_(bits)
    return mask


def mask_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Zero what each packed mask prunes of the tensor beside it, with one call of the operator for each device.

    Nothing here waits for a device, and a CUDA graph can capture it, where each mask lies on its tensor's device.
    """
    by_device: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
    for value, mask in pairs:
        if value.device.type != "meta":
            values, masks = by_device.setdefault(value.device, ([], []))
            values.append(value)
            masks.append(mask if mask.device == value.device else mask.to(value.device))
    with torch.no_grad():
        for values, masks in by_device.values():
            ops.mask_apply_many_(values, masks)


def apply_to(places: Iterable[tuple[nn.Module, str]]) -> None:
    """Zero the pruned weights of parameters, given as (module, name)."""
    with torch.no_grad():
        mask_all([pair for place in places if (pair := _held_here(*place)) is not None])


def _held_here(module: nn.Module, parameter: str) -> tuple[Tensor, Tensor] | None:
    """The part of a weight that this process holds, and the mask of that part."""
    value, mask = module._parameters.get(parameter), stored_mask(module, parameter)
    if value is None or mask is None:
        return None
    if value.is_nested:
        kind = type(module).__name__
        raise Error(f"the pruned {parameter!r} of a {kind} must be an ordinary tensor, got a nested one")
    part = sharding.local_mask(module, parameter, value, mask)
    return None if part is None else (sharding.local_part(value), part)
