"""Training and accuracy."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .data import Split, warped

BATCH = 64

#: of a model, on images and labels
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
#: given the optimizer and the number of steps, makes what is called after each step
AfterStep = Callable[[Optimizer, int], Callable[[], object]]


def steps(split: Split, epochs: int) -> int:
    return epochs * -(-len(split) // BATCH)


def labels_alone(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def fit(
    model: nn.Module,
    split: Split,
    epochs: int,
    rate: float,
    generator: torch.Generator,
    *,
    title: str,
    loss: Loss = labels_alone,
    after_step: AfterStep | None = None,
    progress: bool = True,
) -> nn.Module:
    """AdamW under a one-cycle learning rate that peaks at ``rate``; each digit warped a little. In place."""
    total = steps(split, epochs)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(total, 1), pct_start=0.15)
    then = after_step(optimizer, total) if after_step is not None else None
    model.train()
    # In a log, where a bar can't be redrawn, a line every few seconds is enough.
    often = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, desc=f"{title:<24}", disable=not progress, mininterval=often, unit="step") as bar:
        for _ in range(epochs):
            for images, labels in split.batches(BATCH, generator):
                x = warped(images, generator)
                value = loss(model, x, labels)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call,unused-ignore]
                optimizer.step()
                rates.step()
                if then is not None:
                    then()
                bar.update()
            bar.set_postfix(loss=f"{float(value.detach()):.3f}", refresh=False)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """The share of digits that are named right, 0 to 1."""
    right = 0
    for images, labels in split.batches(250):
        right += int((model(images).argmax(1) == labels).sum())
    return right / len(split)


@torch.no_grad()
def mean_loss(model: nn.Module, split: Split) -> float:
    """Mean cross-entropy: finer than accuracy, where 500 digits move it by steps of 0.2 points."""
    total = 0.0
    for images, labels in split.batches(250):
        total += float(F.cross_entropy(model(images), labels, reduction="sum"))
    return total / len(split)
