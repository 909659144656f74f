"""A ReLU whose threshold is per channel: the layer that makes activations sparse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import Error


def _checked_theta(theta: object, where: str) -> Tensor:
    """A float32 copy of ``theta``, one value or ``[C]``; otherwise an :class:`Error` that starts with ``where``."""
    try:
        value = torch.as_tensor(theta).detach().to(torch.float32).clone()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise Error(f"{where}: theta must be a number or a tensor, got {type(theta).__name__}") from reason
    if value.dim() > 1:
        raise Error(f"{where}: theta must be one value or [C], got {list(value.shape)}")
    if value.numel() == 0:
        raise Error(f"{where}: theta must hold at least one value, got {list(value.shape)}")
    if value.is_meta:
        return value
    bad = ~torch.isfinite(value) | (value < 0)
    if bool(bad.any()):
        # A negative threshold would let negative values through, which no ReLU does.
        raise Error(f"{where}: theta must be finite and >= 0, got {float(value.reshape(-1)[bad.reshape(-1)][0])}")
    return value


class ThresholdReLU(nn.Module):
    """``y = 0 where x < theta, else x``, clamped above at ``max``: a drop-in for ``nn.ReLU`` (``max=6``: ``nn.ReLU6``).

    FATReLU (Kurtz et al., "Inducing and Exploiting Activation Sparsity", ICML 2020) with a threshold per channel.
    ``theta = 0`` is exactly ``nn.ReLU``. NaN stays NaN, as in ``torch.relu``. A theta above ``max`` still passes what
    reaches theta, as ``max``.

    Args:
        theta: one value, or one per channel ``[C]``; finite, >= 0. A float32 buffer, in the state_dict, and float32
            it stays when the model goes to half precision: the comparison is made as it was calibrated.
        max: the upper clamp, > 0; None for none.
        inplace: overwrite the input, as ``nn.ReLU(inplace=True)`` does.

    Shapes: any. The channel is dim 1 of ``x``, and the last dim where x is 1-d or 2-d ``[N, C]``. So an image without
    its batch dimension, ``[C, H, W]``, would be taken for ``[N, C, L]``: give images as ``[N, C, H, W]``.
    A ``[C]`` theta loads into a module that was made with one value (``ThresholdReLU(0.0)``), so a checkpoint needs no
    knowledge of C beforehand.

    Raises:
        Error: theta is NaN, infinite, negative, of rank 2 or more, or empty, also when it comes from a checkpoint; max
            is not a positive number; x has another number of channels than theta.
    """

    theta: Tensor
    max: float | None
    inplace: bool

    def __init__(self, theta: float | Tensor = 0.0, max: float | None = None, inplace: bool = False) -> None:
        super().__init__()
        number = isinstance(max, int | float) and not isinstance(max, bool)
        if max is not None and not (number and math.isfinite(max) and max > 0):
            raise Error(f"ThresholdReLU: max must be > 0 and finite, or None, got {max!r}")
        self.register_buffer("theta", _checked_theta(theta, "ThresholdReLU"))
        self.max = None if max is None else float(max)
        self.inplace = bool(inplace)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta
        if theta.numel() > 1:
            channel = 1 if x.dim() > 2 else -1
            if x.dim() == 0 or x.size(channel) != theta.numel():
                raise Error(f"ThresholdReLU: x must have {theta.numel()} channels (dim {channel}), got {list(x.shape)}")
        if not self.inplace:
            return ops.threshold_relu(x, theta, self.max)[0]
        if torch.is_grad_enabled() and x.requires_grad:
            # The in-place operator has no gradient. Copying back costs one pass over x, and keeps what in-place means:
            # other holders of x see the result, in training as in evaluation.
            return x.copy_(ops.threshold_relu(x, theta, self.max)[0])
        ops.threshold_relu_(x, theta, self.max)
        return x

    def over(self, x: Tensor) -> Tensor:
        """The same, in place whatever ``inplace`` says: for a caller that alone holds ``x``, without gradients."""
        theta = self.theta
        if theta.numel() > 1 and (x.dim() == 0 or x.size(1 if x.dim() > 2 else -1) != theta.numel()):
            return self.forward(x)  # raises
        ops.threshold_relu_(x, theta, self.max)
        return x

    def extra_repr(self) -> str:
        if self.theta.numel() > 1:
            shown = f"theta=[{self.theta.numel()}]"
        else:
            shown = "theta=?" if self.theta.is_meta else f"theta={float(self.theta):.6g}"
        if self.max is not None:
            shown += f", max={self.max:g}"
        return shown + (", inplace=True" if self.inplace else "")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ThresholdReLU:
        exact = self.theta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        if self.theta.dtype != torch.float32:  # .half() and its like: follow the device, keep the numbers
            self.theta = exact.to(self.theta.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "theta"
        if isinstance(state_dict.get(key), Tensor):
            loaded = _checked_theta(state_dict[key], f"ThresholdReLU: cannot load {key!r}")
            if self.theta.dim() == 0 and loaded.dim() == 1:
                self.theta = torch.zeros_like(loaded, device=self.theta.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.theta.dtype != torch.float32:  # load_state_dict(assign=True) of a half-precision checkpoint
            self.theta = self.theta.to(torch.float32)
