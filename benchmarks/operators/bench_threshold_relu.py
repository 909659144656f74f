"""threshold_relu_ on 64 MB of float32 activations, NCHW and channels_last, against copy_ and against torch's ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import compiled
from conftest import Contender, Goal
from secateur import ops
from torch import Tensor

SHAPE = (64, 64, 64, 64)


def composed(x: Tensor, theta: Tensor) -> Tensor:
    """The same values; the bool mask (1 byte an element) in place of the packed one."""
    passes = x >= theta.view(1, -1, 1, 1)
    x.masked_fill_(~passes, 0)
    return passes


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threshold_relu(contest: Callable[..., Any], layout: str) -> None:
    torch.manual_seed(0)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(SHAPE).contiguous(memory_format=memory)
    theta = torch.rand(SHAPE[1])
    expected, mask = ops.threshold_relu(x, theta)
    torch.testing.assert_close(expected, torch.where(x < theta.view(1, -1, 1, 1), 0.0, x), rtol=0, atol=0)
    moved = 2 * x.nbytes

    def contender(function: Callable[[Tensor], Any], result: Tensor | None, mask_bytes: int) -> Contender:
        target = torch.empty_like(x)

        def check() -> None:
            target.copy_(x)
            function(target)
            if result is not None:
                torch.testing.assert_close(target, result, rtol=0, atol=0)

        # Restored before every call: otherwise branches and zeros of the second pass would be foreseeable.
        return Contender(lambda: function(target), moved + mask_bytes, lambda: target.copy_(x), check)

    destination = torch.empty_like(x)
    contenders = {
        "copy_": Contender(lambda: destination.copy_(x), moved, lambda: destination.copy_(x)),
        "secateur.ops.threshold_relu_": contender(lambda t: ops.threshold_relu_(t, theta), expected, mask.nbytes),
        "composed": contender(lambda t: composed(t, theta), expected, x.numel()),
        "torch.relu_": contender(torch.relu_, x.clamp(min=0), 0),
    }
    fast, reason = compiled(composed, x.clone(), theta)
    if fast is not None:
        contenders["torch.compile: composed"] = contender(lambda t: fast(t, theta), expected, x.numel())
    skipped = {"torch.compile: composed": reason} if fast is None else {}
    contest(contenders, [Goal("secateur.ops.threshold_relu_", "copy_", 0.8)], rounds=20, skipped=skipped)
