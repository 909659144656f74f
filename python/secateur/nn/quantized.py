"""int8 layers: :func:`secateur.quantize` puts them in place of a network's own.

Activations are unsigned bytes, ``real = (q - zero_point) * scale`` with one scale a tensor; weights are signed bytes,
``real = q * scale[k]`` with one scale an output channel (Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Tensors between layers hold real values that lie on this
grid, so any torch code can stand between them; inside of a layer all sums are of integers, and exact. The engine
(:func:`secateur.compile`) keeps the bytes themselves between layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.errors import Error

#: Sums of integers below this are exact in float32.
_EXACT = 2**24
#: The limit of a layer's sums, bias included: they are added in 32 bits.
LARGEST_SUM = 2**31 - 1


def check_scale(where: str, name: str, scale: Any) -> Tensor:
    """A float32 copy of ``scale``, finite and above 0."""
    value = torch.as_tensor(scale).detach().to(torch.float32).clone()
    if not value.is_meta and not bool((torch.isfinite(value) & (value > 0)).all()):
        bad = value.reshape(-1)[~(torch.isfinite(value) & (value > 0)).reshape(-1)][0]
        raise Error(f"{where}: {name} must be finite and > 0, got {float(bad)}")
    return value


def check_zero_point(where: str, name: str, zero_point: Any) -> Tensor:
    value = torch.as_tensor(zero_point).detach().to(torch.int32).clone()
    if value.dim() != 0 or not (value.is_meta or 0 <= int(value) <= 255):
        raise Error(f"{where}: {name} must be one integer in [0, 255], got {value.tolist()}")
    return value


class Quantize(nn.Module):
    """Rounds to the nearest value that a byte can name: ``q = clamp(round(x / scale) + zero_point, 0, 255)``; gives
    ``(q - zero_point) * scale``, in the dtype of ``x``. Halves round to even; the gradient passes straight through
    where nothing was clamped. NaN becomes 0.

    Args:
        scale: > 0, finite.
        zero_point: which byte is 0, in [0, 255].
        theta: thresholds on the integer scale, one byte a channel ``[C]`` (channel = dim 1, the last dim of 2-d
            inputs): what lies below ``theta[c]`` becomes 0. None: no thresholds.

    Raises:
        Error: an argument out of its range; x without a channel for each theta.
    """

    scale: Tensor
    zero_point: Tensor
    theta: Tensor | None

    def __init__(self, scale: float | Tensor = 1.0, zero_point: int | Tensor = 0, theta: Tensor | None = None) -> None:
        super().__init__()
        value = check_scale("Quantize", "scale", scale)
        if value.dim() != 0:
            raise Error(f"Quantize: scale must be one number, got {list(value.shape)}")
        self.register_buffer("scale", value)
        self.register_buffer("zero_point", check_zero_point("Quantize", "zero_point", zero_point))
        if theta is not None and (theta.dtype != torch.uint8 or theta.dim() != 1):
            raise Error(f"Quantize: theta must be uint8 [C], got {theta.dtype} {list(theta.shape)}")
        self.register_buffer("theta", theta)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nan_to_num(x, 0.0, math.inf, -math.inf)
        q = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)
        if self.theta is None:
            return q
        channel = 1 if x.dim() > 2 else -1
        if x.dim() == 0 or x.size(channel) != self.theta.numel():
            raise Error(f"Quantize: x must have {self.theta.numel()} channels (dim {channel}), got {list(x.shape)}")
        shape = [1] * x.dim()
        shape[channel] = -1
        # Half a step below the threshold: the grid itself is not exact in floating point.
        least = ((self.theta.to(x.dtype) - self.zero_point - 0.5) * self.scale).reshape(shape)
        return torch.where(q < least, torch.zeros((), dtype=x.dtype, device=x.device), q)

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return "scale=?"
        shown = f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"
        return shown if self.theta is None else shown + f", theta=[{self.theta.numel()}]"


class _QuantizedLayer(nn.Module):
    """The base of int8 convolutions and linear layers: weights as bytes, their scales, and the grid of the input.

    Buffers: ``weight_int8`` int8, ``weight_scale`` float32 ``[K]``, ``bias`` float32 ``[K]`` or None (real units),
    ``input_scale`` float32, ``input_zero_point`` int32.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor

    def _hold(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Any, input_zero_point: Any
    ) -> None:
        where = type(self).__name__
        if weight.dtype != torch.int8:
            raise Error(f"{where}: weight must be int8, got {weight.dtype}")
        scale = check_scale(where, "weight_scale", weight_scale)
        if scale.shape != weight.shape[:1]:
            raise Error(f"{where}: weight_scale must be [{weight.shape[0]}], got {list(scale.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise Error(f"{where}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
        self.register_buffer("weight_int8", weight.detach().clone())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32).clone())
        value = check_scale(where, "input_scale", input_scale)
        if value.dim() != 0:
            raise Error(f"{where}: input_scale must be one number, got {list(value.shape)}")
        self.register_buffer("input_scale", value)
        self.register_buffer("input_zero_point", check_zero_point(where, "input_zero_point", input_zero_point))

    @property
    def weight(self) -> Tensor:
        """The real weights, float32; zeros are exactly zero."""
        return self.weight_int8.to(torch.float32) * self.weight_scale.reshape(-1, *[1] * (self.weight_int8.dim() - 1))

    def bias_int32(self) -> Tensor:
        """The bias in units of the sums, int32 ``[K]``: ``round(bias / (input_scale * weight_scale[k]))``.

        Raises:
            Error: a layer whose sums could leave 32 bits.
        """
        unit = self.input_scale.double() * self.weight_scale.double()
        bias = torch.zeros_like(unit) if self.bias is None else torch.round(self.bias.double() / unit)
        reach = 255.0 * self.weight_int8.double().abs().flatten(1).sum(1) + bias.abs()
        if not torch.compiler.is_compiling() and not bool((reach <= LARGEST_SUM).all()):
            k = int(reach.nan_to_num(math.inf).argmax())
            raise Error(
                f"{type(self).__name__}: sums must stay below 2^31, but those of channel {k} can reach "
                f"{float(reach[k]):.4g}; its weight_scale, {float(self.weight_scale[k]):.4g}, is too small"
            )
        return bias.to(torch.int32)

    def _integers(self, x: Tensor) -> Tensor:
        """``q - zero_point`` of the input, float32."""
        zero_point = self.input_zero_point.to(torch.float32)
        q = torch.clamp(torch.round(x.to(torch.float32) / self.input_scale) + zero_point, 0, 255)
        return q - zero_point

    def _sums(self, x: Tensor) -> Tensor:
        """Weights times ``x`` (integers in [-255, 255], as float32), int32."""
        weight = self.weight_int8
        if torch.compiler.is_compiling():  # values are unknown here: float64 holds every sum exactly
            return self._product(x.double(), weight.double()).to(torch.int32)
        reach = 255 * int(weight.to(torch.int32).abs().flatten(1).sum(1).max()) if weight.numel() else 0
        parts = max(math.ceil(reach / (_EXACT - 1)), 1)
        if parts > 1 and getattr(self, "groups", 1) > 1:
            return self._product(x.double(), weight.double()).to(torch.int32)
        columns = weight.shape[1]
        # As many input channels at a time as keep every sum exact: one channel does, up to kernels of 23x23.
        most = 255 * int(weight.to(torch.int32).abs().flatten(2).sum(2).max()) if weight.dim() > 2 else 255 * 128
        step = max(columns if parts == 1 else (_EXACT - 1) // max(most, 1), 1)
        if most >= _EXACT:
            return self._product(x.double(), weight.double()).to(torch.int32)
        total: Tensor | None = None
        for begin in range(0, columns, step):
            part = slice(begin, begin + step)
            channels = x[:, part] if weight.dim() > 2 else x[..., part]
            if parts == 1:
                channels = x
            sums = self._product(channels, weight[:, part].to(torch.float32)).to(torch.int32)
            total = sums if total is None else total + sums
        assert total is not None
        return total

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _real(self, x: Tensor, channel: int) -> Tensor:
        if not x.is_floating_point():
            raise Error(f"{type(self).__name__}: x must be floating point, got {x.dtype}")
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            if dtype != torch.float64:  # which autocast leaves alone
                dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):  # the sums must stay exact
                sums = self._sums(self._integers(x))
        else:
            sums = self._sums(self._integers(x))
        shape = [1] * sums.dim()
        shape[channel] = -1
        sums = sums + self.bias_int32().reshape(shape)
        return (sums.to(torch.float32) * (self.input_scale * self.weight_scale).reshape(shape)).to(dtype)

    def _shown(self) -> str:
        if self.weight_int8.is_meta:
            return "int8"
        zeros = 1 - int(torch.count_nonzero(self.weight_int8)) / max(self.weight_int8.numel(), 1)
        return f"int8, zeros={zeros:.1%}, input_scale={float(self.input_scale):.6g}"


