"""Programs for the engine and for its plain-torch twin, built alike and held against each other in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from secateur import _host
from secateur.engine.backends.reference import ReferenceProgram
from torch import Tensor

NONE = ("none", 0.0, 0.0, None)
RELU = ("clamp", 0.0, math.inf, None)

Build = Callable[..., Any]  # (program, ids of its inputs) -> id of an output, or several


def array(t: Tensor | None) -> Any:
    return None if t is None else np.ascontiguousarray(t.detach().numpy(), dtype=np.float32)


def weights(*shape: int, zeros: float = 0.0) -> Any:
    """Normal values with ``zeros`` of them zero, scaled so that sums stay near 1."""
    w = torch.randn(shape) * (torch.rand(shape) >= zeros)
    return array(w / math.sqrt(max(1, math.prod(shape[1:]) * (1 - min(zeros, 0.99)))))


def make(kind: Callable[[], Any], build: Build, inputs: Sequence[Tensor]) -> Any:
    program = kind()
    ids = [program.input_planes(x.shape[1]) if x.dim() == 4 else program.input_rows(x.shape[1]) for x in inputs]
    made = build(program, *ids)
    for value in made if isinstance(made, list) else [made]:
        program.output(value)
    program.finish()
    return program


def engine(build: Build, inputs: Sequence[Tensor]) -> Any:
    return make(_host.Program, build, inputs)


def sizes(inputs: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(x.shape[2], x.shape[3]) for x in inputs if x.dim() == 4]


def run(program: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs: list[Tensor] = torch.ops.secateur.engine_run(list(inputs), program.id)
    return outputs


def twin(build: Build, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: threads would take longer to meet than to compute
    outputs: list[Tensor] = make(ReferenceProgram, build, inputs).run([x.to(dtype) for x in inputs])
    torch.set_num_threads(threads)
    return outputs


def largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def assert_close(got: Tensor, want: Tensor, float32: Tensor, scale: float = 0.0, terms: int = 0) -> None:
    """As near to float64 as four times torch's own float32, but for 8 roundings (2^-24) of the largest value, and
    those of a sum of so many terms one after the other, which go either way."""
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    bound = 4 * largest(float32.double() - want) + 2.0**-24 * (8 + math.sqrt(terms)) * max(scale, largest(want), 1e-3)
    assert largest(got.double() - want) <= bound


def check(build: Build, *inputs: Tensor, tune: bool = False, terms: int = 0) -> Any:
    """The engine's outputs against the twin's; the engine's program."""
    program = engine(build, inputs)
    if tune:
        program.prepare(inputs[0].shape[0], sizes(inputs), 0.02)
    reference, float32 = twin(build, inputs), twin(build, inputs, torch.float32)
    outputs = run(program, inputs)
    assert len(outputs) == len(reference)
    for got, want, near in zip(outputs, reference, float32, strict=True):
        assert_close(got, want, near, terms=terms)
    return program
