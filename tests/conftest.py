"""What all tests share: the instruction set forced in turn, and a clean state around every test."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import secateur._base.timing
import secateur.cpu
import torch

#: Files of more than half a minute, the longest first: begun last, one would keep one process while others wait.
LONG = (
    "test_demo",
    "test_memory",
    "test_processes",
    "test_engine_torchvision",
    "test_distributed",
    "test_cuda_emulated",
    "test_cuda_on_the_cpu",
    "test_engine_benchmark",
    "test_activation_loss",
    "test_quantize",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of ``-n auto``. One more than there are cores: many a test waits for a process of its own."""
    return min(len(os.sched_getaffinity(0)) + 1, 4) if hasattr(os, "sched_getaffinity") else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


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


@pytest.fixture
def one_thread() -> None:
    """Of networks this small, threads only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture
def real_clock() -> None:
    """For a test that measures, where the others of its file have ``engine_wins``."""


@pytest.fixture
def engine_wins(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The engine is faster, whatever the clock says of a network this small."""
    if "real_clock" in request.fixturenames:
        return
    monkeypatch.setattr(secateur._base.timing, "interleave", lambda forms, *_, **__: [[1.0], [2.0]])


#: Under SECATEUR_PLANNER=random:SEED the C++ planner draws among the legal kernels (csrc/engine/plan/random_planner.h).
#: Then nothing is timed in Python either: engine or torch, sparse or dense, one kernel or another is drawn.
PLANNER = os.environ.get("SECATEUR_PLANNER", "")


@pytest.fixture(autouse=True)
def _chosen_at_random(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not PLANNER:
        return
    draw = random.Random(f"{PLANNER} {request.node.nodeid}").random

    def interleave(contenders: Sequence[Callable[[], object]], *_: Any, **more: Any) -> list[list[float]]:
        for run, ready in zip(contenders, more.get("prepare") or [None] * len(contenders), strict=True):
            if ready is not None:
                ready()
            run()  # once: a contender that fails must fail here, as it does by the clock
        return [[1e-3 + draw()] for _ in contenders]

    monkeypatch.setattr(secateur._base.timing, "interleave", interleave)


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
