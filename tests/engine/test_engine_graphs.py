"""The graph front on random graphs, in float64: a wrong fusion, order or alias differs by far more than rounding.

The networks mix what the engine knows with what it does not, in-place writes, views that show them, values that several
readers have, and branches. The plain-torch twin runs the segments, so nothing here depends on the kernels.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from secateur.engine.backends.reference import REFERENCE
from secateur.engine.compiled import CompiledModel, _compile
from secateur.engine.lowering.segment import Decision, Segment
from torch import Tensor, nn

C = 6  # channels of every value: whatever is drawn fits whatever else


@pytest.fixture(autouse=True)
def engine_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment in the twin: what is compared is the front, and not with itself."""
    monkeypatch.setattr(Segment, "_measure", lambda self, args, budget_s: Decision(True, "forced", 1.0, 2.0))


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def _gate(x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    return x * torch.sigmoid(x.mean((2, 3)).view(b, c)).view(b, c, 1, 1).expand_as(x)


def _halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, F.relu(a)], 1)


def _written_half(x: Tensor) -> Tensor:
    a, b = x.split(C // 2, 1)
    a.mul_(0.5)
    return x + torch.cat([b, a], 1)


def _written_view(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    x.add_(1.0)
    return x * 0.5 + flat.reshape(x.shape)


def _written_copy(x: Tensor) -> Tensor:
    y = x.clone()
    y.clamp_(min=0)
    return y - x


def _iadd(x: Tensor) -> Tensor:
    x += 0.25
    return x


UNARY: list[Callable[[Tensor], Tensor]] = [
    F.relu, lambda x: F.relu(x, inplace=True), torch.relu_, F.hardswish, lambda x: x * torch.sigmoid(x), torch.tanh,
    lambda x: F.leaky_relu(x, 0.1), lambda x: x.clamp(-0.5, 0.5), lambda x: x * 0.5 + 1, lambda x: 1 - x, _iadd,
    lambda x: x.mul_(0.75), lambda x: -x, _shuffle, _gate, _halves, _written_half, _written_view, _written_copy,
    lambda x: F.dropout(x, 0.5, training=False), lambda x: x.contiguous(), lambda x: x[:, torch.arange(C).flip(0)],
    lambda x: x[:, 2:5].repeat(1, 2, 1, 1), lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1),
    lambda x: x.softmax(1), lambda x: x.cumsum(2), lambda x: x.detach(), lambda x: F.adaptive_avg_pool2d(x, 1) + x,
    lambda x: F.channel_shuffle(x, 3), lambda x: x.transpose(2, 3).transpose(2, 3),
    lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), lambda x: x.add(x.amax((2, 3), keepdim=True)),
]  # fmt: skip


def _add_(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def _mul_unused(a: Tensor, b: Tensor) -> Tensor:
    a.mul_(b.sigmoid())  # the result is read through a
    return a + b


BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.add, lambda a, b: a * b.sigmoid(), lambda a, b: a - b, _add_, _mul_unused,
    lambda a, b: F.relu(a + b), lambda a, b: torch.add(a, b, alpha=-0.5), torch.maximum,
    lambda a, b: a * F.adaptive_avg_pool2d(b, 1), lambda a, b: torch.cat([a[:, ::2], b[:, 1::2]], 1),
]  # fmt: skip


def _layer() -> nn.Module:
    choice = random.randrange(6)
    if choice == 0:
        return nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True))
    if choice == 1:
        return nn.Conv2d(C, C, 1)
    if choice == 2:
        return nn.Sequential(nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False), nn.BatchNorm2d(C))
    if choice == 3:
        return nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(C, C, (4, 2)), nn.ReLU6(inplace=True))
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(inplace=bool(choice % 2)))


