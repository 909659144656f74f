"""The operators on the device that tests/support/gpu.py has chosen."""

from __future__ import annotations

from collections.abc import Iterator

import gpu as chosen
import pytest
import torch
from cuda_cases import Target


@pytest.fixture
def gpu() -> Target:
    return Target(torch.ops.secateur, chosen.device())


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """Convolutions of a GPU round to TF32 by default: two ways to compute one network would differ in the third digit."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
