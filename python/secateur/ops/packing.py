"""The shape of a packed mask."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """The 2-d view under which a tensor of this shape is packed: ``(shape[0], prod(shape[1:]))``."""
    if len(shape) == 0:
        return 1, 1
    return int(shape[0]), math.prod(int(s) for s in shape[1:])


def mask_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The packed mask of a tensor of this shape: ``(rows, bytes of a row)``."""
    rows, columns = rows_and_columns(shape)
    return rows, -(-columns // 8)
