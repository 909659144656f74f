"""Second moments of a layer's inputs, summed up while the batches pass, from a sample of the positions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .._base.errors import Error
from .columns import Choice, columns_of
from .walk import Use

#: Of all positions of all batches so many are taken: 28 for each input of the widest layer of ResNet-50.
POSITIONS = 1 << 17


class InputMoments:
    """Sums over positions, for one network's inputs x and (where there are two networks) another one's, d.

    Products are taken in the type of the columns, of their distances from the first columns' means, so that the
    covariance of inputs far from 0 is not lost in rounding; sums are in float64.
    """

    def __init__(self, G: int, F: int, device: torch.device, pairs: bool) -> None:
        zeros = torch.zeros(G, F, dtype=torch.float64, device=device)
        self.count = 0
        self._from = [torch.zeros_like(zeros) for _ in range(1 + pairs)]  # where distances are taken from
        self._sums = [torch.zeros_like(zeros) for _ in range(1 + pairs)]  # of distances
        self._products = [zeros.new_zeros(G, F, F) for _ in range(1 + pairs)]  # with those of x

    def add(self, x: Tensor, d: Tensor | None = None) -> None:
        """Take in columns [G, F, m]; those of a layer in parts come whole, as [1, G * F, m]."""
        both = [each.reshape(*self._sums[0].shape, -1) for each in ([x] if d is None else [x, d])]
        x = both[0]
        if self.count == 0 and x.shape[2]:
            self._from = [each.mean(2).to(torch.float64) for each in both]
        self.count += x.shape[2]
        apart = [each - start.to(each.dtype).unsqueeze(2) for each, start in zip(both, self._from, strict=True)]
        for sums, products, each in zip(self._sums, self._products, apart, strict=True):
            sums += each.sum(2)
            products += each @ apart[0].transpose(1, 2)

    def sums(self) -> list[Tensor]:
        """[G, F], of x and of d."""
        dtype = self._from[0].dtype
        return [total + self.count * start.to(dtype) for total, start in zip(self._sums, self._from, strict=True)]

    def products(self) -> list[Tensor]:
        """[G, F, F], of x x^T and of d x^T."""
        x, start = self._sums[0], self._from[0]
        found = []
        for products, total, other in zip(self._products, self._sums, self._from, strict=True):
            moved = total + self.count * other
            found.append(products + moved[:, :, None] * start[:, None, :] + other[:, :, None] * x[:, None, :])
        return found


class Sampler:
    """Which positions of a call are taken; the same for every network, and under a seed in every run."""

    def __init__(self, seed: int, label: str, batches: int | None, positions: int = POSITIONS) -> None:
        self.seed, self.label = seed, label
        self.each = positions if batches is None else max(1, -(-positions // batches))

    def choice(self, batch: int, use: int, uses: int) -> Choice:
        most = max(1, self.each // max(uses, 1))
        generator = torch.Generator()
        generator.manual_seed((self.seed * 0x9E3779B1 + zlib.crc32(f"{self.label} {batch} {use}".encode())) % 2**63)

        def choose(n: int, of: int) -> Tensor | None:
            if of <= most:
                return None
            return torch.randperm(n, generator=generator)[: -(-n * most // of)].sort().values

        return choose


def add_uses(
    into: InputMoments,
    holders: Sequence[Sequence[tuple[nn.Module, str]]],
    uses: Sequence[Sequence[Use]],
    choices: Sequence[Sequence[Choice]],
    label: str,
    caller: str,
) -> None:
    """Take in the calls of one batch, in one network or two.

    Args:
        holders: for each network, the modules that hold the weight, and its name in them. uses: for each network, the
            calls. choices: for each network, which positions to take of each call, the same in both.
    """
    if any(len(each) != len(uses[0]) for each in uses):
        raise Error(f"{caller}: dense must call {label} as often as model does")
    double = holders[0][0][0]._parameters[holders[0][0][1]].dtype == torch.float64  # type: ignore[union-attr]
    dtype = torch.float64 if double else torch.float32

    def columns(network: int, number: int) -> Iterator[Tensor]:
        use = uses[network][number]
        module, parameter = holders[network][use.place]
        return columns_of(module, parameter, use.args, use.kwargs, label, dtype, choices[network][number])

    for number in range(len(uses[0])):
        if len(uses) == 1:
            for x in columns(0, number):
                into.add(x)
        else:
            for x, d in zip(columns(0, number), columns(1, number), strict=True):
                into.add(x, d)
