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
from ..masks.weights import unwrapped
from ..ops.packing import mask_shape
from .content import path_of
from .filling import Filling
from .tensor_files import tensors_of

_CALLER = "import_checkpoint"
_PARAMETRIZED = re.compile(r"(?P<module>.*\.|)parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)")


@dataclass
class Pruned:
    """Tensors under their plain names, zeros baked in, and masks, bool of the weight's shape, by those names."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keeps: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Given:
    """A tensor in memory, as :class:`~secateur.checkpoint.filling.Filling` takes them."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def fill(self, flat: Tensor) -> None:
        flat.copy_(self.tensor.reshape(-1))


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
        model: the plain model, of the same architecture and without its masks.
        sparsifier: ``sparsifier.state_dict()`` of ``torch.ao.pruning``, where the model was saved before
            ``squash_mask``.

    Returns:
        The model given. A mask of what can hold none here (a bias) is applied once, with a warning.

    Raises:
        Error: no such checkpoint; a mask that is not 0 and 1 in its weight's shape, or is missing; names, shapes or
            dtypes other than the model's. The model is then exactly as it was. OSError: the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"{_CALLER}: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(checkpoint, Mapping):
        state = {str(key): value for key, value in checkpoint.items()}
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise Error(f"{_CALLER}: {key} must be a tensor, got {type(value).__name__}")
    else:
        state = tensors_of(path_of(checkpoint, _CALLER), _CALLER)
    found = plain(state, _CALLER, _masks_of(sparsifier))
    inner = unwrapped(model)
    maskable = {key for key in found.keeps if found.tensors[key].dim() >= 2}
    tensors = {key: _Given(value.detach()) for key, value in found.tensors.items()}
    filling = Filling(inner, tensors, maskable, _CALLER)
    filling.prepare({key: (ops.mask_pack(found.keeps[key].cpu()), None) for key in maskable})
    filling.commit()
    if once := sorted(found.keeps.keys() - maskable):
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
    masks = {k: about.get("mask") for k, about in state.items()} if isinstance(state, Mapping) else {}
    if not masks or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise Error(f"{_CALLER}: sparsifier must be the state_dict() of a torch.ao.pruning sparsifier, with its masks")
    return masks


def plain(state: Mapping[str, Tensor], caller: str, masks: Mapping[str, Tensor] | None = None) -> Pruned:
    """A state_dict under plain names.

    Args:
        masks: those that a sparsifier holds, by plain name. None: a weight whose mask is nowhere keeps its own name.

    Raises:
        Error: a mask that is none or is missing, a parametrization that is no mask, or one name twice.
    """
    found = Pruned()
    seen: dict[str, tuple[str, Tensor]] = {
        k: (f"the sparsifier's mask of {k}", mask) for k, mask in (masks or {}).items()
    }
    for key, value in state.items():
        match = _PARAMETRIZED.fullmatch(key)
        name = match and match["module"] + match["name"]
        if match and name and _is_sparsified(match, state, caller, None if masks is None else name in masks):
            if match["rest"] == "original":
                _put(found.tensors, name, value, key, caller)
            else:
                seen[name] = key, value
        elif key.endswith("_orig") and key.removesuffix("_orig") + "_mask" in state:
            _put(found.tensors, key.removesuffix("_orig"), value, key, caller)
        elif key.endswith("_mask") and key.removesuffix("_mask") + "_orig" in state:
            seen[key.removesuffix("_mask")] = key, value
        elif key.endswith("_mask") and _is_packed(value, state.get(key.removesuffix("_mask"))):
            shape = state[key.removesuffix("_mask")].shape
            seen[key.removesuffix("_mask")] = key, ops.mask_unpack(value.cpu(), shape)
        else:
            _put(found.tensors, key, value, key, caller)
    for name, (key, mask) in seen.items():
        weight = found.tensors.get(name)
        if weight is None:
            raise Error(f"{caller}: {key} must have a weight, but the checkpoint holds no {name}")
        if mask.shape != weight.shape or bool(((mask != 0) & (mask != 1)).any()):
            raise Error(f"{caller}: {key} must be 0 and 1 in the shape of {name}, {list(weight.shape)}, and is not")
        keep = (mask != 0).to(weight.device)
        found.keeps[name] = keep
        zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
        found.tensors[name] = torch.where(keep, weight.detach(), zero)
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
    if weight is None or mask.dtype != torch.uint8 or weight.dim() < 2:
        return False
    return tuple(mask.shape) == mask_shape(weight.shape)
