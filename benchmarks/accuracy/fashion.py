"""Fashion-MNIST (Debian's package dataset-fashion-mnist) and two small networks that are trained on it once.

``resnet``: 174,000 weights, BatchNorm, residual connections. ``vgg``: 240,000 weights, no normalization at all.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path(os.environ.get("FASHION", "/usr/share/datasets/fashion-mnist"))
MEAN = 0.286
BATCH = 128
#: Epochs and the peak of the one-cycle learning rate.
RECIPES = {"resnet": (4, 0.15), "vgg": (4, 0.05)}


class Images(NamedTuple):
    """x [N, 1, 28, 28] float32, y [N] int64."""

    x: Tensor
    y: Tensor


def missing() -> str:
    """What is not at hand; empty if all is."""
    return "" if FOLDER.is_dir() else f"{FOLDER} (apt-get install dataset-fashion-mnist, or FASHION=folder)"


def load(part: str) -> Images:
    """``part``: "train" (60,000) or "t10k" (10,000)."""
    x = torch.from_numpy(_idx(f"{part}-images-idx3-ubyte.gz").copy()).float()[:, None] / 255 - MEAN
    return Images(x, torch.from_numpy(_idx(f"{part}-labels-idx1-ubyte.gz").copy()).long())


def _idx(name: str) -> Any:
    raw = gzip.decompress((FOLDER / name).read_bytes())
    dims = raw[3]
    shape = struct.unpack(">" + "I" * dims, raw[4 : 4 + 4 * dims])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


class Block(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, C: int, K: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(C, K, 3, stride, 1, bias=False), nn.BatchNorm2d(K)
        self.c2, self.b2 = nn.Conv2d(K, K, 3, 1, 1, bias=False), nn.BatchNorm2d(K)
        self.down = (
            nn.Sequential(nn.Conv2d(C, K, 1, stride, bias=False), nn.BatchNorm2d(K)) if C != K else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.down(x))


def resnet(width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def vgg(width: int = 24) -> nn.Sequential:
    W = width
    return nn.Sequential(
        nn.Conv2d(1, W, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(W, 2 * W, 3, 1, 1), nn.ReLU(), nn.Conv2d(2 * W, 2 * W, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2 * W, 4 * W, 3, 1, 1), nn.ReLU(), nn.Conv2d(4 * W, 4 * W, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(36 * W, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


NETWORKS = {"resnet": resnet, "vgg": vgg}


def trained(name: str, cache: Path) -> nn.Module:
    """The network ``name`` with its trained weights, from ``cache`` or trained now (minutes) and put there."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    kept = cache / f"fashion_{name}.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept))
        return model.eval()
    train(model, load("train"), *RECIPES[name])
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), kept)
    return model.eval()


def train(model: nn.Module, images: Images, epochs: int, peak: float) -> None:
    count = len(images.x)
    steps = epochs * (count // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(count)
        for start in range(0, count - BATCH + 1, BATCH):
            which = order[start : start + BATCH]
            x = images.x[which]
            if torch.rand(1) < 0.5:
                x = x.flip(3)
            optimizer.zero_grad()
            F.cross_entropy(model(x), images.y[which]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.x.split(500), images.y.split(500), strict=True)
    )
    return 100 * right / len(images.y)
