"""Fake kernels (shapes and dtypes without data) and gradients of the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import library  # noqa: F401  (the operators must exist before they get their kernels)
from . import reference

_ops = torch.ops.secateur


def _mask_shape(shape: Sequence[int]) -> tuple[int, int]:
    columns = 1
    for size in shape[1:]:
        columns = columns * size
    return (shape[0] if len(shape) else 1), (columns + 7) // 8


def _new_mask(like: Tensor) -> Tensor:
    return like.new_empty(_mask_shape(like.shape), dtype=torch.uint8)


def _new_theta(weight: Tensor) -> Tensor:
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.new_empty((weight.shape[0] if weight.dim() else 1,), dtype=dtype)


def check_device(name: str, first: Tensor, argument: str, second: Tensor) -> None:
    """One tensor on the meta device brings the whole call here; its result on another device would be uninitialized."""
    torch._check(
        first.device.type == second.device.type,
        lambda: f"{name}: {argument} must be on {first.device}, got {second.device}",
    )


@torch.library.register_fake("secateur::mask_apply")
def _(weight: Tensor, mask: Tensor) -> Tensor:
    check_device("mask_apply", weight, "mask", mask)
    return torch.empty_like(weight)


@torch.library.register_fake("secateur::mask_apply_")
def _(weight: Tensor, mask: Tensor) -> None:
    check_device("mask_apply_", weight, "mask", mask)
    return None


@torch.library.register_fake("secateur::mask_apply_many_")
def _(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    reference.check_lists(weights, masks)
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        check_device("mask_apply_many_", weights[0], f"weights[{i}]", weight)
        check_device("mask_apply_many_", weight, f"masks[{i}]", mask)
    return None


@torch.library.register_fake("secateur::statistics_threshold")
def _(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(weight), _new_mask(weight), _new_theta(weight)


@torch.library.register_fake("secateur::statistics_threshold_")
def _(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor]:
    return _new_mask(weight), _new_theta(weight)


@torch.library.register_fake("secateur::threshold_relu")
def _(x: Tensor, theta: Tensor, max: float | None = None) -> tuple[Tensor, Tensor]:
    check_device("threshold_relu", x, "theta", theta)
    return torch.empty_like(x), _new_mask(x)


@torch.library.register_fake("secateur::threshold_relu_")
def _(x: Tensor, theta: Tensor, max: float | None = None) -> Tensor:
    check_device("threshold_relu_", x, "theta", theta)
    return _new_mask(x)


@torch.library.register_fake("secateur::mask_pack")
def _(keep: Tensor) -> Tensor:
    return _new_mask(keep)


@torch.library.register_fake("secateur::mask_unpack")
def _(mask: Tensor, shape: Sequence[int]) -> Tensor:
    return mask.new_empty(tuple(shape), dtype=torch.bool)


# The backward of all three fused operators is mask_apply, and the bit mask is all that it needs.


def _save_given_mask(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _save_made_mask(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[1])


def _masked(ctx: Any, grad: Tensor | None) -> Tensor | None:
    (mask,) = ctx.saved_tensors
    return None if grad is None else _ops.mask_apply.default(grad, mask)


torch.library.register_autograd(
    "secateur::mask_apply", lambda ctx, grad: (_masked(ctx, grad), None), setup_context=_save_given_mask
)
torch.library.register_autograd(
    "secateur::statistics_threshold",
    lambda ctx, grad, _mask, _theta: (_masked(ctx, grad), None, None),
    setup_context=_save_made_mask,
)
torch.library.register_autograd(
    "secateur::threshold_relu",
    lambda ctx, grad, _mask: (_masked(ctx, grad), None, None),
    setup_context=_save_made_mask,
)
