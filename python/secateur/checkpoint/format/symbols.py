"""Numbers of 1, 2, 4, 8 or 16 bits in bytes, the first in the lowest bits (16: the low byte first).

Files are decoded with numpy, not torch: the pieces are small, and numpy starts no threads for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

WIDTHS = (1, 2, 4, 8, 16)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(flat: Tensor) -> npt.NDArray[Any]:
    """The elements of a contiguous tensor ``[n]`` on the CPU as signed integers of their size, in the same memory."""
    return flat.detach().view(_INTEGERS[flat.element_size()]).numpy()


def size(count: int, width: int) -> int:
    """How many bytes ``count`` numbers take."""
    return -(-count * width // 8)


def pack(numbers: Numbers, width: int, fill: int = 0) -> Bytes:
    """Integers ``[n]`` below ``2 ** width`` in ``size(n, width)`` bytes; ``fill`` in the places left over."""
    if width >= 8:
        return numbers.astype("<u2" if width == 16 else np.uint8).view(np.uint8)
    if width == 1:
        return np.packbits(numbers.astype(np.uint8), bitorder="little")
    each = 8 // width
    rows = np.pad(numbers.astype(np.uint8), (0, -len(numbers) % each), constant_values=fill).reshape(-1, each)
    packed: Bytes = np.bitwise_or.reduce(rows << np.arange(0, 8, width, dtype=np.uint8), axis=1)
    return packed


def unpack(raw: Bytes, width: int) -> npt.NDArray[Any]:
    """All numbers in the bytes, as unsigned integers."""
    if width >= 8:
        return raw.view("<u2") if width == 16 else raw
    if width == 1:
        return np.unpackbits(raw, bitorder="little")
    most = np.uint8(2**width - 1)
    numbers: Bytes = (raw[:, None] >> np.arange(0, 8, width, dtype=np.uint8)) & most
    return numbers.reshape(-1)
