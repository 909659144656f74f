"""Masks in a module's state_dict, under ``<parameter>_mask`` beside the weight, though they are no buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import agreement, marks, sharding


def register(module: nn.Module, mark: marks.Mark) -> tuple[RemovableHandle, ...]:
    """Hooks that give the module's masks to its state_dict and take them from one."""
    take: RemovableHandle = module._register_load_state_dict_pre_hook(_Take(mark))
    return (
        module.register_state_dict_post_hook(_give),
        take,
        module.register_load_state_dict_post_hook(after_load),
    )


def _give(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    for parameter in marks.masked_parameters(module):
        name = marks.buffer_name(parameter)
        mask = marks.get_mask(module, parameter)
        if mask is not None and name not in module._buffers:
            state_dict[prefix + name] = mask.detach()


class _Take:
    """What ``Module._load_from_state_dict`` does with a buffer, for each mask, which it therefore must not find.

    It finds its module through the mark: torch's own reference to it would not let a shallow copy be copied that has
    outlived its original.
    """

    def __init__(self, mark: marks.Mark) -> None:
        self.mark = mark

    def __call__(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        module = None if self.mark.owner is None else self.mark.owner()
        if module is None:
            return
        for parameter in marks.masked_parameters(module):
            key = prefix + marks.buffer_name(parameter)
            if key not in state_dict:
                if strict and not _fits_what_rank_0_sent(module, parameter, state_dict.get(prefix + parameter)):
                    missing_keys.append(key)
                continue
            given = sharding.whole(state_dict.pop(key))
            mask = marks.get_mask(module, parameter)
            if not isinstance(given, Tensor):
                error_msgs.append(f"{key} must be a tensor, a packed mask, got {type(given).__name__}")
            elif mask is not None and given.shape != mask.shape:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, "
                    f"the shape in current model is {mask.shape}."
                )
            elif mask is not None and given.device.type != "meta":
                problem = _fill(module, parameter, mask, given, state_dict.get(prefix + parameter))
                if problem is not None:
                    error_msgs.append(f"{key}: {problem}")


def _fits_what_rank_0_sent(module: nn.Module, parameter: str, weight: Any) -> bool:
    """Whether a mask may be missing: ``set_model_state_dict(broadcast_from_rank0=True)`` sends parameters and buffers.

    The other processes have their masks already (:func:`secateur.masks.broadcast`), if these fit the weights.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
        return False
    mask = marks.get_mask(module, parameter)
    if mask is None or not isinstance(weight, Tensor):
        return False
    part = sharding.local_mask(module, parameter, weight, mask)
    return part is None or not agreement.prunes_living(part, sharding.local_part(weight))


def _fill(module: nn.Module, parameter: str, mask: Tensor, given: Tensor, weight: Any) -> str | None:
    """Write a mask; or the reason why not. No process may wait for the others here: not all may have been given it."""
    bits = agreement.bytes_of(given.detach()).to(mask.device)
    if isinstance(weight, Tensor) and (part := sharding.local_mask(module, parameter, weight, bits)) is not bits:
        if part is not None and agreement.prunes_living(part, sharding.local_part(weight)):
            return (
                "the mask prunes weights that are not zero (an average of masks?), and this process holds a part of "
                "them only: load it before the model is sharded"
            )
        weight = None
    if torch.equal(bits, mask):
        # The module's own mask holds whatever weights come with it: those that a pruned network began with, say.
        if isinstance(weight, Tensor) and agreement.prunes_living(bits, weight):
            agreement.say_zeroed()
    else:
        marks.note(module, parameter, marks.write(module, parameter, mask, agreement.fitting(bits, weight)))
    return None


def after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """A state_dict without masks (``strict=False``) must not bring pruned weights back."""
    marks.apply_to((module, parameter) for parameter in marks.masked_parameters(module))
