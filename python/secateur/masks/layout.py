"""How a stored weight holds its neurons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a stored weight holds its neurons.

    ``groups`` = 0: neuron = dim 0 (Linear, Conv, the rows of an LSTM). ``groups`` > 0: a transposed convolution's
    [C_in, K / groups, taps], where neuron = dim 1 within a group.
    """

    groups: int = 0

    def neurons(self, weight: Tensor) -> Tensor:
        """weight as [J, C, T] (a view where dim 0 is the neuron)."""
        if self.groups:
            taps = weight.shape[2:].numel()
            return (
                weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], taps)
                .transpose(1, 2)
                .reshape(self.groups * weight.shape[1], weight.shape[0] // self.groups, taps)
            )
        if weight.dim() < 2:
            return weight.reshape(weight.shape[0] if weight.dim() else 1, 1, 1)
        return weight.reshape(weight.shape[0], weight.shape[1], weight.shape[2:].numel())

    def stored(self, neurons: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`neurons`: [J, C, T] back to the stored shape."""
        if self.groups:
            split = neurons.reshape(self.groups, shape[1], shape[0] // self.groups, -1)
            return split.transpose(1, 2).reshape(shape)
        return neurons.reshape(shape)
