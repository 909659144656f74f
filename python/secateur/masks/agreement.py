"""Whether a mask still has the bits that it was given, and what it must be where it has not.

Whoever averages a model's values (an exponential moving average of a state_dict, say) treats a mask's bytes as numbers:
``d * m + (1 - d) * m`` is ``m - 1`` for many of them, and other weights are pruned. So a mask is known by its digest;
one with other bits than it was given is held against its weights, and one that prunes living weights is never used.
"""

from __future__ import annotations

import warnings
import zlib

import torch
from torch import Tensor

from .. import ops
from ..ops.packing import mask_shape

_MENDED = (
    "secateur: the bits of a mask were not those that it was given, and would have zeroed weights that live (an "
    "average of masks?): it was made anew from the weights that are not zero"
)
_ZEROED = (
    "secateur: weights in a state_dict were not zero where its mask, which is the model's own, prunes them: they are "
    "zero now (to keep them, take the mask away before: secateur.strip)"
)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place, as far as torch counts."""
    return -1 if tensor.is_inference() else tensor._version


def readable(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be looked at here: it is an ordinary one, and no CUDA graph is recorded."""
    if type(tensor.data) is not Tensor or tensor.is_nested or tensor.layout != torch.strided:
        return False
    if tensor.device.type == "meta":
        return False
    return tensor.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def digest(mask: Tensor) -> int | None:
    """A number for the bits of a mask; None where they cannot be read."""
    return zlib.crc32(mask.detach().contiguous().numpy(force=True).data) if readable(mask) else None


def prunes_living(mask: Tensor, weight: Tensor) -> bool:
    """Whether a packed mask has a 0 for a weight that is not zero. What cannot be compared is said to agree."""
    if not readable(weight) or not readable(mask) or tuple(mask.shape) != mask_shape(weight.shape):
        return False
    value = weight.detach()
    return bool(((value != 0) & ~ops.mask_unpack(mask.to(value.device), value.shape)).any())


def living(weight: Tensor) -> Tensor:
    """The packed mask of the weights that are not zero."""
    return ops.mask_pack(weight.detach() != 0)


def say_mended() -> None:
    warnings.warn(_MENDED, UserWarning, stacklevel=4)


def say_zeroed() -> None:
    warnings.warn(_ZEROED, UserWarning, stacklevel=4)


def bytes_of(values: Tensor) -> Tensor:
    """The bytes of a mask that went through arithmetic in another dtype."""
    if values.dtype == torch.uint8:
        return values
    return values.round().clamp(0, 255).to(torch.uint8) if values.is_floating_point() else values.to(torch.uint8)


def fitting(mask: Tensor, weight: object) -> Tensor:
    """A mask that was read beside its weight: itself, or one made from the weight where it would prune what lives."""
    mask = bytes_of(mask.detach())
    if isinstance(weight, Tensor) and prunes_living(mask, weight):
        say_mended()
        return living(weight).to(mask.device)
    return mask
