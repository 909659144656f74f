"""What the demo measures: zeros of activations, latencies side by side, bytes on disk."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import cpu
from ..._base import timing
from ..._base.errors import Error
from ..._base.version import installed_version
from ...checkpoint.tensor_files import write_plain
from ...nn import ThresholdReLU
from .data import Split


@torch.no_grad()
def activation_zeros(model: nn.Module, split: Split) -> dict[str, dict[str, float]]:
    """For each ThresholdReLU, and for ``"total"``: values, zeros, and the share of zeros in its output on ``split``."""
    counts: dict[str, list[int]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            have = counts.setdefault(name, [0, 0])
            have[0] += output.numel()
            have[1] += output.numel() - int(output.count_nonzero())

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, ThresholdReLU)]
    try:
        for images, _ in split.batches(250):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    counts["total"] = [sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())]
    return {name: {"values": v, "zeros": z, "sparsity": z / v} for name, (v, z) in counts.items() if v}


@torch.no_grad()
def check_same(reference: nn.Module, other: nn.Module, split: Split) -> float:
    """The largest relative difference between the outputs of two models that should compute the same.

    Relative to the largest logit. One digit in a hundred may differ by more than 1e-4: where an activation lies within
    rounding of its threshold, another order of summation puts it on the other side.

    Raises:
        Error: more differ.
    """
    a = torch.cat([reference(images) for images, _ in split.batches(64)])
    b = torch.cat([other(images) for images, _ in split.batches(64)])
    off = (a - b).abs().amax(1) / a.abs().max()  # [n]
    if float((off > 1e-4).float().mean()) > 0.01 or not bool(torch.isfinite(b).all()):
        raise Error(f"demo: the converted network must compute what the pruned one does, off by {float(off.max()):.2g}")
    return float(off.max())


def _spread(seconds: list[float], base: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    tenth = len(ordered) // 10
    faster = timing.Gain.of(base, seconds)
    return {
        "ms": 1e3 * statistics.median(ordered),
        "ms_min": 1e3 * ordered[0],
        "ms_p10": 1e3 * ordered[tenth],
        "ms_p90": 1e3 * ordered[-1 - tenth],
        "runs": len(ordered),
        "ratio": faster.ratio,
        "ratio_low": faster.low,
        "ratio_high": faster.high,
    }


def gained(taken: Mapping[str, float]) -> timing.Gain:
    """How many times as fast as the first a row of :func:`side_by_side` is."""
    return timing.Gain(taken["ratio"], taken["ratio_low"], taken["ratio_high"])


def gain(taken: Mapping[str, float]) -> str:
    """The same in words: one figure only where the rounds agree."""
    faster = gained(taken)
    if not faster.sure:
        return f"{faster.low:.1f}x to {faster.high:.1f}x, unsure"
    return f"{faster.ratio:.2f}x faster" if faster.ratio >= 1 else f"{1 / faster.ratio:.2f}x slower"


@torch.inference_mode()
def side_by_side(models: Mapping[str, nn.Module], x: Tensor, seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model on ``x``, in turn, for so many seconds and 20 rounds at least; the least, the
    tenths, and how many times as fast as the first model (with what the rounds leave possible)."""
    calls = [partial(model, x) for model in models.values()]
    taken = timing.interleave(calls, rounds=100_000, budget_s=seconds, least=20)
    return {name: _spread(t, taken[0]) for name, t in zip(models, taken, strict=True)}


@torch.inference_mode()
def layer_times(model: nn.Module, x: Tensor, names: list[str], runs: int = 30) -> dict[str, float]:
    """Median milliseconds inside each of the named layers during a forward pass."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    started: dict[str, float] = {}
    hooks = []
    for name in names:
        layer = model.get_submodule(name)

        def before(module: nn.Module, args: Any, name: str = name) -> None:
            started[name] = time.perf_counter()

        def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            taken[name].append(time.perf_counter() - started[name])

        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        for _ in range(runs):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: 1e3 * statistics.median(t) for name, t in taken.items() if t}


def dense_bytes(model: nn.Module, path: Path) -> int:
    """Write the plain state_dict as a safetensors file, and say how large it is."""
    write_plain(path, model.state_dict())
    return path.stat().st_size


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """Where a figure comes from."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a CPU that has no name there
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "instruction_set": cpu.current_isa(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "secateur": installed_version(),
        "system": f"{platform.system()} {platform.release()}",
        "command": " ".join(sys.argv),
    }
