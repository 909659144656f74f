"""Masks of parameters that are spread over processes: the part of a mask that belongs to this process's part.

A mask is a buffer, and neither kind of FSDP shards buffers: every process holds it whole (one bit a weight), but only a
part of the weight. After an optimizer's step that part is masked by the same part of the mask.

* ``fully_shard`` (FSDP2) and tensor parallelism make the parameter a DTensor. Shards of dim 0 are rows of the mask.
* ``FullyShardedDataParallel(use_orig_params=True)`` makes it a stretch of the flattened weight: 1-d, from anywhere to
  anywhere. Only the wrapper knows where it starts, so wrappers are noted as they are made.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .. import ops
from ..ops.packing import rows_and_columns

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

#: FullyShardedDataParallel wrappers that are alive.
_wrappers: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _note(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if name == "_fsdp_wrapped_module":
        _wrappers.add(module)


register_module_module_registration_hook(_note)


def _is_dtensor(tensor: Any) -> TypeGuard[DTensor]:
    """A process that holds a DTensor has imported its module, which costs as much as a third of ``import torch``."""
    if type(tensor) is nn.Parameter or type(tensor) is Tensor:  # every weight, twice after each step
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def problem_of(stored: Tensor) -> str | None:
    """Why a weight (of two dims or more) cannot be pruned here, if it is spread over processes."""
    kind = None
    if _is_dtensor(stored):
        kind = "fully_shard or another of torch's parallel styles"
    elif stored.dim() == 1 and len(_wrappers):
        kind = "FullyShardedDataParallel"
    if kind is None:
        return None
    return (
        f"it is spread over processes by {kind}, and a threshold needs whole weights; prune the model in every process "
        "before wrapping it (its masks then hold in each part)"
    )


def local_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory."""
    if _is_dtensor(value):
        return value._local_tensor
    return value


def whole(value: Any) -> Any:
    """A DTensor's whole tensor, on every process; anything else as it is."""
    return value.full_tensor() if _is_dtensor(value) else value


def local_mask(module: nn.Module, parameter: str, value: Tensor, mask: Tensor) -> Tensor | None:
    """The part of a packed mask [rows, bytes] for this process's part of the parameter.

    Args:
        module, parameter: the owner, and the parameter's name in it. value: the parameter. mask: the whole mask.

    Returns:
        The mask that fits :func:`local_part`; ``mask`` itself where the value is whole (or its part is
        unknown: then the operator refuses the mask); None where this process holds nothing of it.
    """
    if _is_dtensor(value):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if value._local_tensor.numel() == 0:
            return None
        _, start = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
        return _box(mask, value.shape, start, value._local_tensor.shape)
    if value.dim() != 1:
        return mask
    if value.numel() == 0:
        return None
    stretch = _stretch(module, parameter)
    return mask if stretch is None else _flat(mask, *stretch)


def _box(mask: Tensor, whole: Sequence[int], start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The part of the mask of a weight of shape ``whole``: ``shape`` weights along each dim, from ``start`` on."""
    if list(shape[1:]) == list(whole[1:]):  # rows start on a byte
        return mask[start[0] : start[0] + shape[0]]
    keep = ops.mask_unpack(mask, whole)
    for dim, (begin, size) in enumerate(zip(start, shape, strict=True)):
        keep = keep.narrow(dim, begin, size)
    return ops.mask_pack(keep.contiguous())


def _flat(mask: Tensor, columns: int, begin: int, end: int) -> Tensor:
    """Bits [begin, end) of the flattened weight, as the mask [end - begin, 1] of a 1-d tensor."""
    first, last = begin // columns, -(-end // columns)
    keep = ops.mask_unpack(mask[first:last], (last - first, columns)).flatten()
    return ops.mask_pack(keep[begin - first * columns : end - first * columns])


def _stretch(module: nn.Module, parameter: str) -> tuple[int, int, int] | None:
    """Weights a row, and the begin and end of this process's part of the flattened parameter."""
    for wrapper in tuple(_wrappers):
        handle: Any = getattr(wrapper, "_handle", None)
        flat = getattr(handle, "flat_param", None)
        if flat is None or getattr(flat, "_shard_param_infos", None) is None:
            continue
        owner, name = module, parameter
        for shared in flat._shared_param_infos:
            if shared.module is module and shared.param_name == parameter:
                owner, name = shared.prim_module, shared.prim_param_name
        for info, shape, part in zip(flat._param_infos, flat._shapes, flat._shard_param_infos, strict=True):
            if info.module is owner and info.param_name == name:
                if not part.in_shard:
                    return None
                return rows_and_columns(shape)[1], part.intra_param_start_idx, part.intra_param_end_idx + 1
    return None


__all__ = ["local_mask", "local_part", "problem_of", "whole"]
