"""What zeros of weights save on a GPU: zeros anywhere, in the dense kernels that everybody runs and in cuSPARSE; two of
four, in the kernels that skip them. For the word that reports have on it.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clock import WRONG, Clock, Contender
from .networks import network
from .record import Record, reason

#: x [rows, C] times a weight [K, C].
SHAPES = [(4096, 4096, 4096), (8192, 8192, 8192), (64, 4096, 4096), (4096, 1024, 1024)]
DRY_SHAPES = [(16, 64, 64)]
DTYPES = (torch.float16, torch.bfloat16)
SHARES = (0.9, 0.98)


def main(record: Record, clock: Clock) -> None:
    for shape in DRY_SHAPES if record.dry else SHAPES:
        for dtype in DTYPES:
            what = f"zeros, linear {'x'.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
            if not record.out_of_time(what, 1.0 if record.dry else 5.0):
                _attempt(record, what, _linear, clock, shape, dtype)
    if not record.out_of_time("zeros, ResNet-50", 1.0 if record.dry else 10.0):
        _attempt(record, "zeros, ResNet-50", _network, clock, record.dry)


def _attempt(record: Record, what: str, make: Any, *arguments: Any) -> None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own: its sparse tensors are new
            row = make(*arguments)
        record.add("zeros", row)
        told = {name: one["failed"] for name, one in row["contenders"].items() if "failed" in one}
        for name, why in {**row.get("absent", {}), **told}.items():
            (record.fail if why == WRONG else record.skip)(f"{what}: {name}", why)
    except Exception as error:  # said; the next one goes on
        record.fail(what, reason(error))


def _two_of_four(weight: Tensor) -> Tensor:
    """The larger two of every four along a row."""
    fours = weight.view(weight.shape[0], -1, 4)
    keep = torch.zeros_like(fours, dtype=torch.bool).scatter_(2, fours.abs().topk(2, dim=2).indices, True)
    return (fours * keep).view_as(weight)


def _near(expected: Tensor) -> Any:
    """Half precision, sums of thousands of terms in another order."""
    scale = float(expected.abs().max())
    return lambda y: float((y.float() - expected.float()).abs().max()) <= 2e-2 * scale


def _linear(clock: Clock, shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Any]:
    rows, outputs, inputs = shape
    x = torch.randn(rows, inputs, device=clock.device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=clock.device, dtype=dtype) / inputs**0.5
    fewer = {share: weight * (torch.rand(weight.shape, device=clock.device) >= share) for share in SHARES}
    halved = _two_of_four(weight)
    made = {"dense": Contender(lambda: F.linear(x, weight))}
    absent: dict[str, str] = {}
    for share, zeroed in fewer.items():
        made[f"dense kernels, {share:.0%} zeros"] = Contender(lambda w=zeroed: F.linear(x, w))  # type: ignore[misc]
        name = f"cuSPARSE, {share:.0%} zeros"
        try:
            csr = zeroed.to_sparse_csr()
            right = _near(F.linear(x, zeroed).T)
            made[name] = Contender(lambda w=csr: w @ x.T, check=right)  # type: ignore[misc]
        except RuntimeError as error:
            absent[name] = reason(error)
    try:
        compressed = torch.sparse.to_sparse_semi_structured(halved)
        made["2:4, to_sparse_semi_structured"] = Contender(
            lambda: F.linear(x, compressed), check=_near(F.linear(x, halved))
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        absent["2:4, to_sparse_semi_structured"] = reason(error)
    times = clock.compare(made, seconds=0.5, rounds=20)
    return {"what": "linear", "rows": rows, "outputs": outputs, "inputs": inputs,
            "dtype": str(dtype).removeprefix("torch."), "contenders": times, "absent": absent}  # fmt: skip


def _network(clock: Clock, dry: bool) -> dict[str, Any]:
    """Forward passes: the same network with and without 90 % zeros."""
    batch, size = (2, 32) if dry else (64, 224)
    dtype = torch.bfloat16 if dry else torch.float16
    dense = network(dry).eval().to(clock.device, dtype).to(memory_format=torch.channels_last)
    pruned = copy.deepcopy(dense)
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.mul_(torch.rand(module.weight.shape, device=clock.device) >= SHARES[0])
    x = torch.randn(batch, 3, size, size, device=clock.device, dtype=dtype).to(memory_format=torch.channels_last)
    models = {"dense": dense, f"{SHARES[0]:.0%} zeros": pruned}
    made = {name: Contender(lambda m=model: m(x)) for name, model in models.items()}  # type: ignore[misc]
    return {"what": "small" if dry else "resnet50", "batch": batch, "dtype": str(dtype).removeprefix("torch."),
            "contenders": clock.compare(made, 0.1 if dry else 2.0, 20, flush=False, warm=4)}  # fmt: skip
