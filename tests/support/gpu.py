"""The device of tests/cuda: a GPU. SECATEUR_TEST_DEVICE=cpu tries the tests themselves where there is none.

SECATEUR_REQUIRE_GPU=1 makes an absent GPU an error; otherwise the tests skip and say why. What only CUDA has (streams,
graphs, capturable optimizers) is a plain call on the CPU, or skips: such a run finds mistakes of the tests, none of the
kernels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from secateur._base import library
from torch import Tensor

KIND = os.environ.get("SECATEUR_TEST_DEVICE", "cuda")
REQUIRED = os.environ.get("SECATEUR_REQUIRE_GPU") == "1"


def _missing() -> str:
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return "" if library.HAS_CUDA else "libsecateur_cuda.so was not built (no nvcc, or SECATEUR_CUDA=OFF)"


if KIND not in ("cuda", "cpu"):
    raise RuntimeError(f"SECATEUR_TEST_DEVICE must be cuda or cpu, got {KIND!r}")
if REQUIRED and KIND != "cuda":
    raise RuntimeError("SECATEUR_REQUIRE_GPU=1, but SECATEUR_TEST_DEVICE=cpu asks for the CPU")
if REQUIRED and _missing():
    raise RuntimeError(f"SECATEUR_REQUIRE_GPU=1, but {_missing()}")

ON_GPU = KIND == "cuda" and not _missing()
#: For tests that a CPU can try, and for those that only a GPU can.
on_device = pytest.mark.skipif(KIND == "cuda" and bool(_missing()), reason=_missing() or "a GPU is here")
on_gpu = pytest.mark.skipif(not ON_GPU, reason=_missing() or "needs a GPU, and SECATEUR_TEST_DEVICE=cpu asks for none")


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if KIND == "cuda" else torch.device("cpu")


def synchronize() -> None:
    if KIND == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def busy_stream() -> Iterator[None]:
    """A stream of its own that has a tenth of a second of work before whatever follows."""
    if KIND != "cuda":
        yield
        return
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles, at about 2 GHz
        yield
    stream.synchronize()


def captured(run: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """``run`` in a CUDA graph: a call that replays it, and the results that each replay writes again.

    Capturing itself computes nothing; ``run`` is called once before, so that modules and workspaces are there.
    """
    if KIND != "cuda":
        results = run()

        def call_again() -> None:
            for old, new in zip(results, run(), strict=True):
                if old is not new:
                    old.copy_(new)

        return call_again, results
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, results


def moved(value: Any, to: torch.device) -> Any:
    """An argument of an operator on ``to``; tensors are leaves again, and carry a gradient where they did."""
    if isinstance(value, Tensor):
        return value.detach().to(to).requires_grad_(value.requires_grad)
    return [moved(item, to) for item in value] if isinstance(value, list | tuple) else value
