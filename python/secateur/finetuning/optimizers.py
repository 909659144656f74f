"""The optimizer: the default, the caller's own, and which parameters get which decay and rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .._base.checks import checked_number
from .._base.errors import Error
from ..nn.trainable_threshold import TrainableThresholdReLU
from .example import CALLER

#: Of the default AdamW: the highest learning rate, and the decay of weights. Pruned networks want the rates of
#: training, not of fine-tuning (Renda, Frankle and Carbin, "Comparing Rewinding and Fine-tuning in Neural Network
#: Pruning", ICLR 2020).
RATE, DECAY = 2e-3, 1e-4
#: How much faster thresholds learn.
THRESHOLDS = 10.0
#: The share of the run in which the rate rises, and what it starts with.
WARM_UP, FIRST = 0.05, 0.01

Maker = Callable[..., Optimizer]


def rate_at(progress: float) -> float:
    """The share of the highest rate at a share of the run: a linear rise, then half a cosine to 0."""
    if progress < WARM_UP:
        return FIRST + (1 - FIRST) * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min((progress - WARM_UP) / (1 - WARM_UP), 1.0)))


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Weights; biases and what normalizes, which do not decay; thresholds, which do not either and learn faster."""
    thetas = {id(m.theta) for m in net.modules() if isinstance(m, TrainableThresholdReLU)}
    trainable = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() > 1 and id(p) not in thetas]},
        {"params": [p for p in trainable if p.dim() <= 1 and id(p) not in thetas], "weight_decay": 0.0},
        {"params": [p for p in trainable if id(p) in thetas], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Rates:
    """An optimizer whose learning rates follow the schedule; at the end they are what they were."""

    def __init__(self, net: nn.Module, optimizer: Any, lr: float | None) -> None:
        if lr is not None:
            lr = checked_number(CALLER, "lr", lr, 0.0, float("inf"))
        self.given = isinstance(optimizer, Optimizer)
        if isinstance(optimizer, Optimizer):
            if lr is not None:
                raise Error(
                    f"{CALLER}: lr must be None where optimizer is an Optimizer, whose rates are taken, got {lr}"
                )
            self.optimizer = optimizer
        else:
            self.optimizer = _made(net, optimizer, lr)
        self.unheld = _check(self.optimizer, net)
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def peak(self) -> float:
        return self.peaks[0]

    def set(self, progress: float) -> None:
        self._write([peak * rate_at(progress) for peak in self.peaks])

    def restore(self) -> None:
        self._write(self.peaks)

    def _write(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):  # of capturable and compiled optimizers
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _made(net: nn.Module, maker: Any, lr: float | None) -> Optimizer:
    groups = parameter_groups(net)
    if maker is None:
        made: Any = torch.optim.AdamW(groups, lr=RATE if lr is None else lr, weight_decay=DECAY)
    elif callable(maker):
        made = maker(groups) if lr is None else maker(groups, lr=lr)
    else:
        raise Error(
            f"{CALLER}: optimizer must be a torch Optimizer, a function that makes one of parameters, or None, got "
            f"{type(maker).__name__}"
        )
    if not isinstance(made, Optimizer):
        raise Error(f"{CALLER}: optimizer must make a torch Optimizer, got {type(made).__name__}")
    thetas = {id(m.theta) for m in net.modules() if isinstance(m, TrainableThresholdReLU)}
    for group in made.param_groups:
        if any(id(p) in thetas for p in group["params"]):
            group["lr"] = group["lr"] * THRESHOLDS
    return made


def _check(optimizer: Optimizer, net: nn.Module) -> list[str]:
    """The names of parameters that require grad and are not the optimizer's."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise Error(f"{CALLER}: optimizer must make a step of one gradient, got LBFGS, which asks for the loss again")
    if not all("lr" in group for group in optimizer.param_groups):
        raise Error(f"{CALLER}: optimizer must have a learning rate lr in each group, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    unheld = [name for name, p in trainable.items() if id(p) not in held]
    if len(unheld) == len(trainable):
        raise Error(f"{CALLER}: optimizer must hold parameters of student that require grad, it holds none of them")
    if held - {id(p) for p in net.parameters()}:
        raise Error(f"{CALLER}: optimizer must hold parameters of student alone, it holds others")
    return unheld


__all__ = ["Rates", "parameter_groups", "rate_at"]
