"""mask_apply_ on 64 MB of float32, against copy_ and against what people write today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import compiled
from conftest import Contender, Goal
from secateur import ops

SIZE = 4096


@pytest.mark.parametrize("sparsity", [0.9])
def test_mask_apply(contest: Callable[..., Any], sparsity: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE)
    keep = torch.rand(SIZE, SIZE) >= sparsity
    mask, factor = ops.mask_pack(keep), keep.float()
    expected = torch.where(keep, weight, 0.0)
    moved = 2 * weight.nbytes

    def contender(function: Callable[[torch.Tensor], Any], mask_bytes: int) -> Contender:
        target = weight.clone()

        def check() -> None:
            function(target)
            torch.testing.assert_close(target, expected, rtol=0, atol=0)

        return Contender(lambda: function(target), moved + mask_bytes, check=check)

    destination = torch.empty_like(weight)
    contenders = {
        "copy_": Contender(lambda: destination.copy_(weight), moved),
        "secateur.ops.mask_apply_": contender(lambda w: ops.mask_apply_(w, mask), mask.nbytes),
        "w.mul_(float mask)": contender(lambda w: w.mul_(factor), factor.nbytes),
        "w.masked_fill_(~bool mask, 0)": contender(lambda w: w.masked_fill_(drop, 0), keep.nbytes),
    }
    drop = ~keep
    fast, reason = compiled(lambda w, f: w.mul_(f), weight.clone(), factor)
    if fast is not None:
        contenders["torch.compile: w.mul_(float mask)"] = contender(lambda w: fast(w, factor), factor.nbytes)
    skipped = {"torch.compile": reason} if fast is None else {}
    contest(contenders, [Goal("secateur.ops.mask_apply_", "copy_", 0.8)], skipped=skipped)
