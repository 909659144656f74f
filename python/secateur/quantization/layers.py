"""The convolutions and linear layers of a model, as plain layers with the weights that their next forward uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .._base.modules import why_not_replaceable, with_current_weight
from ..graph.operators import CONV2D, LINEAR
from ..masks import get_mask
from ..nn import SparseConv2d, SparseLinear

#: Layers with weights that have no int8 form: named in the report, left as they are.
_OTHERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)


@dataclass
class Layer:
    """One call of a convolution or linear layer."""

    name: str
    module: nn.Module  # a plain nn.Conv2d or nn.Linear where it can be quantized
    why: str = ""  # why it stays in fp32
    mask: Tensor | None = None  # packed, of secateur.prune or torch.nn.utils.prune


def is_layer(module: nn.Module) -> bool:
    """Whether a module belongs in the report: it has weights that it multiplies with."""
    return isinstance(module, _OTHERS)


def refuse_not_finite(caller: str, path: str, module: nn.Module) -> None:
    """An Error that names the first of a layer's own parameters and buffers that is NaN or infinite, if one is."""
    for name, t in [*module.named_parameters(path, False), *module.named_buffers(path, False)]:
        if t.is_floating_point() and not bool((finite := torch.isfinite(t.detach())).all()):
            raise Error(f"{caller}: {name} must be finite, got {float(t.detach()[~finite][0])}")


def why_not(module: nn.Module) -> str:
    """Why a layer cannot be quantized; empty where it can."""
    kind = type(module)
    if kind not in LINEAR.modules + CONV2D.modules:
        return f"{kind.__name__} has no int8 form"
    if more := why_not_replaceable(module):
        return more
    weight = module.weight
    if not isinstance(weight, Tensor) or nn.parameter.is_lazy(weight) or weight.is_meta:
        return "its weight is not there yet"
    if not weight.is_floating_point() or not bool(torch.isfinite(weight).all()):
        return "its weight must be finite floating point"
    if weight.numel() == 0:
        return "it has no weights"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r} has no int8 form"
        if isinstance(module.padding, str) and _padding(module) is None:
            return "padding 'same' of an even kernel has no int8 form"
    return ""


def _padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """Rows and columns on each side; None where one side has more."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    rows, columns = cast(tuple[int, int], module.padding)
    return rows, columns


def plain(module: nn.Module, made_of: dict[int, nn.Parameter] | None = None) -> nn.Conv2d | nn.Linear:
    """A plain layer like this one, a copy: masks and pruning hooks gone, their zeros in the weight.

    ``made_of`` (id of a parameter -> its copy) gives layers that share a parameter one copy of it.
    """
    if isinstance(module, SparseConv2d | SparseLinear):
        return module.to_dense()
    module = with_current_weight(module)
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    learns = weight.requires_grad
    with torch.no_grad():
        if (mask := get_mask(module, "weight")) is not None:
            from .. import ops

            weight = weight.detach() * ops.mask_unpack(mask, weight.shape)
        made: nn.Conv2d | nn.Linear
        if isinstance(module, nn.Conv2d):
            made = nn.Conv2d(
                module.in_channels, module.out_channels, cast(Any, module.kernel_size), cast(Any, module.stride),
                cast(Any, _padding(module)), cast(Any, module.dilation), module.groups, bias is not None,
                device="meta",
            )  # fmt: skip
        else:
            assert isinstance(module, nn.Linear)
            made = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
        made.weight = nn.Parameter(weight.detach().clone(), learns)
        made.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
    for name in ("weight", "bias") if made_of is not None else ():
        original = module._parameters.get(name)
        if original is not None and made_of is not None:
            setattr(made, name, made_of.setdefault(id(original), getattr(made, name)))
    return made.train(module.training)


def mask_of(module: nn.Module) -> Tensor | None:
    """The packed mask of a pruned layer's weight, uint8, or None."""
    mask = get_mask(module, "weight")
    if mask is not None:
        return mask.detach().clone()
    foreign = module._buffers.get("weight_mask")
    if isinstance(foreign, Tensor) and foreign.shape == getattr(module, "weight", foreign).shape:
        from .. import ops

        return ops.mask_pack(foreign != 0)
    return None


def fold_norm(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """A BatchNorm's running statistics into the weights before it, in place; computed in float64."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

    assert norm.running_mean is not None
    assert norm.running_var is not None

    def wide(t: Tensor | None) -> Any:
        return None if t is None else t.detach().double()

    fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
    weight, bias = fuse(
        wide(layer.weight), wide(layer.bias), wide(norm.running_mean), wide(norm.running_var), norm.eps,
        wide(norm.weight), wide(norm.bias),
    )  # fmt: skip
    dtype, learns = layer.weight.dtype, any(p.requires_grad for p in (*layer.parameters(), *norm.parameters()))
    layer.weight = nn.Parameter(weight.detach().to(dtype), learns)
    layer.bias = nn.Parameter(bias.detach().to(dtype), learns)


def foldable(norm: nn.Module, channels: int) -> bool:
    """Whether a module is a BatchNorm that is a fixed scaling of so many channels."""
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or why_not_replaceable(norm):
        return False
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    return norm.track_running_stats and isinstance(norm.running_mean, Tensor) and norm.num_features == channels
