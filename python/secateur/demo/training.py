"""Fit, and count what is right."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from ..data import Split, shifted

BATCH = 64

#: given the optimizer and the number of steps, makes what is called after each step
AfterStep = Callable[[Optimizer, int], Callable[[], object]]


def steps(split: Split, epochs: int) -> int:
    return epochs * -(-len(split) // BATCH)


def fit(
    model: nn.Module,
    split: Split,
    epochs: int,
    rate: float,
    generator: torch.Generator,
    *,
    title: str,
    after_step: AfterStep | None = None,
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> nn.Module:
    """AdamW under a one-cycle learning rate that peaks at ``rate``; digits shifted by up to two pixels. In place.

    ``teacher``: half of the loss asks for the teacher's answers (Hinton et al., "Distilling the knowledge in a neural
    network", 2015): what the trained network knows is the best guide for what is left of it.
    """
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
                x = shifted(images, generator)
                loss = _loss(model(x), labels, None if teacher is None else _answers(teacher, x))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rates.step()
                if then is not None:
                    then()
                bar.update()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    return model.eval()


def _answers(teacher: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = teacher(x)
    return answer


def _loss(logits: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
    right = F.cross_entropy(logits, labels)
    if answers is None:
        return right
    heat = 2.0
    alike = F.kl_div(
        F.log_softmax(logits / heat, 1), F.log_softmax(answers / heat, 1), log_target=True, reduction="batchmean"
    )
    return 0.5 * right + 0.5 * heat * heat * alike


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
