"""A ResNet-50 on the device: its masks after ``optimizer.step()``, its training step with and without them; how long
pruning and the calibration of thresholds take there and on the CPU."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import secateur
import torch
from secateur import Magnitude, MeanStd
from secateur.masks import masked_parameters
from torch import Tensor, nn

from .clock import Clock, Contender
from .record import Record, reason

ZEROS = 0.9
#: Masks may take so much of a training step.
MOST_OF_A_STEP = 0.01


def network(dry: bool) -> nn.Module:
    """torchvision's, random weights: times ask for shapes only."""
    from torchvision.models import resnet

    torch.manual_seed(0)
    made: nn.Module = (
        resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10) if dry else resnet.resnet50(weights=None)
    )
    return made


def main(record: Record, clock: Clock, after: Sequence[str] = ()) -> None:
    """after: what comes then, to be named if all of it is cut."""
    try:
        network(record.dry)
    except ImportError as error:
        record.skip("ResNet-50", f"torchvision is not here ({error})")
        return
    todo: dict[str, Callable[[], None]] = {}
    for title, weights in (("bf16 by autocast, float32 weights", torch.float32), ("bf16 weights", torch.bfloat16)):
        todo[f"training, {title}"] = partial(_training, record, clock, weights, title)
    todo["pruning"] = partial(_pruning, record, clock)
    todo["calibration"] = partial(_calibration, record, clock)
    for number, (what, run) in enumerate(todo.items()):
        record.waiting([*list(todo)[number:], *after])
        _attempt(record, what, run)


def _attempt(record: Record, what: str, run: Callable[[], None]) -> None:
    if record.out_of_time(what, 1.0 if record.dry else 12.0):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a layer that a rule leaves as it is
            run()
    except Exception as error:  # said; the next one goes on
        record.fail(what, reason(error))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- training ----


class _Training:
    """One network with its optimizer: a step, and the step's parts."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, fused: bool) -> None:
        self.model, self.x, self.labels = model, x, labels
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4, fused=fused)

    def gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.x.device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(self.model(self.x), self.labels)
        loss.backward()

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()


def _training(record: Record, clock: Clock, weights: torch.dtype, title: str) -> None:
    device = clock.device
    batch, size, classes = (2, 32, 10) if record.dry else (64, 224, 1000)
    model = network(record.dry).to(device, weights).to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, 3, size, size, device=device, dtype=weights).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)
    plain = _Training(copy.deepcopy(model), x, labels, fused=clock.on_gpu)
    secateur.prune(model, Magnitude(sparsity=ZEROS))
    masked = _Training(model, x, labels, fused=clock.on_gpu)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for one in (plain, masked):
            for _ in range(1 if record.dry else 4):
                one.step()
        steps = clock.compare(
            {"with masks": Contender(masked.step), "without": Contender(plain.step)},
            seconds=0.2 if record.dry else 4.0, rounds=3 if record.dry else 40, flush=False, warm=0,
        )  # fmt: skip
    finally:
        torch.backends.cudnn.benchmark = before
    alone = _alone(model)
    parts: dict[str, Callable[[], Any]] = {
        "optimizer.step(), with masks": masked.optimizer.step,
        "optimizer.step(), without": plain.optimizer.step,
        "masks, an operator each": partial(_one_by_one, alone),
    }
    many = getattr(secateur.ops, "mask_apply_many_", None)
    if many is None:
        record.skip("masks in one launch", "this version has no mask_apply_many_")
    else:
        each = [w for w, _ in alone], [m for _, m in alone]
        parts["masks in one launch"] = lambda: many(*each)
    with torch.no_grad():
        times = clock.compare(
            {name: Contender(run) for name, run in parts.items()}, 0.1 if record.dry else 2.0, 40, flush=False
        )
        host = clock.host(parts, *((2, 2) if record.dry else (12, 4)))
    row: dict[str, Any] = {"network": "small" if record.dry else "resnet50", "what": title, "batch": batch,
                           "masks": len(alone), "step": steps, "parts": times, "host": host}  # fmt: skip
    row["synchronizations"] = _waits(masked.optimizer.step) if clock.on_gpu else None
    record.add("training", row)
    took, without = (times[f"optimizer.step(), {which}"]["median_ms"] for which in ("with masks", "without"))
    share = max(0.0, took - without) / steps["without"]["median_ms"]
    record.add("goals", {"goal": f"masks' share of a training step, {title}", "at_most": MOST_OF_A_STEP, "found": share,
                         "reached": share <= MOST_OF_A_STEP})  # fmt: skip


def _alone(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(weight, mask) of each pruned parameter."""
    return [
        (module.get_parameter(name).detach(), mask)
        for module in model.modules()
        for name in masked_parameters(module)
        if (mask := secateur.masks.get_mask(module, name)) is not None
    ]


