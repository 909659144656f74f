"""Threads that call one model while another gives it new weights: each call sees one version, never some of both.

Weights and inputs are small whole numbers and the versions differ by powers of two a layer, so every sum is exact
whatever its order: a result is bitwise that of one version, and layers of both would give a third power of two.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
from secateur.nn import SparseConv2d, SparseLinear, ThresholdReLU
from torch import Tensor, nn

CALLERS = 8


pytestmark = pytest.mark.usefixtures("one_thread")


def whole(*shape: int, zeros: float = 0.0) -> Tensor:
    return torch.randint(-2, 3, shape).float() * (torch.rand(shape) >= zeros)


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """The same network with every weight times ``factor``."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(factor)
    return other


def network(zeros: float, theta: bool = False, unknown: bool = False) -> nn.Module:
    """Convolutions, something of torch's between two segments if asked for, a head; no biases: linear in scale."""
    relu: Callable[[int], nn.Module] = (lambda c: ThresholdReLU(torch.zeros(c))) if theta else lambda c: nn.ReLU()
    middle: list[nn.Module] = [nn.ChannelShuffle(2), nn.LPPool2d(1, 1)] if unknown else []
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), relu(16), nn.Conv2d(16, 16, 3, padding=1, bias=False), relu(16),
        *middle, nn.Conv2d(16, 8, 1, bias=False), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(whole(*p.shape, zeros=zeros if p.dim() == 4 and p.shape[1] > 3 else 0))
    return model.eval()


def hammer(call: Callable[[], Tensor], change: Callable[[int], Any], changes: int) -> list[Tensor]:
    """The different results of 8 threads that call all the time while ``change`` is made so many times."""
    stop, seen, failed = threading.Event(), [], []
    lock = threading.Lock()

    def work() -> None:
        try:
            while not stop.is_set():
                y = call()
                with lock:
                    if not any(torch.equal(y, known) for known in seen):
                        seen.append(y)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        for i in range(changes):
            change(i)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    return seen


def assert_versions(seen: list[Tensor], versions: list[Tensor]) -> None:
    assert len(seen) <= len(versions)
    for y in seen:
        assert any(torch.equal(y, version) for version in versions)


NETWORKS = {
    "sparse": lambda: network(0.8),
    "dense": lambda: network(0.0),
    "thresholds": lambda: network(0.0, theta=True),
    "torch between segments": lambda: network(0.8, unknown=True),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


@pytest.mark.usefixtures("engine_wins")
def test_refresh_under_load(case: nn.Module) -> None:
    versions = [case, scaled(case, 2)]
    x = whole(2, 3, 12, 12)
    with torch.no_grad():
        expected = [version(x) for version in versions]
    assert torch.equal(expected[1], 16 * expected[0])
    assert bool(expected[0].any())
    fast = secateur.compile(case, x, budget=1)
    assert_versions(hammer(lambda: fast(x), lambda i: fast.refresh(versions[(i + 1) % 2]), 12), expected)
    assert torch.equal(fast(x), expected[0])  # the last one given


@pytest.mark.usefixtures("engine_wins")
def test_refresh_under_load_where_the_graph_depends_on_the_size() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network(0.8)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x if x.shape[2] > 11 else torch.cat([x, x], 2))  # type: ignore[no-any-return]

    model = Sized().eval()
    versions = [model, scaled(model, 2)]
    inputs = [whole(1, 3, size, 12) for size in (10, 12, 14)]
    with torch.no_grad():
        expected = [version(x) for version in versions for x in inputs]
    fast = secateur.compile(model, inputs[1], budget=1)
    turn = iter(range(10**9))
    seen = hammer(lambda: fast(inputs[next(turn) % 3]), lambda i: fast.refresh(versions[(i + 1) % 2]), 8)
    assert_versions(seen, expected)


def _layers() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "linear": lambda w: SparseLinear(w),
        "conv2d": lambda w: SparseConv2d(w, padding=1),
        "conv2d in blocks": _in_blocks,
        "undecided": _undecided,
    }


def _in_blocks(weight: Tensor) -> SparseConv2d:
    layer = SparseConv2d(weight, padding=1)
    layer.in_blocks = True
    return layer


def _undecided(weight: Tensor) -> nn.Module:
    plain = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
    plain.weight.data = weight
    return secateur.convert(plain)  # decides at its first call


@pytest.mark.parametrize("kind", _layers())
@torch.no_grad()
def test_converted_layers_that_load_under_load(kind: str) -> None:
    """Other zeros too: the mask, the nonzeros and their number all change."""
    make = _layers()[kind]
    shape = (24, 32) if kind == "linear" else (16, 16, 3, 3)
    weights = [whole(*shape, zeros=0.7), whole(*shape, zeros=0.9)]
    x = whole(3, 32) if kind == "linear" else whole(2, 16, 9, 9)
    plain = torch.nn.functional.linear if kind == "linear" else lambda x, w: torch.nn.functional.conv2d(x, w, padding=1)
    states = [SparseLinear(w).state_dict() if kind == "linear" else SparseConv2d(w).state_dict() for w in weights]
    expected = [plain(x, w) for w in weights]
    layer = make(weights[0])

    def call() -> Tensor:
        with torch.no_grad():  # each thread has a mode of its own
            y: Tensor = layer(x)
            return y

    assert_versions(hammer(call, lambda i: layer.load_state_dict(states[(i + 1) % 2]), 200), expected)
    assert torch.equal(call(), expected[0])


@torch.no_grad()
def test_the_first_calls_of_a_converted_model() -> None:
    model = network(0.8)
    x = whole(1, 3, 12, 12)
    for _ in range(5):
        fast = secateur.convert(model)  # without an example: every layer chooses at its first call
        start = threading.Barrier(CALLERS)
        results: list[Tensor] = []

        def work(fast: nn.Module = fast, start: threading.Barrier = start, results: list[Tensor] = results) -> None:
            start.wait()
            with torch.no_grad():
                results.append(fast(x))

        threads = [threading.Thread(target=work) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == CALLERS
        assert all(torch.equal(y, model(x)) for y in results)
        assert {row["kernel"] for row in fast.report.rows if row["layer"] in ("2", "4")} <= {"sparse", "dense"}


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.usefixtures("engine_wins")
@torch.no_grad()
def test_the_number_of_threads_between_calls(zeros: float) -> None:
    """Weights of any values here: an output's sum has one order, whatever the number of threads."""
    model = network(zeros)
    for p in model.parameters():
        p.mul_(torch.rand_like(p))
    for x in (torch.randn(1, 3, 20, 20), torch.randn(5, 3, 20, 20)):
        fast, converted = secateur.compile(model, x, budget=1), secateur.convert(model, x)
        for each in (fast, converted):
            if each is converted and any(r["kernel"] == "dense" for r in each.report.rows if r["sparsity"]):
                continue  # torch's own layers promise nothing of the kind
            expected = each(x)
            for threads in (1, 2, 3, 1, 3, 2):
                torch.set_num_threads(threads)
                assert torch.equal(each(x), expected)
