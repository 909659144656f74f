"""A compiled model in more than one process: forks, DataLoader workers, spawn, the interpreter's end."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import secateur
import torch
import torch.multiprocessing as mp
from secateur._base import fork
from secateur.nn import SparseLinear
from small_network import X, network
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


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
    assert not fork.forked
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
                # The first plan was timed; one made again takes the cost model's kernels: another order of sums.
                torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
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
        workers = 2 if method == "fork" else 1  # a spawned one imports everything again
        loader = DataLoader(Scored(fast), 2, num_workers=workers, multiprocessing_context=method, timeout=100)
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
