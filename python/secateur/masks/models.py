"""The masks of a whole model: taken from its zeros, from a state_dict, from another process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error
from .._base.signals import held_signals
from .._base.wrappers import wrapping
from ..ops.packing import mask_shape
from . import agreement, sharding
from .buffers import attach, check_room, detach
from .marks import SUFFIX, buffer_name, get_mask
from .weights import Weight, weights_of


def adopt(model: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Treat existing zeros as pruned: every weight of a known layer that holds zeros gets a mask.

    For a model whose zeros came from elsewhere (a stripped checkpoint, another library): from here on fine-tuning
    leaves them zero, and pruning again takes its statistics from the survivors. A layer that has a mask keeps it.

    Args:
        model: changed in place. parameters: packed masks to use instead of the zeros, by state_dict key of the mask
            (``"fc.weight_mask"``), for the parameters that these keys name alone.

    Returns:
        The model given.
    """
    found = []
    for weight in weights_of(model, caller="adopt"):
        if weight.problem is not None:
            continue
        if parameters is not None:
            given = parameters.get(buffer_name(weight.key))
            if given is not None:
                found.append((weight, given.detach().to(weight.value.device, copy=True)))
        elif get_mask(weight.module, weight.parameter) is None and bool((weight.value == 0).any()):
            check_room(weight.module, weight.parameter, weight.label, "adopt")
            found.append((weight, ops.mask_pack(weight.value.detach() != 0)))
    return _attached(model, found)


def _attached(model: nn.Module, found: Iterable[tuple[Weight, Tensor]]) -> nn.Module:
    with held_signals(repeated=True):
        for weight, mask in found:
            for module, parameter in weight.places:
                attach(module, parameter, mask)
    return model


def match_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Give ``model`` the masks that a pruned model's ``state_dict`` holds, so that it loads strictly.

    A plain model has no masks, and torch rightly calls the pruned state_dict's ``*_mask`` keys unexpected::

        secateur.masks.match_state_dict(model, state).load_state_dict(state)

    The weights themselves are not touched, so the model may be on the meta device. A mask that was averaged with the
    weights, and now would zero some that live, is made anew from the weights beside it, which a warning says.

    Args:
        model: changed in place. state_dict: with the keys of the model, or of what DistributedDataParallel,
            DataParallel or torch.compile wraps it in.

    Returns:
        The model given.

    Raises:
        Error: a mask in the state_dict that fits no weight of the model. Then the model is as it was.
    """
    if not isinstance(state_dict, Mapping):
        raise Error(f"match_state_dict: state_dict must be a mapping of names, got {type(state_dict).__name__}")
    found: list[tuple[Weight, Tensor]] = []
    weights = {buffer_name(weight.key): weight for weight in weights_of(model, caller="match_state_dict")}
    prefix = wrapping(model)
    for key, value in state_dict.items():
        if not (isinstance(key, str) and key.endswith(SUFFIX) and isinstance(value, Tensor)):
            continue
        name = key.removesuffix(SUFFIX)
        if name not in state_dict:
            continue
        weight = weights.get(key) or weights.get(key.removeprefix(prefix))
        if weight is None:
            raise Error(f"match_state_dict: the state_dict's {key!r} must name a weight of the model, which has none")
        if weight.problem is not None and not weight.unwritten:
            raise Error(f"match_state_dict: {weight.label} cannot take a mask: {weight.problem}")
        fitting = mask_shape(weight.value.shape)
        if not (value.dtype == torch.uint8 or value.is_floating_point()) or tuple(value.shape) != fitting:
            raise Error(
                f"match_state_dict: {key!r} must be a packed mask, uint8 {list(fitting)} for a weight of "
                f"{list(weight.value.shape)}, got {value.dtype} {list(value.shape)}"
            )
        check_room(weight.module, weight.parameter, weight.label, "match_state_dict")
        mask = agreement.fitting(value, sharding.whole(state_dict[name]))
        found.append((weight, mask.to(value.device if weight.unwritten else weight.value.device, copy=True)))
    return _attached(model, found)


def broadcast(model: nn.Module, source: int = 0) -> nn.Module:
    """Give every process the masks of one, and its masked weights: for a model that was pruned on one rank alone.

    Every process of torch's default group calls it, before DistributedDataParallel or either FSDP wraps the model:
    they assume that all processes have the same masks, as they do of buffers. Also before
    ``set_model_state_dict(broadcast_from_rank0=True)``, which sends a pruned model's weights but no masks.

    Args:
        model: the same architecture everywhere; changed in place, but not on ``source``. source: the rank that prunes.

    Returns:
        The model given.

    Raises:
        Error: no process group, or (on that rank) a mask that fits no weight of the model.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise Error("broadcast: torch.distributed must have a process group (init_process_group), but has none")
    weights = {buffer_name(weight.key): weight for weight in weights_of(model, caller="broadcast")}
    masked = [key for key, weight in weights.items() if get_mask(weight.module, weight.parameter) is not None]
    sent: list[Any] = [masked]
    dist.broadcast_object_list(sent, source)
    found: dict[str, tuple[Weight, Tensor]] = {}
    for key in sent[0]:
        if key not in weights:
            raise Error(f"broadcast: rank {source}'s {key!r} must name a weight of the model, which has none here")
        weight = weights[key]
        mask = get_mask(weight.module, weight.parameter) if dist.get_rank() == source else None
        if mask is None:
            mask = torch.empty(mask_shape(weight.value.shape), dtype=torch.uint8, device=weight.value.device)
        found[key] = weight, mask
        dist.broadcast(mask, source)
        dist.broadcast(weight.value.detach(), source)
    if dist.get_rank() == source:
        return model
    for key in masked:
        if key not in found:
            for module, parameter in weights[key].places:
                detach(module, parameter)
    return _attached(model, found.values())
