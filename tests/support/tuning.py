"""A task that a small network learns in a second, for the tests of finetune."""

from __future__ import annotations

import copy
from typing import Any

import secateur
import torch
from secateur import Magnitude
from torch import Tensor, nn

_G = torch.Generator().manual_seed(5)
X = torch.randn(240, 1, 8, 8, generator=_G)
Y = (X.flatten(1) @ torch.randn(64, 5, generator=_G)).argmax(1)


def net(seed: int = 0, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(216, 5),
    ).eval()  # fmt: skip


def labelled(size: int = 20) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), Y.split(size), strict=True))


def plain(size: int = 20) -> list[Tensor]:
    return list(X.split(size))


def pruned(model: nn.Module, share: float = 0.7) -> nn.Module:
    student = copy.deepcopy(model)
    secateur.prune(student, Magnitude(share))
    return student


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert list(one) == list(two)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def tune(student: nn.Module, batches: Any, *args: Any, **more: Any) -> secateur.Report:
    return secateur.finetune(student, batches, *args, **{"steps": 40, "evaluations": 4, "progress": False, **more})
