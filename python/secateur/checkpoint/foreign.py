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
from .._errors import Error
from ..reference import rows_and_columns
from ..selection import unwrapped
from ..tensor_files import tensors_of
from .content import path_of
from .filling import Filling

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


def import_checkpoint(checkpoint: Mapping[str, Any] | str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Fill a plain model from a torch checkpoint that may hold masks; they become this package's.

    Taken are ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune``, ``parametrizations.weight.original`` and
    ``parametrizations.weight.0.mask`` of ``torch.ao.pruning`` (before ``squash_mask``), and ``weight`` with the packed
    ``weight_mask`` of a pruned model's own state_dict. Everything else loads as it is. Pruned weights are then zero,
    and stay so in fine-tuning.

    Args:
        checkpoint: a state_dict, or a file of one: torch.save's (opened with ``weights_only=True``: no code runs; also
            inside a training script's ``{"state_dict": ...}``) or safetensors.
        model: the plain model, of the same architecture and without its masks.

    Returns:
        The model given. A mask of what can hold none here (a bias) is applied once, with a warning.

    Raises:
        Error: no such checkpoint; a mask that is not 0 and 1 in its weight's shape; names, shapes or dtypes other than
            the model's. The model is then exactly as it was. OSError: the file cannot be read.
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
    found = plain(state, _CALLER)
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


def plain(state: Mapping[str, Tensor], caller: str) -> Pruned:
    """A state_dict under plain names.

    Raises:
        Error: a mask that is none, a parametrization that is no mask, or one name twice.
    """
    found = Pruned()
    masks: dict[str, tuple[str, Tensor]] = {}
    for key, value in state.items():
        parametrized = _PARAMETRIZED.fullmatch(key)
        if parametrized and (name := _sparsified(parametrized, state, caller)):
            if parametrized["rest"] == "original":
                _put(found.tensors, name, value, key, caller)
            else:
                masks[name] = (key, value)
        elif key.endswith("_orig") and key.removesuffix("_orig") + "_mask" in state:
            _put(found.tensors, key.removesuffix("_orig"), value, key, caller)
        elif key.endswith("_mask") and key.removesuffix("_mask") + "_orig" in state:
            masks[key.removesuffix("_mask")] = (key, value)
        elif key.endswith("_mask") and _is_packed(value, state.get(key.removesuffix("_mask"))):
            shape = state[key.removesuffix("_mask")].shape
            masks[key.removesuffix("_mask")] = (key, ops.mask_unpack(value.cpu(), shape))
        else:
            _put(found.tensors, key, value, key, caller)
    for name, (key, mask) in masks.items():
        weight = found.tensors[name]
        if mask.shape != weight.shape or bool(((mask != 0) & (mask != 1)).any()):
            raise Error(f"{caller}: {key} must be 0 and 1 in the shape of {name}, {list(weight.shape)}, and is not")
        keep = (mask != 0).to(weight.device)
        found.keeps[name] = keep
        found.tensors[name] = torch.where(
            keep, weight.detach(), torch.zeros((), dtype=weight.dtype, device=weight.device)
        )
    return found


def _put(tensors: dict[str, Tensor], name: str, value: Tensor, key: str, caller: str) -> None:
    if name in tensors:
        raise Error(f"{caller}: {key} stands for {name}, which must be there once, and is there twice")
    tensors[name] = value


def _sparsified(match: re.Match[str], state: Mapping[str, Tensor], caller: str) -> str | None:
    """The plain name, if this is a part of a parametrization by a mask; None for the others."""
    prefix = f"{match['module']}parametrizations.{match['name']}."
    rest = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if not any(re.fullmatch(r"\d+\.mask", name) for name in rest):
        return None
    if rest != {"original", "0.mask"}:
        raise Error(
            f"{caller}: {prefix[:-1]} must be a mask alone, but holds {', '.join(sorted(rest))}: call squash_mask, or "
            "remove the other parametrizations, before saving"
        )
    return match["module"] + match["name"]


def _is_packed(mask: Tensor, weight: Tensor | None) -> bool:
    if weight is None or mask.dtype != torch.uint8 or weight.dim() < 2:
        return False
    rows, columns = rows_and_columns(weight.shape)
    return tuple(mask.shape) == (rows, -(-columns // 8))
