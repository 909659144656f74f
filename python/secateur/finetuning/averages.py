"""The student's values: kept, put back, and averaged while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .. import masks
from .._base.signals import held_signals

Values = dict[str, Tensor]


def live(net: nn.Module) -> Values:
    """The parameters that train and all buffers, by name; the very tensors."""
    found: Values = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    found.update({name: t for name, t in net.named_buffers() if isinstance(t, Tensor)})
    return found


def statistics(net: nn.Module) -> list[str]:
    """The names of BatchNorm's running statistics, which an average of weights needs averaged as well."""
    return [
        f"{name}.{kind}".lstrip(".")
        for name, module in net.named_modules()
        if isinstance(module, _NormBase)
        for kind in ("running_mean", "running_var")
        if getattr(module, kind, None) is not None
    ]


def copied(values: Mapping[str, Tensor]) -> Values:
    return {name: t.detach().clone() for name, t in values.items()}


def put(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values into the student, in place; masks hold."""
    with torch.no_grad():
        for name, t in live(net).items():
            if name in values:
                if t.shape != values[name].shape:  # a buffer that grew in a forward
                    t.resize_(values[name].shape)
                t.copy_(values[name])
    masks.apply(net)


class Average:
    """An exponential moving average of weights and of BatchNorm's statistics (Polyak and Juditsky, 1992).

    Its decay at step t is (1 + t) / (10 + t), at most ``HIGHEST``: it spans about the last ninth of the steps, so that
    the start is forgotten and the length of the run need not be known. Masked weights are zero in all terms, and so in
    the average.
    """

    HIGHEST = 0.9998

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        names = {name for name, p in net.named_parameters() if p.requires_grad} | set(statistics(net))
        self.values: Values = copied({name: t for name, t in live(net).items() if name in names})
        self._before: Values | None = None  # the student's own values, while it has the averaged ones

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the student's values after ``step`` steps."""
        decay = min(self.HIGHEST, (1 + step) / (10 + step))
        now = live(self.net)
        torch._foreach_lerp_(list(self.values.values()), [now[name] for name in self.values], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The student has the averaged values in the block."""
        try:
            with held_signals():
                self._before = copied({name: t for name, t in live(self.net).items() if name in self.values})
                put(self.net, self.values)
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Give the student the values from before :meth:`in_place`, unless it has them."""
        with held_signals():
            if self._before is not None:
                put(self.net, self._before)
                self._before = None

    @torch.no_grad()
    def mend_statistics(self) -> None:
        """Statistics that a batch has made NaN or Inf are the average's."""
        now = live(self.net)
        for name in statistics(self.net):
            if name in now and not bool(torch.isfinite(now[name]).all()):
                now[name].copy_(self.values[name])


__all__ = ["Average", "Values", "copied", "live", "put", "statistics"]
