"""A compiled model over time: forks, other processes, the interpreter's end, 10,000 calls, interrupts, no memory."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import secateur
import torch
import torch.multiprocessing as mp
from secateur import MeanStd, _fork, timing
from secateur._signals import held_signals
from secateur.nn import SparseLinear
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

PACKAGE = str(Path(secateur.__file__).parent)
X = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    secateur.prune(model, MeanStd(sparsity=0.9), exclude=["0"])
    return model


@pytest.fixture
def engine_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleave", lambda forms, *_: [[1.0], [2.0]])


@pytest.fixture
def fast(engine_wins: None) -> Any:
    return secateur.compile(network(), X, budget=1)


# ---- fork ----


def in_a_fork(work: Callable[[], Any], seconds: float = 60) -> None:
    """Run it in a forked child, where an exception or a hang fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of forks where there are threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the forked child was still at work after {seconds} s")


def test_a_fork_after_use_runs_on_one_thread(fast: Any) -> None:
    """torch's threads are used before the fork, and are not there after it: torch's own operators hang in the child."""
    torch.set_num_threads(3)
    expected = fast(X)
    layer = SparseLinear(torch.randn(512, 512) * (torch.rand(512, 512) > 0.9))
    wide = torch.randn(256, 512)
    linear = layer(wide)

    def child() -> None:
        assert torch.get_num_threads() == 3
        assert (layer(wide).numpy() == linear.numpy()).all()  # torch.equal would hang by now
        with pytest.warns(UserWarning, match=r"this process was forked, .* torch.set_num_threads\(1\) was called"):
            assert torch.equal(fast(X), expected)
        assert torch.get_num_threads() == 1
        assert torch.equal(fast(X), expected)  # said once
        assert not bool(torch.randn(400, 400).relu().lt(0).any())  # and torch itself runs

    in_a_fork(child)
    assert not _fork.forked
    assert torch.get_num_threads() == 3
    assert torch.equal(fast(X), expected)  # the parent goes on as it was


def test_a_fork_of_a_fork_and_one_that_has_one_thread(fast: Any) -> None:
    torch.set_num_threads(2)
    expected = fast(X)

    def child() -> None:
        torch.set_num_threads(1)
        assert torch.equal(fast(X), expected)  # no warning: warnings are errors here
        in_a_fork(lambda: torch.equal(fast(X), expected) or sys.exit(1))
        other = copy.deepcopy(fast)
        torch.testing.assert_close(other(X), expected, rtol=1e-4, atol=1e-5)  # built here

    in_a_fork(child)


