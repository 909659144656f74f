"""Plain torch checkpoints whose masks torch.nn.utils.prune or torch.ao.pruning keeps."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error
from .._base.wrappers import unwrapped
from ..ops.packing import mask_shape
from .filling import Filling
from .format.description import FLOATS, INTEGERS
from .format.symbols import bits_of
from .ordinary import check_ordinary, is_stored, kind_of_tensor
from .paths import path_of
from .tensor_files import tensors_of

_CALLER = "import_checkpoint"
_PARAMETRIZED = re.compile(r"(?P<module>.*\.|)parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)")


@dataclass
class Parts:
    """Tensors under their plain names, as they were given, and the masks of some: their key, and the mask, packed or in
    the weight's shape. Nothing is computed yet: a tensor may claim more than there is memory."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, tuple[str, Tensor]] = field(default_factory=dict)
    packed: set[str] = field(default_factory=set)

    def keep(self, name: str, caller: str) -> Tensor:
        """The mask of a tensor, bool, of its shape.

        Raises:
            Error: it is none.
        """
        key, mask = self.masks[name]
        weight = self.tensors[name]
        if name in self.packed:
            mask = ops.mask_unpack(mask.detach().cpu(), weight.shape)
        if mask.dtype not in (torch.bool, *FLOATS, *INTEGERS) or bool(((mask != 0) & (mask != 1)).any()):
            raise Error(f"{caller}: {key} must be 0 and 1 in the shape of {name}, {list(weight.shape)}, and is not")
        return (mask.detach() != 0).cpu().contiguous()


@dataclass(frozen=True)
class _Given:
    """A tensor in memory, as :class:`~secateur.checkpoint.filling.Filling` takes them; zero where ``keeps``, filled in
    later, says so."""

    key: str
    tensor: Tensor
    keeps: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def fill(self, flat: Tensor) -> None:
        flat.copy_(self.tensor.reshape(-1))
        if self.key in self.keeps:
            bits_of(flat)[~self.keeps[self.key].reshape(-1).numpy()] = 0


