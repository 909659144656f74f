"""torch.compile as a contender, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any], *example: Any) -> tuple[Callable[..., Any] | None, str]:
    """(function compiled for these arguments, "") or (None, why not). The example arguments may be written to."""
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    fast = torch.compile(function, fullgraph=True, dynamic=False)
    try:
        fast(*example)
    except (InductorError, InvalidCxxCompiler) as error:
        return None, f"torch.compile found no working compiler ({str(error).splitlines()[0]})"
    return fast, ""
