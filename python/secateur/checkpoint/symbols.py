"""Numbers of 1, 2, 4, 8 or 16 bits in bytes, the first in the lowest bits (16: the low byte first)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (1, 2, 4, 8, 16)


def size(count: int, width: int) -> int:
    """How many bytes ``count`` numbers take."""
    return -(-count * width // 8)


def pack(numbers: Tensor, width: int, fill: int = 0) -> Tensor:
    """Integers ``[n]`` below ``2 ** width`` as uint8 ``[size(n, width)]``; ``fill`` in the places left over."""
    if width == 16:
        return torch.stack((numbers & 255, numbers >> 8), 1).reshape(-1).to(torch.uint8)
    each = 8 // width
    rows = F.pad(numbers, (0, -len(numbers) % each), value=fill).reshape(-1, each)
    place = torch.tensor([2**bit for bit in range(0, 8, width)])
    return (rows * place).sum(1).to(torch.uint8)


def unpack(raw: Tensor, width: int) -> Tensor:
    """All numbers in the bytes, int64."""
    if width == 16:
        pairs = raw.reshape(-1, 2).to(torch.int64)
        return pairs[:, 0] | pairs[:, 1] << 8
    if width == 8:
        return raw.to(torch.int64)
    return ((raw.unsqueeze(1) >> torch.arange(0, 8, width, dtype=torch.uint8)) & (2**width - 1)).reshape(-1).long()
