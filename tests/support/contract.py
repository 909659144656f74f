"""What the tests of docs/contract.md share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

X = torch.rand(2, 3, 12, 12)


def conv(a: int, b: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2)


def near(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
