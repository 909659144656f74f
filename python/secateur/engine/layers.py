"""Layers with weights, and pools: what they are in the engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..conversion import _up_to_date
from .program import Size
from .steps import LEAD, PLANES, ROWS, ROWS4, Context, Step, Unsupported, bind, pair


def conv2d_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    if module.padding_mode != "zeros":
        raise Unsupported(f"it pads by {module.padding_mode}")
    left, right, top, bottom = module._reversed_padding_repeated_twice
    fresh: Any = _up_to_date(module)
    return _conv2d(
        ctx, node, bind(node, "input")["input"], fresh.weight, fresh.bias, pair(module.stride),
        (top, left, bottom, right), pair(module.dilation), module.groups,
    )  # fmt: skip


def conv2d_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input weight bias stride padding dilation groups", stride=1, padding=0, dilation=1, groups=1)
    weight, bias = ctx.constant(a["weight"], "weight"), ctx.constant(a["bias"], "bias")
    assert weight is not None
    dilation = pair(ctx.number(a["dilation"]))
    padding = a["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sides = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        sides = (*pair(ctx.number(padding)), *pair(ctx.number(padding)))
    return _conv2d(
        ctx, node, a["input"], weight, bias, pair(ctx.number(a["stride"])), sides, dilation, ctx.number(a["groups"])
    )


def _conv2d(
    ctx: Context, node: fx.Node, x: Any, weight: Tensor, bias: Tensor | None, stride: Size,
    padding: tuple[int, int, int, int], dilation: Size, groups: int,
) -> Step:  # fmt: skip
    source = ctx.source(x, PLANES, ROWS4)
    _check_weight(ctx, weight)
    if source[1] == PLANES:
        return Step(
            "conv2d", node, [source], PLANES, weight=weight.detach(), bias=_detach(bias), stride=stride,
            padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip
    # A 1x1 map meets one tap of the kernel.
    if ctx.meta(node).shape[2:] != (1, 1) or any(p % d for p, d in zip(padding[:2], dilation, strict=True)):  # type: ignore[index]
        raise Unsupported("its input is a pooled map, which it pads")
    dense = _ungrouped(weight.detach()[:, :, padding[0] // dilation[0], padding[1] // dilation[1]], groups)
    return Step("linear", node, [source], ROWS4, weight=dense, bias=_detach(bias))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups] -> [K, C], zeros outside of each group's block."""
    if groups == 1:
        return weight
    return torch.block_diag(*weight.chunk(groups))  # type: ignore[no-untyped-call,no-any-return,unused-ignore]


def linear_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    fresh: Any = _up_to_date(module)
    return _linear(ctx, node, bind(node, "input")["input"], fresh.weight, fresh.bias)


def linear_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(node, "input weight bias")
    weight = ctx.constant(a["weight"], "weight")
    assert weight is not None
    return _linear(ctx, node, a["input"], weight, ctx.constant(a["bias"], "bias"))


def _linear(ctx: Context, node: fx.Node, x: Any, weight: Tensor, bias: Tensor | None) -> Step:
    if weight.dim() != 2:
        raise Unsupported("its weight is no matrix")
    source = ctx.source(x, ROWS, LEAD)
    _check_weight(ctx, weight)
    return Step("linear", node, [source], source[1], weight=weight.detach(), bias=_detach(bias))


def _check_weight(ctx: Context, weight: Tensor) -> None:
    if weight.dtype not in ctx.dtypes or weight.device.type != "cpu":
        dtype = str(weight.dtype).removeprefix("torch.")
        raise Unsupported(f"the engine computes float32 on the CPU, its weight is {dtype} on {weight.device.type}")
    if weight.numel() == 0:
        raise Unsupported("it has no weights")


