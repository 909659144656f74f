"""The running statistics of BatchNorm layers, taken again over all batches as a cumulative average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .._base.errors import Error
from .calls import Call


@dataclass(frozen=True)
class Statistics:
    """Of one layer, after all batches."""

    mean: Tensor  # [C]
    var: Tensor  # [C], unbiased within a batch, as torch takes it
    batches: int


def normalization_layers(model: nn.Module) -> dict[str, _NormBase]:
    """The layers with running statistics (BatchNorm, SyncBatchNorm; InstanceNorm where it tracks them), by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
    }


def write(layer: _NormBase, made: Statistics) -> None:
    """Put them into a layer's buffers."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.detach().copy_(made.mean)
    layer.running_var.detach().copy_(made.var)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(made.batches)


def fresh_statistics(work: nn.Module, calls: Iterable[Call], caller: str) -> dict[str, Statistics]:
    """Each layer's statistics over ``calls``; layers that the model does not call are left out.

    Each layer normalizes with the batch's own statistics meanwhile, as in training, so that the layers behind it see
    what they will see afterwards.

    Args:
        work: ours, in evaluation mode within a trial. Its layers' buffers are written.
    """
    layers = normalization_layers(work)
    with _training(layers):
        for call in calls:
            _run(call, work)
    made = {}
    for name, layer in layers.items():
        count = int(layer.num_batches_tracked) if layer.num_batches_tracked is not None else 0
        if not count:
            continue
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all()):
            raise Error(f"{caller} must give {name or type(layer).__name__} finite inputs, got NaN or Inf")
        made[name] = Statistics(mean, var, count)
    return made


@contextmanager
def _training(layers: dict[str, _NormBase]) -> Iterator[None]:
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # torch's cumulative average
        layer.training = True
    try:
        yield
    finally:
        for layer in layers.values():
            layer.training = False


def _run(call: Call, work: nn.Module) -> None:
    try:
        call.run(work)
    except Error as error:
        if "more than 1 value per channel" in str(error) or "more than 1 spatial element" in str(error):
            raise Error(
                f"{call.caller} must hold several samples a batch, for a layer's own statistics: {error}"
            ) from error
        raise


class Pooled:
    """Mean and variance of each channel over all batches, each sample counting alike."""

    def __init__(self) -> None:
        self.count = 0
        self.batches = 0
        self.mean: Tensor | None = None  # [C] float64
        self.squares: Tensor | None = None  # [C], sums of squared distances from the mean

    def add(self, x: Tensor) -> None:
        """Take in x [N, C, ...]."""
        dims = [d for d in range(x.dim()) if d != 1]
        n = x.numel() // max(x.shape[1], 1)
        self.batches += 1
        if n == 0:
            return
        var, mean = torch.var_mean(
            x.to(torch.float64 if x.dtype == torch.float64 else torch.float32), dims, correction=0
        )
        mean, squares = mean.to(torch.float64), var.to(torch.float64) * n
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = n, mean, squares
            return
        apart, total = mean - self.mean, self.count + n
        self.squares = self.squares + squares + apart.square() * (self.count * n / total)
        self.mean = self.mean + apart * (n / total)
        self.count = total

    @property
    def var(self) -> Tensor:
        assert self.squares is not None
        return self.squares / max(self.count - 1, 1)

    def statistics(self) -> Statistics:
        assert self.mean is not None
        return Statistics(self.mean, self.var, self.batches)