def _one_by_one(weights_and_masks: list[tuple[Tensor, Tensor]]) -> None:
    for weight, mask in weights_and_masks:
        secateur.ops.mask_apply_(weight, mask)


def _waits(call: Callable[[], Any]) -> int | str:
    """How often torch itself waits for the device in a call (waits of other libraries are not seen)."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in said)


# ---- pruning ----


@contextmanager
def _timed(clock: Clock, into: list[float]) -> Iterator[None]:
    clock.synchronize()
    begin = time.perf_counter()
    yield
    clock.synchronize()
    into.append(time.perf_counter() - begin)


def _pruning(record: Record, clock: Clock) -> None:
    model = network(record.dry)
    for rule in (MeanStd(k=-1.0), MeanStd(sparsity=ZEROS), Magnitude(sparsity=ZEROS),
                 Magnitude(sparsity=ZEROS, scope="global")):  # fmt: skip
        row: dict[str, Any] = {"rule": str(rule)}
        for device in dict.fromkeys((str(clock.device), "cpu")):
            taken: list[float] = []
            there = copy.deepcopy(model).to(device)
            for _ in range(1 if device == "cpu" else 4):
                again = copy.deepcopy(there)
                with _timed(clock, taken):
                    secateur.prune(again, rule)
            row[f"{device}_s"] = sorted(taken[1:] or taken)[len(taken[1:]) // 2]
            row[f"{device}_zeros"] = secateur.sparsity(again).sparsity
        record.add("pruning", row)


def _calibration(record: Record, clock: Clock) -> None:
    """Seconds for so many images: the network's own passes are in them, which ``passes`` gives by themselves."""
    batch, count, size = (2, 2, 32) if record.dry else (32, 2, 224)
    model = network(record.dry).eval()
    batches = [torch.randn(batch, 3, size, size) for _ in range(count)]
    for rule in (MeanStd(k=0.0), Magnitude(sparsity=0.7)):
        row: dict[str, Any] = {"rule": str(rule), "images": batch * count}
        for device in dict.fromkeys((str(clock.device), "cpu")):
            if device == "cpu" and record.out_of_time(f"calibration on the CPU, {rule}", 1.0 if record.dry else 15.0):
                continue
            there, fed = copy.deepcopy(model).to(device), [b.to(device) for b in batches]
            passes: list[float] = []
            taken: list[float] = []
            with torch.no_grad():
                there(fed[0])
                with _timed(clock, passes):
                    for x in fed:
                        there(x)
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                row["copies_to_host"] = _copies(partial(_thin, there, fed, rule))
            with _timed(clock, taken):
                _thin(there, fed, rule)
            row |= {f"{device}_s": taken[0], f"{device}_passes_s": passes[0]}
            if device != "cpu":
                row["peak_bytes"] = torch.cuda.max_memory_allocated()
        record.add("calibration", row)


def _thin(model: nn.Module, batches: list[Tensor], rule: Any) -> None:
    secateur.prune_activations(model, batches, rule, progress=False)


def _copies(call: Callable[[], None]) -> dict[str, Any]:
    """How many copies from the device to the host a call makes, and how long they take together."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        copies = [event for event in seen.events() if "Memcpy DtoH" in event.name]
        return {"count": len(copies), "us": sum(event.device_time_total for event in copies)}
    except Exception as error:  # a machine may refuse its profiler
        return {"failed": reason(error)}
