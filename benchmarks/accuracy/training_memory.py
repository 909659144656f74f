"""Peak memory of a training step with ``ThresholdReLU`` beside ``nn.ReLU``.

    python benchmarks/accuracy/training_memory.py

The threshold-ReLU keeps one bit an element for its gradient where nn.ReLU keeps its output. Whether that shows depends
on what follows: a convolution keeps its input, which is that same output, for its own gradient. One process a case,
with glibc's allocator told to give freed tensors back at once; peak is resident memory over what the process had before
the step; "saved" is what autograd keeps between forward and backward, each memory counted once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("conv", "residual", "elementwise")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
ACTIVATIONS = ("nn.ReLU", "nn.ReLU(inplace=True)", "ThresholdReLU", "ThresholdReLU(inplace=True)")


def memory(key: str) -> float:
    """VmRSS or VmHWM in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise SystemExit("training_memory: needs /proc/self/status")


def build(kind: str, activation: str) -> Any:
    from secateur.nn import ThresholdReLU
    from torch import Tensor, nn

    def act() -> nn.Module:
        inplace = "inplace" in activation
        return ThresholdReLU(0.1, inplace=inplace) if activation.startswith("T") else nn.ReLU(inplace)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), act()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.norm(self.conv(x)))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = act()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + 0.5) + 0.1  # neither sum keeps anything for its gradient

    if kind == "conv":
        return nn.Sequential(*(m for _ in range(8) for m in (nn.Conv2d(64, 64, 3, padding=1), act())))
    if kind == "residual":
        return nn.Sequential(*(Residual() for _ in range(8)))
    return nn.Sequential(nn.Conv2d(64, 64, 1), *(Scale() for _ in range(16)))


def measure(kind: str, activation: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = build(kind, activation)
    x = torch.randn(16, 64, 56, 56)
    torch.nn.functional.conv2d(x[:1, :1], torch.randn(1, 1, 3, 3))  # oneDNN's own memory
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    saved: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, torch.nn.Parameter):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x).square().mean()
    loss.backward()
    return {"saved_mb": sum(saved.values()) / 2**20, "peak_mb": memory("VmHWM") - base}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    print("| network | activation | saved MB | peak MB |")
    print("|---|---|---:|---:|")
    for kind in MODELS:
        for activation in ACTIVATIONS:
            command, environment = [sys.executable, __file__, kind, activation], {**os.environ, **GIVE_BACK}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            row = json.loads(run.stdout.splitlines()[-1])
            print(f"| {kind} | {activation} | {row['saved_mb']:.0f} | {row['peak_mb']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
