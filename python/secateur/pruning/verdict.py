"""What was decided for one weight, stored so that writing it cannot fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..masks.weights import Weight
from .criteria.base import Written
from .targets import Target


@dataclass(frozen=True)
class Verdict:
    """The changes to be written to one weight."""

    target: Target
    gone: int  # weights that were zero before
    step: int  # how closely a share of zeros can be hit
    notes: tuple[str, ...]
    mask: Tensor | None = None  # packed; None: ``fused`` makes it
    theta: Tensor | None = None
    k: float | None = None
    values: Tensor | None = None  # new values, in the weight's shape and type
    bias: Tensor | None = None  # in the bias's type
    fused: Callable[[Tensor], Written] | None = None  # decides and writes in one pass


def bias_of(weight: Weight) -> nn.Parameter | None:
    """The bias that belongs to a weight alone: of a layer with one weight that is not tied."""
    bias = weight.module._parameters.get("bias") if weight.parameter == "weight" else None
    if bias is None or len(weight.places) > 1 or type(bias.data) is not Tensor or bias.dim() != 1:
        return None
    return bias
