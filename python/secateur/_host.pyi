"""The pybind11 module (csrc/bindings.cpp)."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

def available_isas() -> list[str]: ...
def current_isa() -> str: ...
def force_isa(name: str) -> None: ...
def reset_isa() -> None: ...

class Plan:
    """A validated sparse layer, held by libsecateur; its id is the operators' ``plan``."""

    def __init__(
        self,
        mask: NDArray[Any],
        values: NDArray[Any],
        shape: Sequence[int],
        stride: Sequence[int] = ...,
        padding: Sequence[int] = ...,
        dilation: Sequence[int] = ...,
        groups: int = ...,
    ) -> None: ...
    @property
    def id(self) -> int: ...
