"""Masks through training on the device: every form of an optimizer's step, GradScaler, a captured step, DDP, FSDP."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.distributed as dist
from cuda_cases import Target
from gpu import KIND, on_device, on_gpu
from secateur import Magnitude, MeanStd
from secateur.ops import reference
from tensors import same_bits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = [
    on_device,
    # torch's own: a capturable optimizer whose steps are not captured; a warm-up in another stream; the mode that looks
    # for waits is new.
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]
Make = Callable[..., torch.optim.Optimizer]
FORMS: dict[str, tuple[Make, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05}),
    "SGD, momentum, one by one": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "foreach": False}),
    "SGD, nesterov, foreach": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "Adam, foreach": (torch.optim.Adam, {"lr": 0.01, "foreach": True}),
    "Adam, fused": (torch.optim.Adam, {"lr": 0.01, "fused": True}),
    "AdamW, one by one": (torch.optim.AdamW, {"lr": 0.01, "foreach": False}),
    "AdamW, fused": (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    "RMSprop, foreach": (torch.optim.RMSprop, {"lr": 0.01, "foreach": True}),
}
CAPTURABLE: dict[str, tuple[Make, dict[str, Any]]] = {
    "Adam, capturable": (torch.optim.Adam, {"lr": 0.01, "capturable": True}),
    "AdamW, capturable, fused": (torch.optim.AdamW, {"lr": 0.01, "capturable": True, "fused": True}),
    "RMSprop, capturable, foreach": (torch.optim.RMSprop, {"lr": 0.01, "capturable": True, "foreach": True}),
}
each_form = pytest.mark.parametrize(
    "form",
    [pytest.param(form, id=name) for name, form in FORMS.items()]
    + [pytest.param(form, id=name, marks=on_gpu) for name, form in CAPTURABLE.items()],
)


def _net(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> nn.Sequential:
    """Rows that end within a byte, a layer that may lie in channels_last memory."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 36, 13), nn.ReLU(), nn.Linear(13, 5)
    )
    model[0].to(memory_format=layout)
    return model.to(device, dtype)


def _batch(step: int, device: torch.device) -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(device)


def _masks(model: nn.Module) -> dict[str, Tensor]:
    """Of each pruned weight, by its name."""
    return {
        f"{name}.weight".lstrip("."): module.weight_mask
        for name, module in model.named_modules()
        if getattr(module, "weight_mask", None) is not None
    }


