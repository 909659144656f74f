"""mask_apply_many_ on lists of weights, against one call a weight and against what people write today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Contender, Goal
from secateur import ops
from torch import Tensor


def resnet50() -> list[tuple[int, ...]]:
    """The 53 convolutions of ResNet-50 (He et al., 2015): 23.5 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return shapes


LISTS = {"ResNet-50": resnet50(), "1000 of 32x32": [(32, 32)] * 1000}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LISTS)
def test_mask_apply_many(contest: Callable[..., Any], name: str, layout: torch.memory_format) -> None:
    if layout == torch.channels_last and len(LISTS[name][0]) < 4:
        pytest.skip("no images")
    torch.manual_seed(0)
    weights = [torch.randn(shape).contiguous(memory_format=layout) for shape in LISTS[name]]
    keep = [torch.rand(shape) >= 0.9 for shape in LISTS[name]]
    masks = [ops.mask_pack(each) for each in keep]
    drop = [(~each).contiguous(memory_format=layout) for each in keep]
    factors = [each.float().contiguous(memory_format=layout) for each in keep]
    moved = sum(2 * weight.nbytes for weight in weights)

    def contender(function: Callable[[list[Tensor]], Any], extra: list[Tensor]) -> Contender:
        targets = [weight.clone() for weight in weights]

        def check() -> None:
            function(targets)
            for target, weight, each in zip(targets, weights, keep, strict=True):
                torch.testing.assert_close(target, torch.where(each, weight, 0.0), rtol=0, atol=0)

        return Contender(lambda: function(targets), moved + sum(e.nbytes for e in extra), check=check)

    def one_by_one(targets: list[Tensor]) -> None:
        for target, mask in zip(targets, masks, strict=True):
            ops.mask_apply_(target, mask)

    def filled(targets: list[Tensor]) -> None:
        for target, each in zip(targets, drop, strict=True):
            target.masked_fill_(each, 0)

    destinations = [torch.empty_like(weight) for weight in weights]
    contenders = {
        "_foreach_copy_": Contender(lambda: torch._foreach_copy_(destinations, weights), moved),
        "secateur.ops.mask_apply_many_": contender(lambda targets: ops.mask_apply_many_(targets, masks), masks),
        "mask_apply_, weight by weight": contender(one_by_one, masks),
        "_foreach_mul_(float masks)": contender(lambda targets: torch._foreach_mul_(targets, factors), factors),
        "masked_fill_, weight by weight": contender(filled, drop),
    }
    # Channels last: the bits of 3x3 kernels are turned into the order of memory at every call.
    goal = 0.8 if layout == torch.contiguous_format else 0.5
    contest(contenders, [Goal("secateur.ops.mask_apply_many_", "_foreach_copy_", goal)])
