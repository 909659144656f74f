"""A layer's inputs as its weights see them: one column of F = C * T numbers a position, in the order of the weights.

Linear and convolutions of all kinds see one column a position, groups apart; MultiheadAttention's joint matrix sees
queries, keys and values, which count as three groups; an RNN's matrices see one column a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.errors import Error
from . import recurrent

#: Inputs are unfolded so many bytes at a time.
CHUNK_BYTES = 1 << 26

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Which of the next ``n`` positions, of so many in the call, are taken: their numbers [m], or None for all of them.
Choice = Callable[[int, int], Tensor | None]


def everything(n: int, of: int) -> Tensor | None:
    return None


def problem_of(module: nn.Module, parameter: str) -> str:
    """Why a weight's inputs are not known; empty: they are."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.RNNCellBase, nn.MultiheadAttention)):
        return ""
    if isinstance(module, nn.RNNBase):
        return "an RNN, LSTM or GRU with projections (proj_size) is not supported" if module.proj_size else ""
    return f"{type(module).__name__} is not supported yet"


def groups_of(module: nn.Module, parameter: str) -> int:
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return module.groups
    return 3 if parameter == "in_proj_weight" else 1


def columns_of(
    module: nn.Module,
    parameter: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    label: str,
    dtype: torch.dtype = torch.float64,
    choice: Choice = everything,
) -> Iterator[Tensor]:
    """The columns of one call, [G, F, m] each, some positions at a time.

    Args:
        args, kwargs: what the layer was called with. label: what errors call it. dtype: of the columns.
        choice: which of the call's positions to take.
    """
    if isinstance(module, nn.RNNBase):
        return _rows(recurrent.inputs_of(module, parameter, args, kwargs), dtype, choice)
    if isinstance(module, nn.MultiheadAttention):
        return _rows(_attention(parameter, args, kwargs), dtype, choice)
    if isinstance(module, nn.RNNCellBase):
        return _rows([recurrent.cell_input(module, parameter, args, kwargs)], dtype, choice)
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor):
        raise Error(f"prune: {label} must be called with a tensor, got {type(x).__name__}")
    x = x.detach()
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return _convolution(module, x, dtype, choice)
    return _rows([x], dtype, choice)


def _attention(parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    three = [given["query"], given["key"], given["value"]]
    return three if parameter == "in_proj_weight" else [three["qkv".index(parameter[0])]]


def _rows(groups: list[Tensor], dtype: torch.dtype, choice: Choice) -> Iterator[Tensor]:
    """Each group's own inputs [..., F]; groups may have different numbers of positions, and the shortest counts."""
    rows = [x.detach().reshape(-1, x.shape[-1]) for x in groups]  # [n, F]
    n = min(len(each) for each in rows)
    which = choice(n, n)
    width = max(rows[0].shape[1], 1)
    size = max(1, CHUNK_BYTES // (8 * width))
    rows = [each[:n] if which is None else each[which.to(each.device)] for each in rows]
    for parts in zip(*(each.split(size) for each in rows), strict=True):
        yield torch.stack([part.to(dtype).t() for part in parts])


def _convolution(module: Any, x: Tensor, dtype: torch.dtype, choice: Choice) -> Iterator[Tensor]:
    spatial = len(module.kernel_size)
    if x.dim() == spatial + 1:  # without a batch
        x = x.unsqueeze(0)
    taps = torch.Size(module.kernel_size).numel()
    each = 8 * max(x[:1].numel(), 1) * taps
    for images in x.split(max(1, CHUNK_BYTES // each)):
        windows = _windows(module, images.to(dtype), spatial)  # [N, C, outputs..., taps...]
        outputs = windows.shape[2 : 2 + spatial]
        which = choice(windows.shape[0] * outputs.numel(), x.shape[0] * outputs.numel())
        if which is None:
            order = (1, *range(2 + spatial, 2 + 2 * spatial), 0, *range(2, 2 + spatial))
            columns = windows.permute(order).reshape(module.in_channels * taps, -1)  # [C * T, n]
        else:
            place = torch.unravel_index(which.to(x.device), (windows.shape[0], *outputs))
            ahead = windows.movedim(1, 1 + spatial)  # [N, outputs..., C, taps...]
            columns = ahead[place].reshape(len(which), -1).t()
        yield columns.reshape(module.groups, module.in_channels // module.groups * taps, -1)


def _windows(module: Any, x: Tensor, spatial: int) -> Tensor:
    """What each output position sees, [N, C, outputs..., taps...]; a view where that is possible."""
    transposed = isinstance(module, TRANSPOSED)
    x = _spread(module, x, spatial) if transposed else _padded(module, x)
    for dim, (size, step, apart) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True), 2):
        x = x.unfold(dim, (size - 1) * apart + 1, 1 if transposed else step)[..., ::apart]
    return x.flip(tuple(range(2 + spatial, 2 + 2 * spatial))) if transposed else x


def _padded(module: Any, x: Tensor) -> Tensor:
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return F.pad(x, [p for size in reversed(module.padding) for p in (size, size)])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _spread(module: Any, x: Tensor, spatial: int) -> Tensor:
    """A transposed convolution is one of stride 1 over its input with zeros between, with the kernel turned round."""
    for dim, step in enumerate(module.stride, 2):
        if step > 1:
            wide = x.new_zeros(*x.shape[:dim], (x.shape[dim] - 1) * step + 1, *x.shape[dim + 1 :])
            wide[(slice(None),) * dim + (slice(None, None, step),)] = x
            x = wide
    pads: list[int] = []
    for d in reversed(range(spatial)):
        edge = module.dilation[d] * (module.kernel_size[d] - 1) - module.padding[d]
        pads += [edge, edge + module.output_padding[d]]
    return F.pad(x, pads)
