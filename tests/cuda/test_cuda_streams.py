"""When kernels run and where: streams, CUDA graphs, threads, a second device."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from cuda_cases import OPERATORS, Target, random_mask
from gpu import busy_stream, captured, on_device, on_gpu
from secateur import ops
from secateur.ops import reference
from tensors import same_bits
from torch import Tensor

pytestmark = on_device
SHAPE = (64, 1000)
#: For each operator the arguments that a launch must see: early, as they are when it is called too soon, and late.
Arguments = Callable[[bool], tuple[Any, ...]]


def _weight(late: bool) -> Tensor:
    return torch.linspace(-2, 2, 64000).view(SHAPE) if late else torch.full(SHAPE, 0.125)


def _mask(late: bool) -> Tensor:
    return random_mask(SHAPE) if late else torch.zeros(64, 125, dtype=torch.uint8)


def _theta(late: bool) -> Tensor:
    return torch.linspace(0, 1, 1000) if late else torch.zeros(1000)


ARGUMENTS: dict[str, Arguments] = {
    "mask_apply": lambda late: (_weight(late), _mask(late)),
    "mask_apply_": lambda late: (_weight(late), _mask(late)),
    "mask_apply_many_": lambda late: ([_weight(late), _weight(late)], [_mask(late), _mask(late)]),
    "mask_pack": lambda late: (_weight(late) > 0.5,),
    "mask_unpack": lambda late: (_mask(late), list(SHAPE)),
    "statistics_threshold": lambda late: (_weight(late), 0.25, False),
    "statistics_threshold_": lambda late: (_weight(late), 0.25, False),
    "threshold_relu": lambda late: (_weight(late), _theta(late), 1.5),
    "threshold_relu_": lambda late: (_weight(late), _theta(late), 1.5),
}


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in arguments or results, in their order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_on(device, item) for item in value)
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _outcome(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> list[Tensor]:
    """What the operator returns, and what it has written."""
    return _tensors(call(*arguments)) + (_tensors(arguments[0]) if name.endswith("_") else [])


def _same(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(same_bits(a.cpu(), b) for a, b in zip(got, expected, strict=True))


def test_every_operator_has_arguments() -> None:
    assert set(OPERATORS) <= set(ARGUMENTS)


@pytest.mark.parametrize("name", OPERATORS)
def test_waits_for_its_input(gpu: Target, name: str) -> None:
    """The inputs are written by the current stream, long after the call: a kernel in any other stream sees old ones."""
    late, early = ARGUMENTS[name](True), ARGUMENTS[name](False)
    expected = _outcome(name, _on(torch.device("cpu"), late), getattr(torch.ops.secateur, name).default)
    too_soon = _outcome(name, _on(torch.device("cpu"), early), getattr(torch.ops.secateur, name).default)
    assert not _same(too_soon, expected)
    arguments = _on(gpu.device, early)
    source = _on(gpu.device, late)
    _outcome(name, _on(gpu.device, early), getattr(gpu, name))  # the module is loaded: a load would hide a race
    with busy_stream():
        for target, value in zip(_tensors(list(arguments)), _tensors(list(source)), strict=True):
            target.copy_(value)
        got = _outcome(name, arguments, getattr(gpu, name))
        got = [t.clone() for t in got]  # in the same stream: it must see the kernel's results
    assert _same(got, expected)


@pytest.mark.parametrize("name", [name for name in OPERATORS if not name.startswith("statistics_threshold")])
def test_captured_in_a_graph(gpu: Target, name: str) -> None:
    """None of these waits for the device, so a graph can hold them; a replay reads its inputs anew.
    (statistics_threshold waits to learn whether all weights are finite.)"""
    arguments = _on(gpu.device, ARGUMENTS[name](False))

    def run() -> list[Tensor]:
        return _outcome(name, arguments, getattr(gpu, name))

    replay, results = captured(run)
    for shift in (0.0, 0.3):
        fresh = _on(torch.device("cpu"), ARGUMENTS[name](True))
        for value in _tensors(list(fresh)):
            if value.is_floating_point():
                value.add_(shift)
        for target, value in zip(_tensors(list(arguments)), _tensors(list(fresh)), strict=True):
            target.copy_(value)
        replay()
        assert _same(list(results), _outcome(name, fresh, getattr(torch.ops.secateur, name).default))


def test_on_a_thread_of_its_own(gpu: Target) -> None:
    """A fresh thread has no current CUDA context: autograd's backward threads start like that."""
    weight, mask = torch.randn(64, 100), random_mask((64, 100))
    results: list[Tensor] = []
    there = weight.to(gpu.device), mask.to(gpu.device)
    thread = Thread(target=lambda: results.append(ops.mask_apply(*there).cpu()))
    thread.start()
    thread.join()
    assert same_bits(results[0], reference.mask_apply(weight, mask))


def test_streams_side_by_side(gpu: Target) -> None:
    """Threads with a stream each, many calls: every one gets its own results."""
    inputs = [(torch.randn(100, 77), random_mask((100, 77))) for _ in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        weight, mask = inputs[number]
        expected = reference.mask_apply(weight, mask)
        stream = torch.cuda.Stream(gpu.device) if gpu.device.type == "cuda" else None
        with torch.cuda.stream(stream):
            there, bits = weight.to(gpu.device), mask.to(gpu.device)
            results = [ops.mask_apply(there, bits).cpu() for _ in range(50)]
        if not all(same_bits(result, expected) for result in results):
            wrong.append(number)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@on_gpu
def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    for device in (torch.device("cuda", 1), torch.device("cuda", 0)):
        with torch.cuda.device(1 - device.index):
            target = Target(torch.ops.secateur, device)
            for name in OPERATORS:
                late = ARGUMENTS[name](True)
                expected = _outcome(name, _on(torch.device("cpu"), late), getattr(torch.ops.secateur, name).default)
                got = _outcome(name, _on(device, late), getattr(target, name))
                assert {t.device for t in got} == {device}
                assert torch.cuda.current_device() == 1 - device.index
                if not name.startswith("statistics_threshold"):  # theta may differ in its last bit
                    assert _same(got, expected)
