"""statistics_threshold_ on 64 MB of float32, against copy_ and against the same thing composed of tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compiled import compiled
from conftest import Contender, Goal
from secateur import ops
from torch import Tensor

SIZE = 4096
K = -1.0


def composed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the operator does, mask bits included, one tensor operation after the other, in float32."""
    magnitude = weight.abs()
    theta = magnitude.mean(1) - K * magnitude.std(1, correction=0)
    keep = magnitude >= theta.unsqueeze(1)
    weight.masked_fill_(~keep, 0)
    place = 2 ** torch.arange(8, dtype=torch.uint8)
    mask = (keep.view(keep.shape[0], -1, 8) * place).sum(-1, dtype=torch.uint8)
    return mask, theta


def composed_without_mask(weight: Tensor) -> Tensor:
    """The same without the packed mask: what a hand-written pruning loop does."""
    magnitude = weight.abs()
    theta = magnitude.mean(1) - K * magnitude.std(1, correction=0)
    weight.mul_(magnitude >= theta.unsqueeze(1))
    return theta


def test_statistics_threshold(contest: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE)
    expected, mask, theta = ops.statistics_threshold(weight, K)
    moved = 2 * weight.nbytes

    def contender(function: Callable[[Tensor], Any]) -> Contender:
        target = weight.clone()

        def check() -> None:
            target.copy_(weight)
            result = function(target)
            found = result[-1] if isinstance(result, tuple) else result
            torch.testing.assert_close(found, theta, rtol=1e-4, atol=0)
            # float32 sums round theta: the few weights between the two thetas may go either way.
            assert (target != expected).double().mean().item() < 1e-5
            if isinstance(result, tuple):
                torch.testing.assert_close(ops.mask_unpack(result[0], weight.shape), target != 0, rtol=0, atol=0)

        # Restored before every call: a second pruning would see other statistics.
        return Contender(lambda: function(target), moved + mask.nbytes, lambda: target.copy_(weight), check)

    destination = torch.empty_like(weight)
    contenders = {
        "copy_": Contender(lambda: destination.copy_(weight), moved, lambda: destination.copy_(weight)),
        "secateur.ops.statistics_threshold_": contender(lambda w: ops.statistics_threshold_(w, K)),
        "composed": contender(composed),
        "composed, no packed mask": contender(composed_without_mask),
    }
    skipped = {}
    for name, function in [("composed", composed), ("composed, no packed mask", composed_without_mask)]:
        fast, reason = compiled(function, weight.clone())
        if fast is None:
            skipped[f"torch.compile: {name}"] = reason
        else:
            contenders[f"torch.compile: {name}"] = contender(fast)
    ours = "secateur.ops.statistics_threshold_"
    contest(contenders, [Goal(ours, "copy_", 0.6), Goal(ours, "composed", 20)], rounds=20, skipped=skipped)