def import_checkpoint(
    checkpoint: Mapping[str, Any] | str | os.PathLike[str],
    model: nn.Module,
    sparsifier: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Fill a plain model from a torch checkpoint that may hold masks; they become this package's.

    Taken are ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune``; ``parametrizations.weight.original`` of
    ``torch.ao.pruning``, whose mask is in the state_dict of its sparsifier; and ``weight`` with the packed
    ``weight_mask`` of a pruned model's own state_dict. Everything else loads as it is. Pruned weights are then zero,
    and stay so in fine-tuning. (What was saved after ``remove`` or ``squash_mask`` has zeros and no masks: call
    :func:`secateur.masks.adopt` afterwards.)

    Args:
        checkpoint: a state_dict, or a file of one: torch.save's (opened with ``weights_only=True``: no code runs; also
            inside a training script's ``{"state_dict": ...}``) or safetensors.
        model: the plain model, of the same architecture and without its masks. Names of wrappers (``module.``,
            ``_orig_mod.``) in the checkpoint, in the model or in both are looked through.
        sparsifier: ``sparsifier.state_dict()`` of ``torch.ao.pruning``, where the model was saved before
            ``squash_mask``.

    Returns:
        The model given. A mask of what can hold none here (a bias) is applied once, with a warning.

    Raises:
        Error: no such checkpoint; a mask that is not 0 and 1 in its weight's shape, or is missing; names, shapes or
            dtypes other than the model's. The model is then exactly as it was. OSError: the file cannot be read.
    """
    if isinstance(checkpoint, nn.Module) and not isinstance(model, nn.Module):
        raise Error(f"{_CALLER}: the checkpoint comes first, then the model: secateur.import_checkpoint(path, model)")
    if not isinstance(model, nn.Module):
        raise Error(f"{_CALLER}: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(checkpoint, Mapping):
        state = checked(checkpoint, _CALLER)
    elif isinstance(checkpoint, nn.Module):
        raise Error(f"{_CALLER}: checkpoint must be a state_dict or a path, got a model: give its state_dict()")
    else:
        state = tensors_of(path_of(checkpoint, _CALLER), _CALLER)
    found = parts_of(state, _CALLER, _masks_of(sparsifier))
    for key, value in found.tensors.items():
        check_ordinary(key, value, _CALLER)
    inner = unwrapped(model)
    maskable = {key for key in found.masks if found.tensors[key].dim() >= 2}
    keeps: dict[str, Tensor] = {}
    tensors = {key: _Given(key, value.detach(), keeps) for key, value in found.tensors.items()}
    filling = Filling(inner, tensors, maskable, _CALLER)  # from here on, no tensor is larger than the model's
    keeps |= {key: found.keep(key, _CALLER) for key in found.masks}
    filling.prepare({key: (ops.mask_pack(keeps[key]), None) for key in maskable})
    filling.commit()
    if once := sorted(found.masks.keys() - maskable):
        warnings.warn(
            f"{_CALLER}: {', '.join(once[:5])} had a mask and can hold none here: zero now, and free in training",
            UserWarning,
            stacklevel=2,
        )
    return model


def _masks_of(sparsifier: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The masks in a sparsifier's state_dict, by the plain names of their weights."""
    if sparsifier is None:
        return {}
    state = sparsifier.get("state") if isinstance(sparsifier, Mapping) else None
    held = state.items() if isinstance(state, Mapping) else ()
    masks = {str(k): about.get("mask") if isinstance(about, Mapping) else None for k, about in held}
    found = {name: mask for name, mask in masks.items() if isinstance(mask, Tensor)}
    if not found or len(found) < len(masks):
        raise Error(f"{_CALLER}: sparsifier must be the state_dict() of a torch.ao.pruning sparsifier, with its masks")
    return found


def checked(state: Mapping[Any, Any], caller: str) -> dict[str, Tensor]:
    """
    Raises:
        Error: a key that is no string, or a value that is no tensor.
    """
    for key, value in state.items():
        if not isinstance(key, str):
            raise Error(f"{caller}: names of tensors must be strings, got {key!r:.100} ({type(key).__name__})")
        if not isinstance(value, Tensor):
            raise Error(f"{caller}: {key} must be a tensor, got {type(value).__name__}")
    return dict(state)


def plain(state: Mapping[str, Tensor], caller: str) -> dict[str, Tensor]:
    """A state_dict under plain names, the zeros of its masks baked in.

    Raises:
        Error: as :func:`parts_of`; a masked tensor that claims more numbers than there are.
    """
    found = parts_of(state, caller)
    for name in found.masks:
        weight = found.tensors[name]
        for key, value in ((name, weight), found.masks[name]):
            if not is_stored(value):
                raise Error(
                    f"{caller}: {key} must hold as many numbers as its shape says, {list(value.shape)}, but is an "
                    "expanded view of fewer"
                )
        keep = found.keep(name, caller).to(weight.device)
        found.tensors[name] = weight.detach().masked_fill(~keep, 0)
    return found.tensors


def parts_of(state: Mapping[str, Tensor], caller: str, masks: Mapping[str, Tensor] | None = None) -> Parts:
    """A state_dict under plain names.

    Args:
        masks: those that a sparsifier holds, by plain name. None: a weight whose mask is nowhere keeps its own name.

    Raises:
        Error: a mask in another shape than its weight's or without one, a parametrization that is no mask, or one name
            twice.
    """
    found = Parts(masks={k: (f"the sparsifier's mask of {k}", mask) for k, mask in (masks or {}).items()})
    for key, value in state.items():
        match = _PARAMETRIZED.fullmatch(key)
        name = match and match["module"] + match["name"]
        if match and name and _is_sparsified(match, state, caller, None if masks is None else name in masks):
            if match["rest"] == "original":
                _put(found.tensors, name, value, key, caller)
            else:
                found.masks[name] = key, value
        elif key.endswith("_orig") and key.removesuffix("_orig") + "_mask" in state:
            _put(found.tensors, key.removesuffix("_orig"), value, key, caller)
        elif key.endswith("_mask") and key.removesuffix("_mask") + "_orig" in state:
            found.masks[key.removesuffix("_mask")] = key, value
        elif key.endswith("_mask") and _is_packed(value, state.get(key.removesuffix("_mask"))):
            found.masks[key.removesuffix("_mask")] = key, value
            found.packed.add(key.removesuffix("_mask"))
        else:
            _put(found.tensors, key, value, key, caller)
    for name, (key, mask) in found.masks.items():
        if name not in found.tensors:
            raise Error(f"{caller}: {key} must have a weight, but the checkpoint holds no {name}")
        weight = found.tensors[name]
        check_ordinary(name, weight, caller)
        check_ordinary(key, mask, caller)
        if name not in found.packed and mask.shape != weight.shape:
            raise Error(f"{caller}: {key} must be 0 and 1 in the shape of {name}, {list(weight.shape)}, and is not")
    return found


def _put(tensors: dict[str, Tensor], name: str, value: Tensor, key: str, caller: str) -> None:
    if name in tensors:
        raise Error(f"{caller}: {key} stands for {name}, which must be there once, and is there twice")
    tensors[name] = value


def _is_sparsified(match: re.Match[str], state: Mapping[str, Tensor], caller: str, known: bool | None) -> bool:
    """Whether this is a part of a parametrization by a mask. ``known``: its mask came from elsewhere; None: it may be
    missing."""
    prefix = f"{match['module']}parametrizations.{match['name']}."
    rest = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    taken = {"original", "0.mask"}
    if "original" not in rest or (known is None and rest != taken):
        return False  # weight_norm's original0 and original1, and the like
    if rest == {"original"} and not known:
        raise Error(
            f"{caller}: {prefix[:-1]} must come with its mask, which torch.ao.pruning keeps in the sparsifier: give "
            "sparsifier=sparsifier.state_dict(), or save the model after squash_mask"
        )
    if not rest <= taken:
        raise Error(
            f"{caller}: {prefix[:-1]} must be a mask alone, but holds {', '.join(sorted(rest))}: call squash_mask, or "
            "remove the other parametrizations, before saving"
        )
    return True


def _is_packed(mask: Tensor, weight: Tensor | None) -> bool:
    if weight is None or kind_of_tensor(mask) or kind_of_tensor(weight):
        return False
    if mask.dtype != torch.uint8 or weight.dim() < 2:
        return False
    return tuple(mask.shape) == mask_shape(weight.shape)
