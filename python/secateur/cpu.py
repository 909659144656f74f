"""Which CPU this is, and which instruction set the kernels use.

The best one that the CPU has is chosen at import. ``SECATEUR_ISA=avx2`` in the environment, or :func:`force_isa`,
chooses another: for tests, and to measure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ._base import library  # noqa: F401  (loads the library that _host looks into)
from ._base.errors import Error
from ._host import available_isas, current_isa, reset_isa
from ._host import force_isa as _force_isa

__all__ = ["available_isas", "current_isa", "force_isa", "reset_isa", "use_isa"]


def force_isa(name: str) -> None:
    """Use instruction set ``name`` ("scalar", "avx2", "avx512", "neon") in this process from now on.

    Raises:
        Error: this CPU does not have it.
    """
    if name not in available_isas():
        raise Error(f"force_isa: name must be one of {', '.join(available_isas())} on this CPU, got {name!r}")
    _force_isa(name)


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use instruction set ``name`` inside a ``with`` block (process-wide while it lasts)."""
    before = current_isa()
    force_isa(name)
    try:
        yield
    finally:
        _force_isa(before)


if _asked := os.environ.get("SECATEUR_ISA"):
    force_isa(_asked)
