"""What tests of secateur.compile share: a network, what it was compiled to, and how near its results are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import secateur
import torch
from secateur._base import timing
from secateur.engine import CompiledModel
from torch import Tensor, nn

#: What the engine calls its kernels of bytes. Which one a layer gets, its zeros and the clock decide.
INT8_KERNELS = {"int8", "int8 dense", "int8 depthwise"}


def set_clock(monkeypatch: pytest.MonkeyPatch, engine: float, plain: float) -> None:
    monkeypatch.setattr(timing, "interleave", lambda forms, *_, **__: [[engine * 1e-3], [plain * 1e-3]])


def compiled(model: nn.Module, *example: Any, budget: float = 0.2) -> CompiledModel:
    return secateur.compile(model, example if len(example) != 1 else example[0], budget=budget)


def in_torch(fast: CompiledModel) -> list[str]:
    """What the engine leaves to torch."""
    return [row["layer"] for row in fast.report if row["kernel"] == "torch"]


def kinds(fast: CompiledModel) -> list[str]:
    """The engine's steps but for those that bring images into planes and out of them."""
    return [
        row["kind"] for row in fast.report
        if row["kernel"] != "torch" and row["kind"] not in ("input", "output", "repack", "halo")
    ]  # fmt: skip


def assert_near(got: Tensor, model: nn.Module, *inputs: Tensor) -> None:
    """Four times as far from float64 as torch's float32, but for 16 roundings (2^-24) of the largest value."""
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(*[x.double() if x.is_floating_point() else x for x in inputs])
        plain = copy.deepcopy(model).eval()(*[x.clone() for x in inputs])
    assert got.shape == plain.shape
    assert got.dtype == plain.dtype
    bound = 4 * (plain.double() - exact).abs().max() + 2.0**-20 * max(float(exact.abs().max()), 1e-3)
    assert float((got.double() - exact).abs().max()) <= float(bound)


def prune(model: nn.Module, zeros: float = 0.7) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= torch.rand_like(p) >= zeros
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(-1, 2)
                    module.bias.normal_()
    return model.eval()


def net() -> nn.Module:
    return prune(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip


X = torch.linspace(-1, 1, 2 * 3 * 10 * 9).reshape(2, 3, 10, 9)


def with_state(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return model
