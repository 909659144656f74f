"""Memory: 10,000 calls, images of every size and models that go take none; where there is none, all stays as it was."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from secateur.nn import SparseLinear
from small_network import FUNCTIONS, Odd, X, network, snapshot, train_flags


@pytest.fixture
def fast(engine_wins: None) -> Any:
    return secateur.compile(network(), X, budget=1)


# ---- over time ----


def resident() -> int:
    """Bytes of memory that this process has now, once what is garbage is gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("one_thread")
def test_ten_thousand_calls_take_no_memory(fast: Any) -> None:
    layer = secateur.convert(network(), X)
    x = X[:, :, :8, :8].contiguous()
    with torch.no_grad():
        for _ in range(200):
            fast(x), layer(x)
        before = resident()
        for _ in range(10_000):
            fast(x), layer(x)
        grown = resident() - before
    assert grown < 2_000_000  # 200 bytes a call: the smallest tensor takes more


@pytest.mark.usefixtures("one_thread", "engine_wins")
def test_images_of_every_size_take_no_memory(fast: Any) -> None:
    """The last few plans are kept, and arenas up to the largest."""
    layer = SparseLinear.from_dense(network()[7])
    sizes = [(h, w) for h in range(5, 33, 3) for w in range(5, 33, 3)]

    def all_sizes() -> None:
        with torch.no_grad():
            for h, w in sizes:
                fast(X[:, :, :h, :w])
            layer(torch.randn(h, 384))

    for _ in range(3):  # the allocator settles: 8, 6, 3, 1 MB a round were measured, then less and less
        all_sizes()
    before = resident()
    for _ in range(2):
        all_sizes()
    # 100 sizes twice; a plan of this network has 80 kB of weights, so plans that stay would take 16 MB.
    assert resident() - before < 8_000_000


@pytest.mark.usefixtures("one_thread", "engine_wins")
def test_models_that_are_dropped_take_no_memory() -> None:
    model = network()
    x = X[:1, :, :12, :12]

    def cycle() -> None:
        secateur.compile(model, x, budget=0.05)(x)
        with torch.no_grad():
            secateur.convert(model)(x)

    for _ in range(10):
        cycle()
    before = resident()
    for _ in range(40):
        cycle()
    grown = (resident() - before) / 40
    assert grown < 30_000  # bytes a cycle: the model has 200 kB, its program as much


# ---- no memory ----


@pytest.mark.usefixtures("one_thread", "engine_wins")
@pytest.mark.parametrize(
    ("function", "where"),
    [
        ("compile", "secateur._host.Program.add"),
        ("compile", "secateur._host.Program.prepare"),
        ("compile", "secateur.engine.compiled.pack_parameters"),
        ("convert", "secateur.ops.mask_pack"),
        ("convert", "secateur._host.SparseLayer"),
    ],
)
def test_no_memory_leaves_the_model(function: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = train_flags(Odd())
    before = snapshot(model)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(MemoryError, match="no memory left"):
            FUNCTIONS[function](model)
        assert snapshot(model) == before
    FUNCTIONS[function](model)


@pytest.mark.usefixtures("one_thread")
def test_no_memory_in_refresh_leaves_the_compiled_model(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fast(X)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr("secateur.engine.compiled.pack_parameters", fail)
        with pytest.raises(MemoryError, match="no memory left"):
            fast.refresh(network())
    assert torch.equal(fast(X), expected)
    assert torch.equal(copy.deepcopy(fast.source)(X), fast.source(X))


LIMITED = """
import hashlib, resource, warnings, torch, secateur
from torch import nn
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 2000)).eval()  # 16 MB each
secateur.prune(model, secateur.MeanStd(sparsity=0.5))
x = torch.randn(1, 2000)
small = nn.Sequential(nn.Linear(30, 30), nn.ReLU()).eval()
secateur.compile(small, x[:, :30], budget=0.1), secateur.convert(small, x[:, :30])  # what is imported late
functions = {
    "compile": lambda: secateur.compile(model, x, budget=0.3),
    "convert": lambda: secateur.convert(model, x),
}
digest = lambda t: (t.data_ptr(), hashlib.sha1(t.numpy(force=True)).hexdigest())
state = lambda: [(name, digest(t)) for name, t in model.state_dict().items()]
before = state()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
for name, make in functions.items():
    failures = 0
    for more in (3, 9, 18, 27, 36, 54, 72):
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more * 2**20, unlimited[1]))
        try:
            made = make()
        except (MemoryError, RuntimeError, secateur.Error) as error:
            assert any(word in str(error) + repr(error) for word in ("memory", "MemoryError", "bad_alloc")), repr(error)
            failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
        made = None
        assert state() == before
        assert not model[0]._forward_hooks
    assert failures
    with torch.no_grad():
        torch.testing.assert_close(make()(x), model(x), rtol=1e-3, atol=1e-4)
    print(name, "failed", failures, "times", flush=True)
"""


@pytest.fixture(scope="module")
def limited() -> subprocess.CompletedProcess[str]:
    """One process for both functions."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=300,
        # What is freed goes back to the system: room that an earlier call left in the heap would hide the limit.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_limit_on_memory(limited: subprocess.CompletedProcess[str], function: str) -> None:
    assert f"{function} failed" in limited.stdout, limited.stderr
    assert limited.returncode == 0 or function == "compile", limited.stderr
