"""Plain-torch twins of every operator: the oracle for tests, the baseline for benchmarks, the path of other devices.

Same names and same arguments as :mod:`secateur.ops`; written for clarity, not for speed. The glossary of dims is in
``csrc/README.md``: N batch, C input channels, K output channels (neurons), H x W image, R x S kernel.

A *packed mask* is uint8 ``[rows, ceil(columns / 8)]`` where rows = ``shape[0]`` and columns = the product of the other
sizes (a 0-d tensor is one row of one column). Bit i of a row, least significant first, belongs to element i of that
row in logical row-major order, whatever the memory format. Unused bits of a row's last byte are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import Error
from .packing import rows_and_columns


def mask_pack(keep: Tensor) -> Tensor:
    """Pack a bool tensor into bits."""
    if keep.dtype != torch.bool:
        raise Error(f"mask_pack: keep must be bool, got {str(keep.dtype).removeprefix('torch.')}")
    rows, columns = rows_and_columns(keep.shape)
    bits = keep.reshape(rows, columns)  # [rows, columns]
    padded = F.pad(bits, (0, -columns % 8)).reshape(rows, (columns + 7) // 8, 8)  # [rows, bytes, 8]
    place = 2 ** torch.arange(8, device=keep.device, dtype=torch.int32)
    return (padded.to(torch.int32) * place).sum(-1).to(torch.uint8)


def mask_unpack(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bits into a bool tensor of ``shape``."""
    rows, columns = rows_and_columns(shape)
    place = torch.arange(8, device=mask.device, dtype=torch.uint8)
    bits = (mask.unsqueeze(-1) >> place) & 1  # [rows, bytes, 8]
    return bits.reshape(rows, mask.shape[1] * 8)[:, :columns].reshape(tuple(shape)).to(torch.bool)


def mask_apply(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight`` where the bit is set, +0 elsewhere (a pruned Inf or NaN becomes 0: it is selected, not multiplied)."""
    return torch.where(
        mask_unpack(mask, weight.shape), weight, torch.zeros((), dtype=weight.dtype, device=weight.device)
    )


def mask_apply_(weight: Tensor, mask: Tensor) -> None:
    weight.copy_(mask_apply(weight, mask))


def mask_apply_many_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """:func:`mask_apply_` on each weight and its mask, in the order of the lists."""
    check_lists(weights, masks)
    for weight, mask in zip(weights, masks, strict=True):
        mask_apply_(weight, mask)


def check_lists(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    if len(weights) != len(masks):
        raise Error(
            f"mask_apply_many_: masks must have one mask for each of the {len(weights)} weights, got {len(masks)}"
        )


def statistics_threshold(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """theta_j = mean(|w_j|) - k * std(|w_j|) over row j (biased std); keeps |w| >= theta_j, all of a row of std 0.

    ``signed=True`` takes mean and std of w itself; what is compared is |w| all the same.
    theta is float64 for float64 weights, float32 otherwise; the comparison uses theta as returned.
    """
    rows, columns = rows_and_columns(weight.shape)
    magnitude = weight.detach().reshape(rows, columns).to(torch.float64).abs()
    sample = weight.detach().reshape(rows, columns).to(torch.float64) if signed else magnitude
    if not bool(torch.isfinite(sample).all()):
        row = int((~torch.isfinite(sample)).any(1).nonzero()[0])
        raise Error(f"statistics_threshold: weight must be finite, got NaN or Inf in neuron {row}")
    if weight.numel() == 0:
        theta = torch.zeros(rows, dtype=torch.float64, device=weight.device)
        constant = torch.ones(rows, dtype=torch.bool, device=weight.device)
    else:
        theta = sample.mean(1) - k * sample.std(1, correction=0)
        constant = sample.amax(1) == sample.amin(1)
    theta = theta.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    keep = (magnitude >= theta.to(torch.float64).unsqueeze(1)) | constant.unsqueeze(1)
    mask = mask_pack(keep)
    return mask_apply(weight, mask), mask, theta


def statistics_threshold_(weight: Tensor, k: float, signed: bool = False) -> tuple[Tensor, Tensor]:
    pruned, mask, theta = statistics_threshold(weight, k, signed)
    weight.copy_(pruned)
    return mask, theta


def _theta_view(x: Tensor, theta: Tensor) -> Tensor:
    """theta broadcast along the channel: dim 1 of x (dim -1 when x is 1-d or 2-d)."""
    if theta.numel() == 1 or x.dim() == 0:
        return theta.reshape(())
    shape = [1] * x.dim()
    shape[1 if x.dim() > 2 else -1] = theta.numel()
    return theta.reshape(shape)


def threshold_relu(x: Tensor, theta: Tensor, max: float | None = None) -> tuple[Tensor, Tensor]:
    """y = 0 where x < theta, else x, clamped above at ``max``; the mask marks what passes a gradient.

    NaN stays NaN and passes its gradient, as in ``torch.relu``; at x == 0 and at x >= max no gradient passes.
    theta: one value per channel, or a single value; float32 or float64; finite and >= 0.
    """
    wide = x if x.dtype == torch.float64 else x.float()  # what is compared
    limit = _theta_view(x, theta.to(wide.dtype))
    y = torch.where(wide < limit, torch.zeros((), dtype=x.dtype, device=x.device), x)
    blocked = (wide < limit) | (wide <= 0)
    if max is not None:
        upper = torch.tensor(max, dtype=wide.dtype, device=x.device)
        y = torch.where((wide > upper) & (wide >= limit), upper.to(x.dtype), y)
        blocked = blocked | (wide >= upper)
    return y, mask_pack(~blocked)


def threshold_relu_(x: Tensor, theta: Tensor, max: float | None = None) -> Tensor:
    y, mask = threshold_relu(x, theta, max)
    x.copy_(y)
    return mask


def sparse_weight(mask: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """The dense weight that (mask, values) stand for; differentiable in ``values`` ``[nnz]``."""
    keep = mask_unpack(mask, shape)
    _check_count("sparse_weight: values", keep, values.numel())
    dense = torch.zeros(keep.shape, dtype=values.dtype, device=values.device)
    return dense.masked_scatter(keep, values)


def sparse_values(weight: Tensor, mask: Tensor, nonzeros: int) -> Tensor:
    """The elements of ``weight`` at the mask's bits, ``[nonzeros]``, in the order of the bits."""
    keep = mask_unpack(mask, weight.shape)
    _check_count("sparse_values: nonzeros", keep, nonzeros)
    return weight[keep]


def _check_count(what: str, keep: Tensor, count: int) -> None:
    if int(keep.sum()) != count:
        raise Error(f"{what} must have one element for each of the {int(keep.sum())} bits of mask, got {count}")


def sparse_linear(x: Tensor, mask: Tensor, values: Tensor, bias: Tensor | None, plan: int = 0) -> Tensor:
    """``F.linear`` with the weight unpacked; ``plan`` is not needed here."""
    return F.linear(x, sparse_weight(mask, values, (mask.shape[0], x.shape[-1])), bias)


def sparse_conv2d(
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
    """``F.conv2d`` with the weight unpacked; ``plan`` is not needed here."""
    shape = (mask.shape[0], x.shape[1] // groups, *kernel_size)
    weight = sparse_weight(mask, values, shape)
    return F.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)
