"""Fake kernels and gradients of the sparse layers' operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import library  # noqa: F401  (the operators must exist before they get their kernels)
from .register import check_device

_ops = torch.ops.secateur


@torch.library.register_fake("secateur::sparse_weight")
def _(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    check_device("sparse_weight", values, "mask", mask)
    return values.new_empty(tuple(shape))


@torch.library.register_fake("secateur::sparse_values")
def _(weight: Tensor, mask: Tensor, nonzeros: int) -> Tensor:
    check_device("sparse_values", weight, "mask", mask)
    return weight.new_empty((nonzeros,))


def _check_devices(name: str, x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None) -> None:
    check_device(name, x, "mask", mask)
    check_device(name, x, "values", values)
    if bias is not None:
        check_device(name, x, "bias", bias)


@torch.library.register_fake("secateur::sparse_linear")
def _(x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None, plan: int = 0) -> Tensor:
    _check_devices("sparse_linear", x, mask, values, bias)
    return x.new_empty((*x.shape[:-1], mask.shape[0]))


@torch.library.register_fake("secateur::sparse_conv2d")
def _(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    plan: int = 0,
) -> Tensor:
    _check_devices("sparse_conv2d", x, mask, values, bias)
    out = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    return x.new_empty((x.shape[0], mask.shape[0], *out))


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.nonzeros = inputs[1].numel()


def _save_dense(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.shape = inputs[0].shape


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, _ops.sparse_values.default(grad, *ctx.saved_tensors, ctx.nonzeros), None


def _values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.sparse_weight.default(*ctx.saved_tensors, grad, ctx.shape), None, None


torch.library.register_autograd("secateur::sparse_weight", _weight_backward, setup_context=_save_packed)
torch.library.register_autograd("secateur::sparse_values", _values_backward, setup_context=_save_dense)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, mask, values, bias = inputs[:4]
    ctx.has_bias = bias is not None
    ctx.arguments = inputs[4:]
    # The input is kept only where a gradient of the weights will need it.
    ctx.x_shape = x.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, mask, values)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mask, values = ctx.saved_tensors
    shape = (mask.shape[0], ctx.x_shape[-1])
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad @ _ops.sparse_weight.default(mask, values, shape)
    flat = grad.reshape(-1, shape[0])
    if ctx.needs_input_grad[2]:
        grad_values = _ops.sparse_values.default(flat.T @ x.reshape(-1, shape[1]), mask, values.numel())
    if ctx.has_bias and ctx.needs_input_grad[3]:
        grad_bias = flat.sum(0)
    return grad_x, None, grad_values, grad_bias, None


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mask, values = ctx.saved_tensors
    kernel_size, stride, padding, dilation, groups = ctx.arguments[:5]
    shape = (mask.shape[0], ctx.x_shape[1] // groups, *kernel_size)
    weight = _ops.sparse_weight.default(mask, values, shape)
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.has_bias and ctx.needs_input_grad[3]]
    like_x = x if x is not None else grad.new_empty(1).expand(ctx.x_shape)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, like_x, weight, [shape[0]], stride, padding, dilation, False, [0, 0], groups, needs
    )
    grad_values = _ops.sparse_values.default(grad_weight, mask, values.numel()) if needs[1] else None
    return grad_x, None, grad_values, grad_bias, None, None, None, None, None, None


torch.library.register_autograd("secateur::sparse_linear", _linear_backward, setup_context=_save)
torch.library.register_autograd("secateur::sparse_conv2d", _conv2d_backward, setup_context=_save)
