"""The models: torchvision's architectures with seeded weights, pruned by magnitude, and what they should output.

No download: speed depends on shapes and on where the zeros are, not on what a network has learned. But weights as they
are initialised let activations fade or explode once 90 % of them are zero, so after pruning each network is brought to
sane statistics: its BatchNorms take those of a few images; without BatchNorm each layer is scaled to unit output.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 0
LAYER = re.compile(r"conv-(\d+)-(\d+)-(\d+)-(\d+)(?:-s(\d+))?(?:-g(\d+))?|linear-(\d+)-(\d+)")


def image_shape(network: str) -> tuple[int, ...]:
    """Of one input, without the batch: [C, H, W], or [F] of a linear layer."""
    if layer := LAYER.fullmatch(network):
        c, _, size, _, _, _, features, _ = layer.groups()
        return (int(features),) if features else (int(c), int(size), int(size))
    return (3, 224, 224)


def build(network: str, zeros: float, images: Tensor) -> nn.Module:
    """The network in eval mode with ``zeros`` (a share) of each layer's weights zero; first and depthwise stay dense.

    Args:
        network: a torchvision name, or one layer: ``conv-C-K-SIZE-KERNEL[-sSTRIDE][-gGROUPS]``, ``linear-C-K``.
        images: [n, ...] for the statistics of the activations.
    """
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slow initialisation of some torchvision models
        model = _layer(network) if LAYER.fullmatch(network) else _torchvision(network)
    model.eval()
    _prune(model, zeros, keep_first=not LAYER.fullmatch(network))
    _settle(model, images)
    return model.requires_grad_(False)


def _torchvision(network: str) -> nn.Module:
    from torchvision import models

    return models.get_model(network, weights=None)


def _layer(network: str) -> nn.Module:
    found = LAYER.fullmatch(network)
    assert found is not None
    c, k, _, kernel, stride, groups, features, outputs = (int(g) if g else 0 for g in found.groups())
    if features:
        return nn.Sequential(nn.Linear(features, outputs), nn.ReLU())
    return nn.Sequential(nn.Conv2d(c, k, kernel, stride or 1, kernel // 2, groups=groups or 1), nn.ReLU())


@torch.no_grad()
def _prune(model: nn.Module, zeros: float, keep_first: bool) -> None:
    """What secateur.prune(model, Magnitude(zeros)) does; by numpy's partition, in a tenth of the time for VGG-16."""
    if zeros == 0:
        return
    first = keep_first
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if isinstance(layer, nn.Conv2d) and (first or layer.groups > 1):
            first = False
            continue
        size = layer.weight.abs()
        count = round(zeros * size.numel())
        if count:
            bound = float(np.partition(size.flatten().numpy(), count - 1)[count - 1])
            layer.weight.mul_(size > bound)


@torch.no_grad()
def _settle(model: nn.Module, images: Tensor) -> None:
    """Activations neither fade nor explode; biases and BatchNorm's weights are no longer all 0 and 1."""
    generator = torch.Generator().manual_seed(SEED + 1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches seen
        norm.train()
    hooks = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not (norms and isinstance(layer, nn.Conv2d)):
            if layer.bias is not None:
                layer.bias.zero_()
            hooks.append(layer.register_forward_hook(_to_unit))
    for batch in images.split(8):
        model(batch)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.normal_(0, 0.1, generator=generator)


def _to_unit(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    scale = output.std().clamp_min(1e-6)
    layer.weight.div_(scale)  # type: ignore[operator, union-attr]
    return output / scale


def images(network: str, count: int, seed: int = SEED) -> Tensor:
    """[count, ...]: coarse noise and fine noise, each image with a contrast of its own."""
    generator = torch.Generator().manual_seed(seed + 2)
    shape = image_shape(network)
    fine = torch.randn(count, *shape, generator=generator)
    if len(shape) == 1:
        return fine
    coarse = torch.randn(count, shape[0], 5, 5, generator=generator)
    coarse = nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=False)
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return (fine * 0.5 + coarse) * contrast


#: A batch is made of these few images, for torch's float64 convolutions take seconds an image. Neighbours differ.
DISTINCT = 4
ORDER = (0, 1, 2, 3, 1, 0, 3, 2, 2, 0, 3, 1, 3, 1, 2, 0, 2)


@torch.no_grad()
def reference(model: nn.Module, x: Tensor) -> np.ndarray:
    """What the model computes in float64."""
    return torch.cat([model(part) for part in x.double().split(2)]).numpy()


@torch.no_grad()
def prepare(network: str, zeros: float, batch: int, onnx_batches: list[int], folder: Path) -> dict[str, Any]:
    """Write what the workers need into ``folder``: model.pt, x.npy, reference.npy, model-N.onnx.

    Args:
        batch: images in x.npy and reference.npy; a smaller batch is the first of them.
        onnx_batches: the (static) batches of the ONNX files.

    Returns:
        torch_error: how far torch's own float32 is off, relative to the largest output; weights, the share of zeros
        among them, and among those of the layers that were pruned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build(network, zeros, images(network, 8, seed=SEED + 7))
    order = [ORDER[i % len(ORDER)] for i in range(batch)]
    distinct = images(network, min(batch, DISTINCT))
    torch.save(model, folder / "model.pt")
    np.save(folder / "x.npy", distinct[order].numpy())
    for onnx_batch in onnx_batches:
        export(model, distinct[order][:onnx_batch], folder / f"model-{onnx_batch}.onnx")
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    kept = [int(w.count_nonzero()) for w in weights]
    pruned = [i for i, w in enumerate(weights) if kept[i] < 0.999 * w.numel()]
    single = torch.cat([model(part) for part in distinct.split(2)]).numpy()
    expected = reference(model.double(), distinct)
    if not np.isfinite(expected).all() or not 1e-3 < np.abs(expected).max() < 1e3:
        raise RuntimeError(f"{network} at {zeros:.0%} zeros has no sane outputs: {np.abs(expected).max():.3g}")
    np.save(folder / "reference.npy", expected[order])
    return {
        "torch_error": float(np.abs(single - expected).max() / np.abs(expected).max()),
        "weights": sum(w.numel() for w in weights),
        "zeros_of_all": 1 - sum(kept) / sum(w.numel() for w in weights),
        "zeros_of_pruned": 1 - sum(kept[i] for i in pruned) / max(1, sum(weights[i].numel() for i in pruned)),
    }


def export(model: nn.Module, x: Tensor, path: Path) -> None:
    """ONNX at opset 13: what every peer reads, DeepSparse 1.8 included (it wants IR version 8 or less)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and the peers need it
        torch.onnx.export(model, (x,), str(path), opset_version=13, dynamo=False, input_names=["x"], output_names=["y"])