class RandomNetwork(nn.Module):
    """A list of steps over all values made so far; later ones are likelier to be read."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random.seed(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.program: list[tuple[str, int, tuple[int, ...]]] = []
        count = 1
        for _ in range(random.randint(4, 16)):
            kind = random.choices(["layer", "unary", "binary"], [4, 3, 3])[0]
            reads = tuple(max(0, count - 1 - int(random.expovariate(0.7))) for _ in range(2))
            if kind == "layer":
                self.layers.append(_layer())
                which = len(self.layers) - 1
            else:
                which = random.randrange(len(UNARY if kind == "unary" else BINARY))
            self.program.append((kind, which, reads))
            count += 1
        self.outputs = sorted({count - 1, *(random.randrange(count) for _ in range(2))})
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(C)
                module.running_var = torch.rand(C) + 0.5
        for p in self.parameters():
            if p.dim() > 1:
                with torch.no_grad():
                    p *= torch.rand_like(p) > 0.6
        self.head = nn.Linear(C, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for kind, which, (a, b) in self.program:
            if kind == "layer":
                values.append(self.layers[which](values[a]))
            elif kind == "unary":
                values.append(UNARY[which](values[a]))
            else:
                values.append(BINARY[which](values[a], values[b]))
        return (*(values[i] for i in self.outputs), self.head(values[-1].mean((2, 3))))


def _assert_same(fast: Callable[..., tuple[Tensor, ...]], model: nn.Module, x: Tensor) -> None:
    ours, theirs = x.clone(), x.clone()
    with torch.no_grad():
        expected = model(theirs)
    got = fast(ours)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)  # written where the model writes it


@functools.cache
def random_network(seed: int) -> tuple[nn.Module, Tensor, CompiledModel]:
    """The network, an example and what it is compiled to: once for both tests."""
    model = RandomNetwork(seed)
    x = torch.randn(2, C, 7, 5, dtype=torch.float64)
    return model, x, _compile(model, x, 1.0, REFERENCE)


@pytest.mark.parametrize("seed", range(150))
def test_random_networks(seed: int) -> None:
    model, x, fast = random_network(seed)
    _assert_same(fast, model, x)
    _assert_same(fast, model, torch.randn(3, C, 5, 8, dtype=torch.float64))


def test_the_random_networks_reach_what_they_are_for() -> None:
    """Most of them run in the engine, many in several segments, and some hold writes that pin values to torch."""
    several = pinned = layers = inside = 0
    for seed in range(150):
        fast = random_network(seed)[2]
        segments = {row["segment"] for row in fast.report if row["segment"]}
        several += len(segments) > 1
        pinned += any("in place" in row["why"] or "writes into" in row["why"] for row in fast.report)
        heavy = [row for row in fast.report if row["kind"] in ("conv2d", "Conv2d", "linear", "Linear")]
        layers += len(heavy)
        inside += sum(row["why"].startswith("the twin") for row in heavy)
    assert several > 30
    assert pinned > 15
    assert inside > 0.8 * layers


def test_what_a_forward_writes_into_its_argument_is_written() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(C, C, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.conv(x)
            x += y  # torch.fx makes this x + y
            return (self.conv(F.relu(y)),)

    model = Adds().double().eval()
    x = torch.randn(2, C, 5, 5, dtype=torch.float64)
    _assert_same(_compile(model, x, 1.0, REFERENCE), model, x)


def test_a_forward_that_counts_its_calls_goes_on_counting() -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(C, C, 1)
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x) * self.calls

    model = nn.Sequential(nn.Conv2d(C, C, 1), Counts(), nn.Conv2d(C, C, 1)).double().eval()
    x = torch.randn(2, C, 5, 5, dtype=torch.float64)
    fast = _compile(model, x, 1.0, REFERENCE)
    assert float(model[1].calls) == 0
    assert "1" in {row["layer"] for row in fast.report if "its forward writes calls" in row["why"]}
    assert float(fast.state_dict()["1.calls"]) == 0  # the example's calls do not count
    with torch.no_grad():
        for calls in (1, 2, 3):
            torch.testing.assert_close(fast(x), model(x))
            assert float(fast.state_dict()["1.calls"]) == float(model[1].calls) == calls


def test_other_threads_run_their_models_while_one_is_traced() -> None:
    """torch.fx replaces nn.Module.__call__ for the whole process while it traces."""
    model = RandomNetwork(3)
    plain = nn.Sequential(nn.Conv2d(C, C, 1), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, 2, 1)))
    plain.double().eval()
    x = torch.randn(2, C, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(x)
    done = threading.Event()

    def run() -> int:
        count = 0
        with torch.no_grad():
            while not done.is_set():
                assert torch.equal(plain(x), expected)
                count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(run) for _ in range(2)]
        try:
            for _ in range(10):
                _assert_same(_compile(model, x, 1.0, REFERENCE), model, x)
        finally:
            done.set()
        assert all(call.result() > 5 for call in calls)
