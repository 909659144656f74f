"""Weights as signed bytes: one scale an output channel, zeros exactly zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantized import LARGEST_SUM

#: The largest bias, in units of the sums: half of the largest 32-bit integer.
_LARGEST_BIAS = 2**30
#: A channel whose weights are all zero gives its bias alone, in units that keep so many bits of it.
_BIAS_STEPS = 2**20
_SHARES = torch.linspace(0.6, 1.0, 17)
_CHUNK = 1 << 22  # weights looked at together


def settle(rows: Tensor, scale: Tensor, bias: Tensor | None, input_scale: float) -> Tensor:
    """``scale [K]`` raised where the sums of ``rows [K, n]`` or the bias would leave 32 bits, and set where it is 0."""
    size = torch.zeros_like(scale) if bias is None else bias.detach().to(torch.float32).abs()
    empty = scale <= torch.finfo(torch.float32).tiny * 2**24
    alone = torch.where(size > 0, size / (input_scale * _BIAS_STEPS), torch.ones_like(scale))
    scale = torch.where(empty, alone, scale)
    scale = torch.maximum(scale, size / (input_scale * _LARGEST_BIAS) * (1 + 1e-6))
    for _ in range(64):
        reach = 255.0 * to_bytes(rows, scale).double().abs().sum(1) + (size / (input_scale * scale)).double()
        over = reach > LARGEST_SUM - 1
        if not bool(over.any()):
            break
        scale = torch.where(over, scale * 1.25, scale)
    return scale


def to_bytes(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 in [-127, 127]."""
    shape = [-1] + [1] * (weight.dim() - 1)
    return torch.round(weight.detach().to(torch.float32) / scale.reshape(shape)).clamp_(-127, 127).to(torch.int8)


def from_bytes(weight: Tensor, scale: Tensor) -> Tensor:
    """The real weights, float32, that int8 ones stand for."""
    return weight.to(torch.float32) * scale.reshape([-1] + [1] * (weight.dim() - 1))


def best_shares(weight: Tensor) -> Tensor:
    """``[K]``, up to 1: the share of a channel's largest weight that the byte 127 should stand for; larger ones
    become 127. By the least squared error."""
    rows = weight.detach().to(torch.float32).flatten(1)
    best = torch.ones(rows.shape[0], device=rows.device)
    step = max(_CHUNK // max(rows.shape[1], 1), 1)
    for part in range(0, rows.shape[0], step):
        w = rows[part : part + step]
        top = w.abs().amax(1)
        safe = torch.where(top > 0, top, torch.ones_like(top)) / 127
        least = torch.full_like(top, torch.inf)
        for share in _SHARES.tolist():
            scale = (safe * share).unsqueeze(1)
            error = (torch.round(w / scale).clamp_(-127, 127).mul_(scale).sub_(w)).square_().sum(1)
            better = error < least
            best[part : part + step] = torch.where(better, share, best[part : part + step])
            least = torch.where(better, error, least)
    return best


def block_fill(weight: Tensor) -> tuple[int, int, int]:
    """(blocks of 1x4 that hold a nonzero, blocks, nonzeros) of a weight ``[K, C, ...]``: four input channels at one
    kernel tap; the last block of a channel count that four does not divide is shorter."""
    nonzero = (weight != 0).reshape(weight.shape[0], weight.shape[1], -1)  # [K, C, T]
    padded = torch.nn.functional.pad(nonzero, (0, 0, 0, -weight.shape[1] % 4))
    counts = padded.reshape(weight.shape[0], -1, 4, padded.shape[2]).sum(2)
    return int((counts > 0).sum()), counts.numel(), int(nonzero.sum())
