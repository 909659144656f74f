"""Other devices run the twins. There is none here to run them on, so the registrations are what is tested."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from secateur import ops
from secateur.ops import reference, twins

# engine_*: compiled segments, of the CPU; what is elsewhere never reaches them.
NAMES = sorted(
    name.removeprefix("secateur::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("secateur::") and not name.startswith("secateur::engine_")
)


def has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"secateur::{name}", key))


def test_every_operator_is_listed() -> None:
    assert sorted(twins.FUSED + twins.SPARSE) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["CPU", "CUDA", "XPU", "MPS"])
def test_every_operator_runs_on_every_device(name: str, key: str) -> None:
    assert has_kernel(name, key)


def test_missing_cuda_kernels_are_said_once() -> None:
    twins._say_once.cache_clear()
    keep = torch.rand(3, 17) < 0.5
    twin: Any = twins.outspoken(reference.mask_pack)
    with pytest.warns(UserWarning, match="built without its CUDA library"):
        mask = twin(keep)
    assert torch.equal(mask, ops.mask_pack(keep))
    assert torch.equal(twin(keep), mask)  # warnings are errors here: a second one would fail
