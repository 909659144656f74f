"""Devices without kernels of ours run the plain-torch twins: the same results, at plain torch's speed.

That is every sparse layer outside the CPU, and, where the CUDA library was not built (no nvcc at install), the fused
operators on CUDA too. The latter is said once, since a build with nvcc would be faster.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .._base import library
from . import reference

FUSED = (
    "mask_apply",
    "mask_apply_",
    "mask_apply_many_",
    "statistics_threshold",
    "statistics_threshold_",
    "threshold_relu",
    "threshold_relu_",
    "mask_pack",
    "mask_unpack",
)
SPARSE = ("sparse_weight", "sparse_values", "sparse_linear", "sparse_conv2d")


@functools.cache
def _say_once() -> None:
    warnings.warn(
        "secateur was built without its CUDA library: fused operators on CUDA tensors run as plain torch operations. "
        "Reinstall where nvcc is found to get the kernels.",
        stacklevel=4,
    )


def outspoken(twin: Callable[..., Any]) -> Callable[..., Any]:
    """``twin``, with a warning at the first call of any."""

    @functools.wraps(twin)
    def run(*args: Any, **kwargs: Any) -> Any:
        _say_once()
        return twin(*args, **kwargs)

    return run


def register() -> None:
    for name in SPARSE:
        for key in ("CUDA", "XPU", "MPS"):
            torch.library.impl(f"secateur::{name}", key, getattr(reference, name))
    for name in FUSED:
        twin = getattr(reference, name)
        for key in ("XPU", "MPS"):
            torch.library.impl(f"secateur::{name}", key, twin)
        if not library.HAS_CUDA:
            torch.library.impl(f"secateur::{name}", "CUDA", outspoken(twin))


register()
