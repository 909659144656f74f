"""A small pruned network, what compiles it, and what must not be seen on it afterwards, for tests of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import secateur
import torch
from secateur import MeanStd
from torch import Tensor, nn

X = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    secateur.prune(model, MeanStd(sparsity=0.9), exclude=["0"])
    return model


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
