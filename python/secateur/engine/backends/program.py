"""What segments are built with: the builder's interface, activations, and the backend that runs a program.

Two classes have this interface: ``secateur._host.Program`` (C++) and its plain-torch twin
:class:`secateur.engine.backends.reference.ReferenceProgram`. The front takes either, so that each is tested against the
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..._base.library import host


class Act(NamedTuple):
    """The activation at the end of an operation. ``theta`` is float32 ``[K]``, for "threshold" alone."""

    kind: str = "none"  # clamp, threshold, leaky, hardswish, hardsigmoid, sigmoid, silu, gelu, tanh
    lo: float = 0.0  # clamp: the lower bound; leaky: the slope
    hi: float = 0.0  # clamp, threshold: the upper bound
    theta: Any = None


NONE = Act()
RELU = Act("clamp", 0.0, math.inf)

#: No plan of a program for these image sizes (a ValueError). Torch may compute them; any other error is a bug.
Unplannable = host.Unplannable

#: The kinds of operations: name -> (required attributes, all attributes with their defaults).
#: They are declared once, in csrc/engine/kinds.
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = host.kinds()


def declares(kind: str, attribute: str) -> bool:
    """Whether operations of this kind have the attribute."""
    return kind in KINDS and attribute in KINDS[kind][1]


Size = tuple[int, int]
Grid = tuple[float, int]  # scale, zero point: a byte q stands for (q - zero_point) * scale


class ProgramLike(Protocol):
    """One segment, independent of batch and image size. Values are ids: planes [N, C, H, W] or rows [N, F], of
    floats or, where a ``grid`` is given, of bytes."""

    @property
    def id(self) -> int: ...
    def input_planes(self, channels: int) -> int: ...
    def input_rows(self, features: int) -> int: ...
    def add(
        self, kind: str, inputs: Sequence[int], attributes: Mapping[str, Any] = ..., name: str | None = None
    ) -> int:
        """Add an operation of one of the :data:`KINDS`; returns its output. Attributes that are not given, or None,
        take the kind's defaults."""
        ...

    def output(self, x: int) -> None: ...
    def finish(self) -> None: ...
    def prepare(
        self, sizes: Sequence[Size], budget_s: float, example: Sequence[Any] = (), kernels: str = "fastest"
    ) -> None: ...
    def describe(self, sizes: Sequence[Size]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Backend:
    """Computes segments: makes a program, gives it weights, and runs it; ``dtypes`` are those it takes (on the CPU).
    ``array`` hands over floats, ``integers`` a tensor as it is."""

    name: str
    make: Callable[[], ProgramLike]
    array: Callable[[Tensor], Any]
    integers: Callable[[Tensor], Any]
    run: Callable[[list[Tensor], Any], list[Tensor]]
    dtypes: tuple[torch.dtype, ...]


def _run_engine(inputs: list[Tensor], program: Any) -> list[Tensor]:
    try:
        outputs: list[Tensor] = torch.ops.secateur.engine_run.default(inputs, program.id)
    except (ValueError, RuntimeError) as error:
        if any(torch._C._functorch.is_batchedtensor(x) for x in inputs):  # under vmap
            raise Unplannable(str(error)) from None
        # The dispatcher does not keep the type of an error; the program knows whether these sizes have a plan.
        why = program.unplannable([tuple(x.shape[2:]) for x in inputs if x.dim() == 4])
        if why is None:
            raise
        raise Unplannable(why) from None
    return outputs


#: The C++ engine.
ENGINE = Backend(
    "engine", host.Program, lambda t: t.detach().to(torch.float32).contiguous().numpy(),
    lambda t: t.detach().contiguous().numpy(), _run_engine, (torch.float32,),
)  # fmt: skip
