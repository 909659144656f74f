"""Interrupts while a model is compiled, converted or refreshed: it stays as it was, and so does torch."""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import secateur
import torch
from secateur._base.signals import held_signals
from small_network import FUNCTIONS, Odd, X, network, snapshot, train_flags
from torch import nn

PACKAGE = str(Path(secateur.__file__).parent)


@pytest.fixture
def fast(engine_wins: None) -> Any:
    return secateur.compile(network(), X, budget=1)


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


@pytest.mark.usefixtures("one_thread", "engine_wins")
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
@pytest.mark.usefixtures("one_thread", "engine_wins")
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


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_refresh_leaves_the_compiled_model(fast: Any) -> None:
    expected, other = fast(X), network()
    with torch.no_grad():
        other[7].weight.mul_(2)
    total, _ = interrupted(lambda: copy.deepcopy(fast).refresh(other), -1)
    for i in range(8):
        interrupted(lambda: fast.refresh(other), 1 + i * total // 17)
        assert torch.equal(fast(X), expected)
    torch.testing.assert_close(fast.refresh(other)(X), other(X), rtol=1e-4, atol=1e-5)
