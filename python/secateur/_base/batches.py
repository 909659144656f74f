"""The inputs in a caller's batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .errors import Error


def inputs_of(model: nn.Module, batches: Iterable[Any], caller: str) -> Iterator[Tensor]:
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) and len(batch) > 0 else batch
        if not isinstance(x, Tensor):
            raise Error(
                f"{caller}: a batch must be a tensor, or a tuple or list that starts with one, "
                f"got {type(batch).__name__}"
            )
        if x.is_meta:
            raise Error(f"{caller}: a batch must have values, got a tensor on the meta device")
        yield x if device is None else x.to(device)