def _assert_pruned(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """The masks are as they were, and each weight is zero exactly where its mask says so."""
    assert masks
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert torch.isfinite(weight).all(), name
        keep = reference.mask_unpack(mask, weight.shape)
        assert not bool(weight.detach()[~keep].any()), name
        assert bool(weight.detach()[keep].all()), name
    for name, mask in _masks(model).items():
        assert torch.equal(mask, masks[name]), name


def _pruned(
    device: torch.device, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.channels_last
) -> tuple[nn.Module, dict[str, Tensor]]:
    model = _net(device, dtype, layout)
    secateur.prune(model, MeanStd(sparsity=0.7))
    return model, {name: mask.clone() for name, mask in _masks(model).items()}


@each_form
def test_each_form_of_a_step(gpu: Target, form: tuple[Make, dict[str, Any]]) -> None:
    """Beside a twin whose weights are masked by hand after each step: the same bits."""
    make, arguments = form
    model, masks = _pruned(gpu.device)
    twin = copy.deepcopy(model)
    secateur.strip(twin)
    optimizer, other = make(model.parameters(), **arguments), make(twin.parameters(), **arguments)
    begin = {name: value.detach().clone() for name, value in model.named_parameters()}
    for step in range(4):
        model.zero_grad(set_to_none=True)
        model(_batch(step, gpu.device)).square().mean().backward()
        for a, b in zip(twin.parameters(), model.parameters(), strict=True):
            a.grad = b.grad.clone(memory_format=torch.preserve_format)
        optimizer.step()
        other.step()
        with torch.no_grad():
            for name, mask in masks.items():
                weight = twin.get_parameter(name)
                weight.copy_(torch.where(reference.mask_unpack(mask, weight.shape), weight, 0))
        for a, b in zip(twin.parameters(), model.parameters(), strict=True):
            assert same_bits(a, b)
    _assert_pruned(model, masks)
    for name, value in model.named_parameters():
        assert not torch.equal(value, begin[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bf16", "fp16", "fp64"])
def test_weights_of_other_types(gpu: Target, dtype: torch.dtype) -> None:
    model, masks = _pruned(gpu.device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        model(_batch(step, gpu.device).to(dtype)).float().square().mean().backward()
        optimizer.step()
    _assert_pruned(model, masks)


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled first", "fused"])
def test_grad_scaler(gpu: Target, fused: bool) -> None:
    """float16 under autocast. An overflow skips its step; the optimizer's hooks must not mind."""
    model, masks = _pruned(gpu.device)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler(gpu.device.type, init_scale=2.0**10)
    scales = []
    for step in range(5):
        optimizer.zero_grad()
        with torch.autocast(gpu.device.type, dtype=torch.float16):
            loss = model(_batch(step, gpu.device)).float().square().mean()
        if step == 2:
            loss = loss * float("inf")
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if step == 2:
            for a, b in zip(model.parameters(), before, strict=True):
                assert same_bits(a, b)
    assert scales[2] == scales[1] / 2
    _assert_pruned(model, masks)


@on_gpu
@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in CAPTURABLE.items()])
def test_a_whole_step_in_a_graph(gpu: Target, form: tuple[Make, dict[str, Any]]) -> None:
    """Forward, backward, step and masks captured once, replayed on other inputs; beside the same steps one by one."""
    make, arguments = form
    model, masks = _pruned(gpu.device)
    eager = copy.deepcopy(model)
    optimizer, other = make(model.parameters(), **arguments), make(eager.parameters(), **arguments)
    x = _batch(0, gpu.device).clone()

    def train(network: nn.Module, steps: torch.optim.Optimizer) -> None:
        steps.zero_grad(set_to_none=True)
        network(x).square().mean().backward()
        steps.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        train(eager, other)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train(model, optimizer)
    for step in range(1, 5):
        x.copy_(_batch(step, gpu.device))
        graph.replay()
        train(eager, other)
    torch.cuda.synchronize()
    _assert_pruned(model, masks)
    _assert_pruned(eager, masks)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-3, atol=1e-4
        )  # a convolution's gradients may be summed in another order


@on_gpu
def test_a_step_does_not_wait_for_the_device(gpu: Target) -> None:
    """From the second step on: the first one may look whether an optimizer is older than the masks."""
    model, masks = _pruned(gpu.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)
    model(_batch(0, gpu.device)).square().mean().backward()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _assert_pruned(model, masks)


@pytest.fixture
def process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of one process: NCCL on a GPU, gloo on the CPU."""
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")  # a machine may have no other network
    backend = "nccl" if KIND == "cuda" else "gloo"
    if not dist.is_available() or not (dist.is_nccl_available() if KIND == "cuda" else dist.is_gloo_available()):
        pytest.skip(f"this torch has no {backend}")
    arguments: dict[str, Any] = (
        {"device_id": torch.device("cuda", torch.cuda.current_device())} if KIND == "cuda" else {}
    )
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1, **arguments)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _train(model: nn.Module, device: torch.device, **arguments: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, **arguments)
    for step in range(3):
        optimizer.zero_grad()
        model(_batch(step, device)).square().mean().backward()
        optimizer.step()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_ddp(gpu: Target, fused: bool) -> None:
    model, masks = _pruned(gpu.device)
    alone = copy.deepcopy(model)
    wrapped = DistributedDataParallel(model, device_ids=[gpu.device] if KIND == "cuda" else None)
    _train(wrapped, gpu.device, fused=fused)
    _train(alone, gpu.device, fused=fused)
    _assert_pruned(model, masks)
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # one process averages over itself
    secateur.prune(wrapped, Magnitude(sparsity=0.9))  # inside the wrapper
    _assert_pruned(model, {name: mask.clone() for name, mask in _masks(model).items()})


@pytest.mark.usefixtures("process_group")
def test_fully_shard(gpu: Target) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, masks = _pruned(gpu.device, layout=torch.contiguous_format)  # FSDP takes no other
    alone = copy.deepcopy(model)
    mesh = init_device_mesh(KIND, (1,))
    fully_shard(model[3], mesh=mesh)
    fully_shard(model, mesh=mesh)
    _train(model, gpu.device)
    _train(alone, gpu.device)
    whole = {name: value.full_tensor() for name, value in model.named_parameters()}  # type: ignore[operator]
    for name, value in alone.named_parameters():
        torch.testing.assert_close(whole[name].detach(), value.detach(), rtol=1e-4, atol=1e-5)
    for name, mask in masks.items():
        keep = reference.mask_unpack(mask, whole[name].shape)
        assert not bool(whole[name][~keep].any()), name


@pytest.mark.usefixtures("process_group")
def test_fsdp(gpu: Target) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: one process shards nothing; its future
        model, masks = _pruned(gpu.device, layout=torch.contiguous_format)  # FSDP takes no other
        wrapped = FSDP(model, use_orig_params=True, device_id=gpu.device)
        _train(wrapped, gpu.device)
        with FSDP.summon_full_params(wrapped):
            _assert_pruned(model, masks)
