"""Layers that train for int8: float weights, which forward uses as their int8 values.

Quantization-aware training after Jacob et al. (CVPR 2018, section 3): weights are rounded in each forward, and the
gradient passes the rounding as if it were not there (straight-through: Bengio et al., 2013).
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .int8_weights import from_bytes, settle, to_bytes
from .quantized import check_scale, check_zero_point

Q = TypeVar("Q", bound="_QATLayer")


class _QATLayer(nn.Module):
    """The base of both. Buffers: ``input_scale`` float32, ``input_zero_point`` int32, ``weight_share`` float32 ``[K]``:
    how much of a channel's largest weight the byte 127 stands for.

    The scale of a channel follows its largest weight through the training.
    """

    weight: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    weight_share: Tensor

    def __init__(
        self, *args: Any, input_scale: Any = 1.0, input_zero_point: Any = 0, weight_share: Tensor | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self._hold(input_scale, input_zero_point, weight_share)

    def _hold(self, input_scale: Any, input_zero_point: Any, weight_share: Tensor | None) -> None:
        where = type(self).__name__
        share = torch.ones(self.weight.shape[:1]) if weight_share is None else weight_share
        self.register_buffer("input_scale", check_scale(where, "input_scale", input_scale))
        self.register_buffer("input_zero_point", check_zero_point(where, "input_zero_point", input_zero_point))
        self.register_buffer("weight_share", check_scale(where, "weight_share", share).to(self.weight.device))

    def weight_scale(self) -> Tensor:
        """``[K]`` float32: what one step of each channel's bytes stands for now."""
        rows = self.weight.detach().to(torch.float32).flatten(1)
        bias = cast("Tensor | None", self.bias)
        return settle(rows, rows.abs().amax(1) / 127 * self.weight_share, bias, float(self.input_scale))

    def rounded_weight(self) -> Tensor:
        """The weights rounded to their int8 values; the gradient passes straight through."""
        weight, scale = self.weight, self.weight_scale()
        # The bracket is exactly 0, so the sum is the rounded weight.
        return from_bytes(to_bytes(weight, scale), scale).to(weight.dtype) + (weight - weight.detach())

    def _rounded(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid; values on the grid stay as they are."""
        return torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, 0, 255)

    @classmethod
    def _from(cls: type[Q], layer: Any, grid: tuple[Any, Any], share: Any, *args: Any) -> Q:
        made = cls(*args, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made._hold(*grid, share)
        return made.train(layer.training)

    def extra_repr(self) -> str:
        shown = "" if self.input_scale.is_meta else f", input_scale={float(self.input_scale):.6g}"
        return super().extra_repr() + shown


class QATConv2d(_QATLayer, nn.Conv2d):
    """``nn.Conv2d`` whose forward rounds its weights to int8 and its inputs to their grid, gradients straight through.

    Masks of :func:`secateur.prune` hold as on any layer, and a zero weight takes part as zero.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``nn.Conv2d``; padding is numbers of zeros.
        input_scale, input_zero_point: the grid of the input.
        weight_share: ``[K]``, > 0: how much of a channel's largest weight the byte 127 stands for; None: all.
    """

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(self._rounded(input), self.rounded_weight(), self.bias))

    @classmethod
    def from_dense(
        cls, layer: nn.Conv2d, input_scale: Any, input_zero_point: Any = 0, weight_share: Tensor | None = None
    ) -> QATConv2d:
        """A layer that has the parameters of ``layer`` (these very ones)."""
        shape: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        size: Any = (layer.in_channels, layer.out_channels, layer.kernel_size)
        return cls._from(layer, (input_scale, input_zero_point), weight_share, *size, *shape)


class QATLinear(_QATLayer, nn.Linear):
    """``nn.Linear`` whose forward rounds its weights and inputs; see :class:`QATConv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self._rounded(input), self.rounded_weight(), self.bias)

    @classmethod
    def from_dense(
        cls, layer: nn.Linear, input_scale: Any, input_zero_point: Any = 0, weight_share: Tensor | None = None
    ) -> QATLinear:
        """A layer that has the parameters of ``layer`` (these very ones)."""
        size = (layer.in_features, layer.out_features)
        return cls._from(layer, (input_scale, input_zero_point), weight_share, *size)
