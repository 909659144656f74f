"""mask_pack and mask_unpack: the format, bit by bit, and that one undoes the other."""

from __future__ import annotations

import pytest
import secateur
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secateur import ops
from secateur.ops import reference
from tensors import ARRANGEMENTS, LAYOUTS, arrangement_id


def test_least_significant_bit_first_rows_start_on_a_byte(isa: str) -> None:
    keep = torch.zeros(2, 11, dtype=torch.bool)
    keep[0, 0] = keep[0, 9] = keep[1, 3] = True
    mask = torch.tensor([[0b1, 0b10], [0b1000, 0]], dtype=torch.uint8)
    assert torch.equal(ops.mask_pack(keep), mask)
    assert torch.equal(ops.mask_unpack(mask, [2, 11]), keep)


@pytest.mark.parametrize(("layout", "shape"), ARRANGEMENTS, ids=arrangement_id)
def test_packs_in_logical_order_whatever_the_memory(layout: str, shape: tuple[int, ...], isa: str) -> None:
    keep = LAYOUTS[layout](torch.rand(shape) < 0.5)
    mask = ops.mask_pack(keep)
    assert torch.equal(mask, reference.mask_pack(keep))
    assert torch.equal(mask, ops.mask_pack(keep.contiguous()))
    assert torch.equal(ops.mask_unpack(mask, shape), keep)
    assert torch.equal(reference.mask_unpack(mask, shape), keep)
    assert torch.equal(ops.mask_unpack(mask.t().contiguous().t(), shape), keep)


def test_expanded_input(isa: str) -> None:
    keep = (torch.rand(1, 37) < 0.5).expand(5, 37)
    assert torch.equal(ops.mask_pack(keep), reference.mask_pack(keep))


@pytest.mark.parametrize("shape", [(3, 1000), (2, 70_001), (900, 130)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], threads: int) -> None:
    keep = torch.rand(shape) < 0.5
    mask = ops.mask_pack(keep)
    assert torch.equal(mask, reference.mask_pack(keep))
    assert torch.equal(ops.mask_unpack(mask, shape), keep)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple), seed=st.integers(0, 2**31))
def test_unpacking_undoes_packing(shape: tuple[int, ...], seed: int, isa: str) -> None:
    torch.manual_seed(seed)
    keep = torch.rand(shape) < 0.5
    mask = ops.mask_pack(keep)
    assert torch.equal(mask, reference.mask_pack(keep))
    assert torch.equal(ops.mask_unpack(mask, shape), keep)


def test_errors() -> None:
    mask = torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(secateur.Error, match=r"^mask_pack: keep must be bool, got float32$"):
        ops.mask_pack(torch.zeros(3, 9))
    with pytest.raises(secateur.Error, match=r"^mask_unpack: mask must be uint8, got int64$"):
        ops.mask_unpack(mask.long(), [3, 9])
    with pytest.raises(secateur.Error, match=r"^mask_unpack: mask must be \[3, 3\] for shape \[3, 17\], got \[3, 2\]$"):
        ops.mask_unpack(mask, [3, 17])
    with pytest.raises(secateur.Error, match=r"^mask_unpack: mask must be \[3, 2\] for shape \[3, 9\], got \[6\]$"):
        ops.mask_unpack(mask.reshape(-1), [3, 9])
    with pytest.raises(secateur.Error, match=r"^mask_unpack: shape must not be negative, got \[3, -1\]$"):
        ops.mask_unpack(mask, [3, -1])
    with pytest.raises(secateur.Error, match=r"^mask_unpack: shape is too large, got \[3, 4611686018427387904, 4\]$"):
        ops.mask_unpack(mask, [3, 2**62, 4])
