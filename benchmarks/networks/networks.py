"""The models: torchvision's architectures with seeded weights, pruned by magnitude, and what they should output.

No download: speed depends on shapes and on where the zeros are, not on what a network has learned. But weights as they
are initialised let activations fade or explode once 90 % of them are zero, so after pruning each network is brought to
sane statistics: its BatchNorms take those of a few images; without BatchNorm each layer is scaled to unit output.
"""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .quantizers import FILES, TOOLS

SEED = 0
LAYER = re.compile(r"conv-(\d+)-(\d+)-(\d+)-(\d+)(?:-s(\d+))?(?:-g(\d+))?|linear-(\d+)-(\d+)")


def image_shape(network: str) -> tuple[int, ...]:
    """Of one input, without the batch: [C, H, W], or [F] of a linear layer."""
    if layer := LAYER.fullmatch(network):
        c, _, size, _, _, _, features, _ = layer.groups()
        return (int(features),) if features else (int(c), int(size), int(size))
    return (3, 224, 224)


def build(network: str, zeros: float, images: Tensor, pattern: str = "1x1", calm: bool = False) -> nn.Module:
    """The network in eval mode with ``zeros`` (a share) of each layer's weights zero; first and depthwise stay dense.

    Args:
        network: a torchvision name, or one layer: ``conv-C-K-SIZE-KERNEL[-sSTRIDE][-gGROUPS]``, ``linear-C-K``.
        images: [n, ...] for the statistics of the activations.
        pattern: "1x1", zeros anywhere, or "1xN", in blocks of N consecutive input channels.
        calm: residual branches add a quarter of what they do otherwise, see :data:`CALM`.
    """
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slow initialisation of some torchvision models
        model = _layer(network) if LAYER.fullmatch(network) else _torchvision(network)
    model.eval()
    _prune(model, zeros, keep_first=not LAYER.fullmatch(network), block=int(pattern.removeprefix("1x")))
    _settle(model, images, CALM if calm else 1.0)
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
def _prune(model: nn.Module, zeros: float, keep_first: bool, block: int) -> None:
    """What secateur.prune(model, Magnitude(zeros)) does; by numpy's partition, in a tenth of the time for VGG-16.

    block: that many input channels stay or go together, by the mean of their magnitudes."""
    if zeros == 0:
        return
    first = keep_first
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if isinstance(layer, nn.Conv2d) and (first or layer.groups > 1):
            first = False
            continue
        size = _mean_of_blocks(layer.weight.abs(), block)
        count = round(zeros * size.numel())
        if count:
            bound = float(np.partition(size.flatten().numpy(), count - 1)[count - 1])
            keep = (size > bound).repeat_interleave(block, dim=1)
            layer.weight.mul_(keep[:, : layer.weight.shape[1]])


def _mean_of_blocks(size: Tensor, block: int) -> Tensor:
    """[K, C, ...] to [K, blocks, ...]; where the block does not divide C the last one is shorter."""
    if block == 1:
        return size
    return torch.stack([part.mean(1) for part in size.split(block, dim=1)], dim=1)


@torch.no_grad()
def _settle(model: nn.Module, images: Tensor, branches: float) -> None:
    """Activations neither fade nor explode; biases and BatchNorm's weights are no longer all 0 and 1."""
    generator = torch.Generator().manual_seed(SEED + 1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    last = {id(norm) for norm in _last_of_branches(model)} if branches != 1 else set()
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)
        if id(norm) in last:
            norm.weight.mul_(branches)
            norm.bias.mul_(branches)
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


def _last_of_branches(model: nn.Module) -> Iterator[nn.Module]:
    """The BatchNorms whose output is added to a shortcut."""
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return
    from torchvision.models import mobilenetv2, resnet

    for block in model.modules():
        if isinstance(block, resnet.BasicBlock):
            yield block.bn2
        elif isinstance(block, resnet.Bottleneck):
            yield block.bn3
        elif isinstance(block, mobilenetv2.InvertedResidual) and block.use_res_connect:
            yield block.conv[-1]


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
#: Random weights under BatchNorm amplify whatever perturbs them: in plain ResNet-50 and MobileNetV2 the rounding of
#: int8 moves the output as far as another image does (11 to 16 dB), and a wrong layer could not be told from it. With
#: branches at a quarter, as trained networks have them small, int8 gives 16 to 27 dB, a layer whose channels are
#: permuted 14 or less, another image 11. Shapes, zeros of weights and times are the same.
CALM = 0.25
#: Images that int8 is calibrated on, ours and the peers': of the same kind as those timed, but others.
CALIBRATION = 16
ORDER = (0, 1, 2, 3, 1, 0, 3, 2, 2, 0, 3, 1, 3, 1, 2, 0, 2)


@torch.no_grad()
def reference(model: nn.Module, x: Tensor) -> np.ndarray:
    """What the model computes in float64."""
    return torch.cat([model(part) for part in x.double().split(2)]).numpy()


@torch.no_grad()
def prepare(
    network: str, zeros: float, batch: int, onnx_batches: list[int], folder: Path, pattern: str = "1x1",
    calm: bool = False, int8: dict[str, list[int]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write what the workers need into ``folder``: model.pt, x.npy, reference.npy, model-N.onnx, and for int8
    calibration.npy and the files of :mod:`quantizers`.

    Args:
        batch: images in x.npy and reference.npy; a smaller batch is the first of them.
        onnx_batches: the (static) batches of the ONNX files.
        pattern, calm: see :func:`build`.
        int8: for names of ``quantizers.TOOLS``, the batches of their files; None: no int8 at all.

    Returns:
        torch_error: how far torch's own float32 is off, relative to the largest output; weights, the share of zeros
        among them, and among those of the layers that were pruned; int8: for each of its files how long the tool
        took (``made_s``) or why there is none (``failed``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build(network, zeros, images(network, 8, seed=SEED + 7), pattern, calm)
    order = [ORDER[i % len(ORDER)] for i in range(batch)]
    distinct = images(network, min(batch, DISTINCT))
    torch.save(model, folder / "model.pt")
    np.save(folder / "x.npy", distinct[order].numpy())
    int8 = int8 or {}
    for onnx_batch in sorted({*onnx_batches, *(b for batches in int8.values() for b in batches)}):
        export(model, distinct[order][:onnx_batch], folder / f"model-{onnx_batch}.onnx")
    calibration = images(network, CALIBRATION, seed=SEED + 11).numpy()
    np.save(folder / "calibration.npy", calibration)
    made = _quantize(folder, int8, calibration)
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
        "int8": made,
    }


def _quantize(folder: Path, int8: dict[str, list[int]], calibration: np.ndarray) -> dict[str, dict[str, Any]]:
    """The files of the peers' tools. One that cannot do it stops nobody but its own engine."""
    made: dict[str, dict[str, Any]] = {}
    for tool, batches in int8.items():
        for batch in batches:
            source, target = (folder / FILES[file].format(batch=batch) for file in ("onnx", tool))
            begin = time.perf_counter()
            try:
                TOOLS[tool](source, target, calibration, batch)
                made[target.name] = {"made_s": time.perf_counter() - begin}
            except Exception as failure:
                traceback.print_exc()
                made[target.name] = {"failed": f"{type(failure).__name__}: {failure}"}
    return made


def export(model: nn.Module, x: Tensor, path: Path) -> None:
    """ONNX at opset 13: what every peer reads, DeepSparse 1.8 included (it wants IR version 8 or less)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and the peers need it
        torch.onnx.export(model, (x,), str(path), opset_version=13, dynamo=False, input_names=["x"], output_names=["y"])
