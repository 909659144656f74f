"""Logits and labels: checked, and the two losses that are made of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import Error

#: The label that torch's cross entropy leaves out, too.
IGNORED = -100


def wide(value: Tensor) -> Tensor:
    """Half precision as float32: sums and T^2 overflow in it."""
    return value if value.dtype == torch.float64 else value.to(torch.float32)


def checked_logits(value: Any, whose: str, caller: str) -> Tensor:
    """``value``, float32 or wider, which must be floating point ``[N, C, ...]``."""
    if not isinstance(value, Tensor):
        raise Error(f"{caller}: the {whose}'s logits must be one tensor, got {type(value).__name__}")
    if not value.is_floating_point() or value.dim() < 2:
        raise Error(
            f"{caller}: the {whose}'s logits must be floating point [N, C, ...], got {value.dtype} {list(value.shape)}"
        )
    return wide(value)


def checked_labels(labels: Any, z: Tensor, caller: str) -> Tensor | None:
    """Which positions of the logits ``z`` count, bool ``[N, ...]``; None: all do."""
    if not isinstance(labels, Tensor):
        raise Error(f"{caller}: labels must be a tensor or None, got {type(labels).__name__}")
    if labels.is_floating_point():
        if labels.shape != z.shape:
            raise Error(f"{caller}: labels in shares must be {list(z.shape)} like the logits, got {list(labels.shape)}")
        return None
    positions, classes = [z.shape[0], *z.shape[2:]], z.shape[1]
    if labels.dtype == torch.bool or labels.is_complex() or list(labels.shape) != positions:
        raise Error(
            f"{caller}: labels must be integers {positions} or shares {list(z.shape)}, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    counted = labels != IGNORED
    if labels.device.type == "cpu":
        wrong = counted & ((labels < 0) | (labels >= classes))
        if bool(wrong.any()):
            raise Error(
                f"{caller}: labels must be classes from 0 to {classes - 1} (or {IGNORED}), got {int(labels[wrong][0])}"
            )
    return counted.to(z.device)


def cross_entropy(z: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
    """Of logits ``[N, C, ...]``, over the positions that count."""
    if labels.is_floating_point():
        return F.cross_entropy(z, labels.to(z))
    each = F.cross_entropy(z, labels.to(z.device, torch.int64), ignore_index=IGNORED, reduction="none")
    return _mean(each, counted)


def divergence(z: Tensor, t: Tensor, temperature: float, counted: Tensor | None) -> Tensor:
    """KL(softmax(t / T) || softmax(z / T)), in nats, over the positions that count."""
    p = F.log_softmax(t / temperature, 1)  # [N, C, ...]
    q = F.log_softmax(z / temperature, 1)
    share = p.exp()
    # Where the teacher is sure that it is not this class (a logit of -inf), 0 * log 0 is 0.
    each = torch.where(share == 0, torch.zeros_like(q), share * (p - q)).sum(1)  # [N, ...]
    return _mean(each, counted)


def _mean(each: Tensor, counted: Tensor | None) -> Tensor:
    """Over the positions that count; 0 where none does."""
    if counted is None:
        return each.mean()
    return torch.where(counted, each, torch.zeros_like(each)).sum() / counted.sum().clamp_min(1)


__all__ = ["IGNORED", "checked_labels", "checked_logits", "cross_entropy", "divergence", "wide"]