class QuantizedConv2d(_QuantizedLayer):
    """``nn.Conv2d`` with int8 weights and uint8 inputs. Frozen: for inference.

    Takes real values ``[N, C, H, W]`` (or ``[C, H, W]``), rounds them to the input's grid (those that lie on it stay
    as they are), sums integers exactly, and gives real values ``(sums + bias) * input_scale * weight_scale[k]``.
    Padding is 0.

    Args:
        weight: int8 ``[K, C / groups, kernel rows, kernel columns]``.
        weight_scale: ``[K]``, > 0.
        bias: ``[K]`` in real units, or None.
        input_scale, input_zero_point: the grid of the input.
        stride, padding, dilation, groups: as in ``nn.Conv2d``; padding is two numbers (rows, columns).

    Raises:
        Error: an argument of the wrong kind, or sums that could leave 32 bits (when called).
    """

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: float | Tensor,
        input_zero_point: int | Tensor = 0, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1), groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if weight.dim() != 4:
            raise Error(f"QuantizedConv2d: weight must be 4-d, got {list(weight.shape)}")
        self._hold(weight, weight_scale, bias, input_scale, input_zero_point)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.out_channels, self.in_channels = weight.shape[0], weight.shape[1] * groups
        self.kernel_size = (weight.shape[2], weight.shape[3])

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:  # one image
            return self._real(input.unsqueeze(0), 1).squeeze(0)
        return self._real(input, 1)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            shown += f", padding={self.padding}"
        if self.dilation != (1, 1):
            shown += f", dilation={self.dilation}"
        if self.groups != 1:
            shown += f", groups={self.groups}"
        return f"{shown}, {self._shown()}"


class QuantizedLinear(_QuantizedLayer):
    """``nn.Linear`` with int8 weights and uint8 inputs, ``[..., C] -> [..., K]``; see :class:`QuantizedConv2d`."""

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: float | Tensor,
        input_zero_point: int | Tensor = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if weight.dim() != 2:
            raise Error(f"QuantizedLinear: weight must be 2-d, got {list(weight.shape)}")
        self._hold(weight, weight_scale, bias, input_scale, input_zero_point)
        self.out_features, self.in_features = weight.shape

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._real(input, -1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._shown()}"
