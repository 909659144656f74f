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
def _exact_convolutions() -> Iterator[None]:
    """A GPU's convolutions round to TF32 by default, and may sum gradients in any order: two ways to compute a network
    would differ in the third digit."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = before
