"""Thresholds that learn: for the time of a fine-tuning, theta is a parameter with a straight-through gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .threshold_relu import ThresholdReLU


class _StraightThrough(torch.autograd.Function):
    """``y = x where x >= theta, else 0``, for which theta's true gradient is -x at x = theta and 0 elsewhere.

    Here the gradient of that point is spread evenly over the window from theta / 2 to 3 theta / 2:
    dy/dtheta = -theta / (2 * theta / 2) = -1 inside. So the step knows no scale, and a theta of 0 stays a plain ReLU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, limit: float | None) -> Tensor:
        # theta is shaped to broadcast over x already. Masks are kept, not x, which an in-place layer overwrites.
        y = torch.where(x < theta, 0.0, x)  # NaN stays NaN
        passes = (x >= theta) & (x > 0)
        if limit is not None:
            passes &= x < limit
            y = y.clamp_max(limit)
        ctx.save_for_backward(passes, (x > theta / 2) & (x < 1.5 * theta))
        ctx.theta = theta.shape, theta.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        passes, near = ctx.saved_tensors
        shape, dtype = ctx.theta
        to_theta = -torch.where(near, grad, 0.0).to(dtype).sum_to_size(shape)
        return torch.where(passes, grad, 0.0), to_theta, None


class TrainableThresholdReLU(ThresholdReLU):
    """A :class:`ThresholdReLU` between :func:`train_thresholds` and :func:`freeze_thresholds`: the same values (in
    plain torch), and a ``theta`` that is a Parameter. A step below 0 is taken back at the next forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.theta.data.clamp_(min=0)
        theta = self.theta
        if theta.numel() > 1:
            channel = 1 if x.dim() > 2 else -1
            if x.dim() == 0 or x.size(channel) != theta.numel():
                raise Error(f"ThresholdReLU: x must have {theta.numel()} channels (dim {channel}), got {list(x.shape)}")
            theta = theta.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 2 else theta
        y: Tensor = _StraightThrough.apply(x, theta, self.max)
        return x.copy_(y) if self.inplace else y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrainableThresholdReLU:
        exact = self.theta.data
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        if self.theta.dtype != torch.float32:
            self.theta.data = exact.to(self.theta.device)
        return self


def train_thresholds(model: nn.Module) -> list[nn.Parameter]:
    """Make every threshold of ``model`` a parameter, in place, and return them: for fine-tuning with
    :class:`secateur.ActivationSparsityLoss`, until :func:`freeze_thresholds`.

    Give them to the optimizer in a group of their own, without weight decay; ten times the weights' learning rate suits
    networks whose activations are of the order of 1. A threshold of 0 stays 0. Their gradient is a straight-through
    estimate: minus the sum of the output's gradient over the values between theta / 2 and 3 theta / 2. Names in the
    state_dict do not change.

    What it is worth, on the demo's CNN pruned by ``MeanStd(k=0)`` and tuned for 4 epochs with Hoyer of weight 1: after
    12 epochs of dense training 92.5 % zeros at 98.4 % test accuracy, where fixed thresholds that end with as many zeros
    (k=-1.5) gave 97.6 % (means of 3 seeds); after 20 epochs 92.9 % at 98.4 % against 93.2 % at 98.2 % (one run), no
    difference that 1,000 digits can show. It spares the search for k.

    Raises:
        Error: model is no module, or has no ThresholdReLU.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"train_thresholds: model must be a torch.nn.Module, got {type(model).__name__}")
    found = []
    for module in model.modules():
        if isinstance(module, ThresholdReLU):
            if type(module) is ThresholdReLU:
                theta = module._buffers.pop("theta")
                assert theta is not None
                module.__class__ = TrainableThresholdReLU
                module.register_parameter("theta", nn.Parameter(theta.detach().clone()))
            found.append(module._parameters["theta"])
    if not found:
        raise Error("train_thresholds: model must have a ThresholdReLU, found none: prune_activations makes them")
    return [theta for theta in found if theta is not None]


def freeze_thresholds(model: nn.Module) -> nn.Module:
    """Undo :func:`train_thresholds`, in place: the thresholds stay as they are now, as buffers. Returns the model.

    ``compile``, ``convert`` and ``prune_activations`` look for frozen ones.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"freeze_thresholds: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, TrainableThresholdReLU):
            theta = module._parameters.pop("theta")
            assert theta is not None
            module.__class__ = ThresholdReLU  # type: ignore[assignment]
            module.register_buffer("theta", theta.detach().clamp_min(0))
    return model
