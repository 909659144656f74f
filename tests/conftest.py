"""What all tests share: the instruction set forced in turn, and a clean state around every test."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import secateur.cpu
import torch


@pytest.fixture(params=secateur.cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this CPU in turn, forced, with proof that it is the one that runs."""
    with secateur.cpu.use_isa(request.param):
        assert secateur.cpu.current_isa() == request.param
        yield request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """A fixed seed for every test; seeds, thread count, gradient mode and default dtype as they were afterwards."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (code under test may use the global generator)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.random.set_rng_state(states[2])
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    assert torch.is_grad_enabled(), "a test left gradients off"