def _detach(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()


def batch_norm_module(ctx: Context, node: fx.Node, module: Any) -> Step:
    x = bind(node, "input")["input"]
    if module.running_mean is None or module.running_var is None:
        raise Unsupported("it keeps no running statistics and takes each batch's own")
    return _batch_norm(ctx, node, x, module.running_mean, module.running_var, module.weight, module.bias, module.eps)


def batch_norm_function(ctx: Context, node: fx.Node) -> Step:
    a = bind(
        node, "input running_mean running_var weight bias training momentum eps", training=False, momentum=0.1, eps=1e-5
    )
    if a["training"] is not False:
        raise Unsupported("it takes each batch's own statistics")
    mean, var = ctx.constant(a["running_mean"], "mean"), ctx.constant(a["running_var"], "variance")
    if mean is None or var is None:
        raise Unsupported("it keeps no running statistics and takes each batch's own")
    weight, bias = ctx.constant(a["weight"], "weight"), ctx.constant(a["bias"], "bias")
    return _batch_norm(ctx, node, a["input"], mean, var, weight, bias, ctx.number(a["eps"]))


def _batch_norm(
    ctx: Context, node: fx.Node, x: Any, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Step:  # fmt: skip
    source = ctx.source(x, PLANES, ROWS, ROWS4)
    scale = (var.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return Step("map", node, [source], source[1], scale=scale, shift=shift)


def max_pool(ctx: Context, node: fx.Node, x: Any, a: dict[str, Any]) -> Step:
    if a.get("return_indices"):
        raise Unsupported("it returns indices")
    kernel = pair(ctx.number(a["kernel_size"]))
    stride = ctx.number(a["stride"])
    return Step(
        "max_pool", node, [ctx.source(x, PLANES)], PLANES, kernel=kernel,
        stride=pair(stride) if stride not in (None, (), []) else kernel,
        padding=(*pair(ctx.number(a["padding"])), 0, 0), dilation=pair(ctx.number(a["dilation"])),
        ceil_mode=bool(a["ceil_mode"]),
    )  # fmt: skip


def avg_pool(ctx: Context, node: fx.Node, x: Any, a: dict[str, Any]) -> Step:
    source = ctx.source(x, PLANES)
    kernel, padding = pair(ctx.number(a["kernel_size"])), pair(ctx.number(a["padding"]))
    stride = ctx.number(a["stride"])
    step = Step(
        "avg_pool", node, [source], PLANES, kernel=kernel,
        stride=pair(stride) if stride not in (None, (), []) else kernel, padding=(*padding, 0, 0),
        ceil_mode=bool(a["ceil_mode"]), count_include_pad=bool(a["count_include_pad"]),
        divisor=int(a["divisor_override"] or 0),
    )  # fmt: skip
    shape = ctx.meta(source[0]).shape
    computed = isinstance(a["kernel_size"], fx.Node) or (
        isinstance(a["kernel_size"], tuple | list) and any(isinstance(k, fx.Node) for k in a["kernel_size"])
    )
    if computed and shape is not None and shape[2:] == kernel and padding == (0, 0) and not step.divisor:
        return Step("global_avg_pool", node, [source], ROWS4)
    return step


def adaptive_avg_pool(ctx: Context, node: fx.Node, x: Any, size: Any) -> Step:
    source = ctx.source(x, PLANES, ROWS4)
    height, width = (ctx.meta(source[0]).shape or ())[2:]
    wanted = (size, size) if size is None or isinstance(size, int) else tuple(ctx.number(size))
    target = tuple(have if want is None else want for want, have in zip(wanted, (height, width), strict=True))
    if source[1] == ROWS4:
        if target != (1, 1):
            raise Unsupported("it enlarges a pooled map")
        return Step("alias", node, [source], ROWS4)
    if target == (1, 1) and None not in wanted:
        return Step("global_avg_pool", node, [source], ROWS4)
    ctx.size_bound = True
    if target == (height, width):
        return Step("alias", node, [source], PLANES)
    if height % target[0] or width % target[1]:
        raise Unsupported(f"{height}x{width} does not divide evenly into {target[0]}x{target[1]}")
    kernel = (height // target[0], width // target[1])
    return Step("avg_pool", node, [source], PLANES, kernel=kernel, stride=kernel)


def mean(ctx: Context, node: fx.Node, x: Any, a: dict[str, Any]) -> Step:
    source = ctx.source(x, PLANES, ROWS4)
    dims = ctx.number(a["dim"])
    axes = {d % 4 for d in ((dims,) if isinstance(dims, int) else dims or ())}
    if axes != {2, 3} or a["dtype"] is not None:
        raise Unsupported("it is no mean over height and width")
    out = ROWS4 if a["keepdim"] else ROWS
    if source[1] == ROWS4:
        return Step("alias", node, [source], out)
    return Step("global_avg_pool", node, [source], out)


def pad(ctx: Context, node: fx.Node, x: Any, sides: Any, mode: str, value: Any) -> Step:
    """Zeros around an image, for a convolution to take over."""
    source = ctx.source(x, PLANES)
    numbers = ctx.number(sides)
    if mode != "constant" or (value is not None and value != 0):
        raise Unsupported(f"it pads by {mode if mode != 'constant' else value}")
    if len(numbers) not in (2, 4) or min(numbers) < 0:
        raise Unsupported(f"it pads by {list(numbers)}")
    left, right, top, bottom = (*numbers, 0, 0)[:4]
    return Step("pad", node, [source], PLANES, padding=(top, left, bottom, right))


MODULES: dict[type[nn.Module], Any] = {
    nn.Conv2d: conv2d_module,
    nn.Linear: linear_module,
    nn.BatchNorm2d: batch_norm_module,
    nn.BatchNorm1d: batch_norm_module,
    nn.SyncBatchNorm: batch_norm_module,
}
