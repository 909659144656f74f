"""What is no ordinary tensor: one whose values do not lie in memory, number by number, in the shape that it says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .._base.errors import Error
from .._base.tensors import is_plain


def kind_of_tensor(value: Tensor) -> str | None:
    """What a tensor is that is no ordinary one: sparse, nested, quantized, on the meta device, spread or wrapped."""
    if is_lazy(value):
        return "one that is not initialized"
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_plain(value):
        return type(value).__name__
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"a tensor in the layout {value.layout}"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype})"
    if value.device.type == "meta":
        return "meta, without values"
    return None


def check_ordinary(key: str, value: Tensor, caller: str) -> None:
    """
    Raises:
        Error: ``value`` is no ordinary tensor.
    """
    if (kind := kind_of_tensor(value)) is not None:
        raise Error(f"{caller}: {key} must be an ordinary tensor with values, got {kind}")


def is_stored(value: Tensor) -> bool:
    """Whether an ordinary tensor's memory holds as many numbers as its shape says: an expanded view's does not, and a
    file of some bytes can claim terabytes by one."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def stored(value: Tensor) -> Tensor:
    """The numbers that are there: the tensor itself, or all that lies in its memory where it claims more."""
    if is_stored(value):
        return value
    count = value.untyped_storage().nbytes() // value.element_size()
    return value.detach().as_strided((count,), (1,), 0)