@pytest.mark.usefixtures("engine_wins")
def test_forks_while_other_threads_call() -> None:
    """A lock that another thread holds at the moment of the fork would be held forever in the child. The graph is one
    for all image sizes: to trace another takes locks of torch's own, which nobody takes for a fork."""
    torch.set_num_threads(1)
    fast = secateur.compile(network()[:5], X, budget=0.5)
    layer = SparseLinear(torch.randn(64, 64) * (torch.rand(64, 64) > 0.9))
    x, rows = X[:1], torch.randn(2, 64)
    expected, linear = fast(x), layer(rows)
    stop = threading.Event()

    def work() -> None:
        size = 0
        while not stop.is_set():
            size = size % 12 + 1
            fast(X[:, :, : 8 + size])  # makes plans all the time
            layer(rows)
            secateur.nn.SparseLinear(torch.eye(8))(rows[:, :8])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):

            def child() -> None:
                assert torch.equal(fast(x), expected)
                assert torch.equal(layer(rows), linear)
                fast(X[:, :, :27])  # a plan of the child's own

            in_a_fork(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Scored(Dataset[Tensor]):
    """Samples that a compiled model makes in the worker."""

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.fast(X[i % 2 : i % 2 + 1])[0]
            return y


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_data_loader_whose_workers_call_the_model(fast: Any, method: str) -> None:
    """spawn sends a pickle, which is built anew in the worker: choices of tiles may differ, and so may the rounding."""
    torch.set_num_threads(2)
    expected = torch.cat([fast(X[:1]), fast(X[1:])]).repeat(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = DataLoader(Scored(fast), batch_size=2, num_workers=2, multiprocessing_context=method, timeout=100)
        got = torch.cat(list(loader))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    if method == "fork":
        assert torch.equal(got, expected)
    assert torch.equal(fast(X[:1]), expected[:1])  # in the parent, afterwards


def _spawned(rank: int, pickled: bytes, x: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(pickle.loads(pickled)(x), want, rtol=1e-4, atol=1e-5)


def test_spawn(fast: Any) -> None:
    mp.start_processes(_spawned, (pickle.dumps(fast), X, fast(X)), nprocs=1, start_method="spawn")


# ---- the interpreter's end ----

PROGRAM = """
import sys, threading, torch, secateur
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 10)).eval()
secateur.prune(model, secateur.MeanStd(sparsity=0.9))
x = torch.randn(2, 3, 16, 16)
fast, layers = secateur.compile(model, x, budget=1), secateur.convert(model)
with torch.no_grad():
    fast(x), layers(x)
    {how}
print("end")
"""
WAYS = {
    "live models": "pass",
    "in a cycle": "fast.__dict__['again'] = [fast, layers]; del fast, layers",
    # One that is amid a call aborts the process in torch alone too (the GIL is taken from under its C++).
    "a daemon thread that has called": """
    called = threading.Event()
    def work():
        fast(x)
        called.set()
        threading.Event().wait()
    threading.Thread(target=work, daemon=True).start()
    called.wait()
    """,
    "a thread that ends later": """
    import time
    def work():
        time.sleep(0.5)
        for _ in range(20): fast(x)
    threading.Thread(target=work).start()
    """,
    "SystemExit": "print('end'); sys.exit(0)",
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_the_interpreter_ends_quietly(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(how=how)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# ---- over time ----


def resident() -> int:
    """Bytes of memory that this process has now, once what is garbage is gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
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


@pytest.mark.usefixtures("_one_thread", "engine_wins")
def test_images_of_every_size_take_no_memory(fast: Any) -> None:
    """The last few plans are kept, and arenas up to the largest."""
    layer = SparseLinear.from_dense(network()[7])
    sizes = [(h, w) for h in range(5, 33, 3) for w in range(5, 33, 3)]

    def all_sizes() -> None:
        with torch.no_grad():
            for h, w in sizes:
                fast(X[:, :, :h, :w])
            layer(torch.randn(h, 384))

    for _ in range(4):  # the allocator settles: 8, 6, 3, 1 MB a round were measured, then less and less
        all_sizes()
    before = resident()
    for _ in range(3):
        all_sizes()
    # 100 sizes three times; a plan of this network has 80 kB of weights, so plans that stay would take 24 MB.
    assert resident() - before < 10_000_000


@pytest.mark.usefixtures("_one_thread", "engine_wins")
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


# ---- what is interrupted ----


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a compile or a convert must leave alone."""
    found: dict[str, Any] = {"modules": [(n, id(m), m.training) for n, m in model.named_modules()]}
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)]
        found[name] = (sorted(vars(module)), hooks, type(module._parameters), secateur.masks.masked_parameters(module))
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        found[f"tensor {name}"] = (
            id(t),
            t.data_ptr(),
            t.requires_grad,
            t.grad is None,
            t.clone().numpy(force=True).tobytes(),
        )
    return found


FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "compile": lambda model: secateur.compile(model, X[:1, :, :8, :8], budget=0.05),
    "convert": lambda model: secateur.convert(model, X[:1, :, :8, :8]),
}


class Odd(nn.Module):
    """No graph: compile runs it as it is, with hooks on its children for as long as it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y if float(y.sum()) < 1e9 else y + 1


def train_flags(model: nn.Module) -> nn.Module:
    model.train()
    model.get_submodule("body.3").eval()  # modes that differ
    return model


def interrupted(run: Callable[[], Any], at: int) -> tuple[int, bool]:
    """Raise a KeyboardInterrupt at the ``at``-th line of the package; how many lines were run, and if it came out."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return lines, True
    finally:
        sys.settrace(before)
    return lines, False


@pytest.mark.usefixtures("_one_thread", "engine_wins")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_interrupt_at_any_line(function: str) -> None:
    model = train_flags(Odd())
    run = lambda: FUNCTIONS[function](model)  # noqa: E731
    before, module_call = snapshot(model), nn.Module.__call__
    run()
    assert snapshot(model) == before
    total, _ = interrupted(run, -1)
    assert total > 300
    for i in range(12):
        _, out = interrupted(run, 1 + i * total // 13)
        assert out
        assert snapshot(model) == before
        assert nn.Module.__call__ is module_call
        assert torch.is_grad_enabled()
    with torch.no_grad():
        torch.testing.assert_close(run().eval()(X[:1]), model.eval()(X[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one in a weakref's callback is lost
@pytest.mark.usefixtures("_one_thread", "engine_wins")
def test_an_interrupt_by_the_clock() -> None:
    """Wherever a signal comes, in torch's own code too."""
    model = train_flags(Odd())
    FUNCTIONS["compile"](model)  # imports what is imported late: a file left open there is Python's own
    before, module_call = snapshot(model), nn.Module.__call__

    def ring(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, ring)
    hits = 0
    try:
        for i in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 * (i + 1))
                FUNCTIONS["compile"](model)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            assert snapshot(model) == before
            assert nn.Module.__call__ is module_call
            assert getattr(torch.fx._symbolic_trace, "CURRENT_PATCHER", None) is None
            assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert hits >= 5
    FUNCTIONS["compile"](model)


def test_signals_are_held_while_fx_patches_modules() -> None:
    """One is held until the block is left; a second one is not, so that a block without an end can be left."""
    seen = []
    old = signal.signal(signal.SIGUSR1, lambda *_: seen.append("handler"))
    handler = signal.getsignal(signal.SIGUSR1)
    try:
        with held_signals():
            signal.raise_signal(signal.SIGUSR1)
            seen.append("block")
        assert seen == ["block", "handler"]
        assert signal.getsignal(signal.SIGUSR1) is handler
        with held_signals():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            seen.append("end")
        assert seen == ["block", "handler", "handler", "end", "handler"]

        def interrupted_block() -> None:
            with held_signals():
                signal.raise_signal(signal.SIGINT)
                seen.append("whole")

        interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores them
        try:
            with pytest.raises(KeyboardInterrupt):
                interrupted_block()
            assert seen[-1] == "whole"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, interrupts)
    finally:
        signal.signal(signal.SIGUSR1, old)


@pytest.mark.usefixtures("_one_thread")
def test_an_interrupted_refresh_leaves_the_compiled_model(fast: Any) -> None:
    expected, other = fast(X), network()
    with torch.no_grad():
        other[7].weight.mul_(2)
    total, _ = interrupted(lambda: copy.deepcopy(fast).refresh(other), -1)
    for i in range(8):
        interrupted(lambda: fast.refresh(other), 1 + i * total // 17)
        assert torch.equal(fast(X), expected)
    torch.testing.assert_close(fast.refresh(other)(X), other(X), rtol=1e-4, atol=1e-5)


# ---- no memory ----


@pytest.mark.usefixtures("_one_thread", "engine_wins")
@pytest.mark.parametrize(
    ("function", "where"),
    [
        ("compile", "secateur._host.Program.conv2d"),
        ("compile", "secateur._host.Program.prepare"),
        ("compile", "secateur.engine.compiled.own"),
        ("convert", "secateur.ops.mask_pack"),
        ("convert", "secateur._host.Plan"),
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


@pytest.mark.usefixtures("_one_thread")
def test_no_memory_in_refresh_leaves_the_compiled_model(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fast(X)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr("secateur.engine.compiled.own", fail)
        with pytest.raises(MemoryError, match="no memory left"):
            fast.refresh(network())
    assert torch.equal(fast(X), expected)
    assert torch.equal(copy.deepcopy(fast.source)(X), fast.source(X))


LIMITED = """
import hashlib, resource, sys, warnings, torch, secateur
from torch import nn
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 3000)).eval()  # 36 MB each
secateur.prune(model, secateur.MeanStd(sparsity=0.5))
x = torch.randn(1, 3000)
small = nn.Sequential(nn.Linear(30, 30), nn.ReLU()).eval()
secateur.compile(small, x[:, :30], budget=0.1), secateur.convert(small, x[:, :30])  # what is imported late
make = {
    "compile": lambda: secateur.compile(model, x, budget=0.3),
    "convert": lambda: secateur.convert(model, x),
}[sys.argv[1]]
digest = lambda t: (t.data_ptr(), hashlib.sha1(t.numpy(force=True)).hexdigest())
state = lambda: [(name, digest(t)) for name, t in model.state_dict().items()]
before, failures = state(), 0
unlimited = resource.getrlimit(resource.RLIMIT_AS)
for more in (5, 20, 40, 60, 80, 120, 160):
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
print("failed", failures, "times")
"""


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_limit_on_memory(function: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, function], capture_output=True, text=True, timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("failed")
