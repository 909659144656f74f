"""Whether products are bfloat16: where the processor has them, and nothing in the student asks for exact values."""

from __future__ import annotations

import torch
from torch import nn

from .._base.errors import Error
from .example import CALLER
from .student import is_qat


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(bool(ask()) for ask in asked if ask is not None)
    return False


def chosen(net: nn.Module, device: torch.device, wanted: bool | None) -> bool:
    """``wanted``, if it can be had; for None, where it helps.

    Raises:
        Error: it is wanted where it cannot be.
    """
    if wanted not in (None, True, False):
        raise Error(f"{CALLER}: mixed_precision must be True, False or None, got {wanted!r}")
    if wanted is False:
        return False
    why = ""
    if is_qat(net):
        why = "a student of prepare_qat rounds to a grid that bfloat16 does not have"
    elif any(p.dtype == torch.float64 for p in net.parameters()):
        why = "the student is float64"
    elif not has_bfloat16(device):
        why = f"this {device.type} has no products of bfloat16"
    if why and wanted:
        raise Error(f"{CALLER}: mixed_precision must be False or None here, got True: {why}")
    return not why


__all__ = ["chosen", "has_bfloat16"]
