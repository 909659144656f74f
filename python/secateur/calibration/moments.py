"""Each output channel's mean and variance made what they are in a dense network, by bias and scale.

For layers that no BatchNorm follows; those that one follows have their moments set by it. Jordan et al., "REPAIR", ICLR
2023, do the same with inserted BatchNorm layers; means alone are Nagel et al.'s bias correction, ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from .._base.errors import Error
from ..masks.weights import Weight, weights_of
from .calls import Calls
from .columns import CONVOLUTIONS, TRANSPOSED
from .normalization import Pooled
from .walk import Use, Walk

#: A channel whose standard deviation is below this share of the dense one's is a constant: nothing scales it up.
_CONSTANT = 1e-3


@dataclass(frozen=True)
class Matched:
    """A layer's change: weights times ``scale`` [K], then ``bias`` [K] (None: it has none)."""

    scale: Tensor
    bias: Tensor | None
    mean_shift: float
    std_ratio: float


def match_moments(
    work: nn.Module, dense: nn.Module, calls: Calls, progress: bool
) -> tuple[dict[str, Matched], list[str]]:
    """Match every such layer of ``work``, in the order of their calls, on what those before it give by then.

    Args:
        work, dense: ours, each within a trial; ``work`` is written.

    Returns:
        By layer: what was changed. Notes.
    """
    walk = Walk([work, dense], calls)
    weights = {w.module_name: w for w in weights_of(work, "recalibrate") if _fits(w)}
    twins = dict(dense.named_modules())
    norms = [name for name, module in work.named_modules() if isinstance(module, _BatchNorm)]
    made: dict[str, Matched] = {}
    order = [name for name in walk.begin([*weights, *norms]) if name in weights and name not in walk.normalized]
    for name in tqdm(order, desc="matching layers", disable=not progress, leave=False):
        weight, twin = weights[name], twins.get(name)
        if twin is None or not isinstance(twin, type(weight.module)):
            raise Error(
                f"recalibrate: dense must have model's layers, but has no {type(weight.module).__name__} {name!r}"
            )
        ours, theirs = Pooled(), Pooled()
        for uses in walk.uses([name]):
            for pool, layer, calls_of in ((ours, weight.module, uses[0]), (theirs, twin, uses[1])):
                for use in calls_of:
                    pool.add(_output(layer, use))
        if ours.mean is None or theirs.mean is None:
            continue
        if not bool(torch.isfinite(ours.mean + theirs.mean).all()):
            raise Error(f"{calls.caller} must give {name or 'the layer'} finite outputs, got NaN or Inf")
        made[name] = _matched(weight, ours, theirs)
        apply(weight, made[name])
    return made, walk.notes


def apply(weight: Weight, change: Matched) -> None:
    """Write a change into a layer; zeros stay zeros."""
    value = weight.value.detach()
    neurons = weight.layout.neurons(value).to(torch.float64) * change.scale.reshape(-1, 1, 1)
    value.copy_(weight.layout.stored(neurons, value.shape))
    if change.bias is not None:
        weight.module._parameters["bias"].detach().copy_(change.bias)  # type: ignore[union-attr]


def _fits(weight: Weight) -> bool:
    plain = isinstance(weight.module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))
    return plain and weight.problem is None and weight.foreign is None and len(weight.places) == 1


def _output(layer: nn.Module, use: Use) -> Tensor:
    """[N, K, positions]."""
    out: Tensor = layer(*use.args, **use.kwargs)
    if isinstance(layer, nn.Linear):
        return out.reshape(-1, out.shape[-1])
    spatial = len(layer.kernel_size)  # type: ignore[arg-type]
    return out.unsqueeze(0) if out.dim() == spatial + 1 else out


def _matched(weight: Weight, ours: Pooled, theirs: Pooled) -> Matched:
    assert ours.mean is not None
    assert theirs.mean is not None
    std, wanted = ours.var.sqrt(), theirs.var.sqrt()
    varied = std > _CONSTANT * wanted
    scale = torch.where(varied & (wanted > 0), wanted / std.clamp(min=1e-30), 1.0)
    bias = weight.module._parameters.get("bias")
    shift = None
    if bias is not None:
        shift = theirs.mean - scale * (ours.mean - bias.detach().to(torch.float64))
    apart = (theirs.mean - ours.mean).abs() / wanted.clamp(min=1e-30)
    known = varied & (wanted > 0)
    return Matched(
        scale,
        shift,
        float(apart[wanted > 0].mean()) if bool((wanted > 0).any()) else 0.0,
        float(scale[known].log().mean().exp()) if bool(known.any()) else 1.0,
    )
