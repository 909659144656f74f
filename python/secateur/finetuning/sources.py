"""The source for what a caller gives as batches.

Each source gives the same batches for the same seed and number of the pass, as far as the caller's own do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .._base.errors import Error
from .example import CALLER, Example, Reader
from .listed import Listed, kept_of
from .loaded import Loaded
from .ranks import Ranks
from .seeds import mixed, seed_all
from .source import MOST_BATCHES, MOST_BYTES, PART, Source, seeded


def open_source(batches: Any, read: Reader, seed: int, hold: bool, ranks: Ranks) -> Source:
    """The source for what was given; errors for what is none.

    Args:
        hold: whether to hold out a part.
    """
    if isinstance(batches, Tensor):
        raise Error(f"{CALLER}: batches must be an iterable of batches, got one tensor: write [tensor]")
    if isinstance(batches, dict | str | bytes) or not isinstance(batches, Iterable):
        hint = ": give a DataLoader over it" if hasattr(batches, "__getitem__") and hasattr(batches, "__len__") else ""
        raise Error(f"{CALLER}: batches must be an iterable of batches, got {type(batches).__name__}{hint}")
    if isinstance(batches, list | tuple):
        return Listed([read(batch) for batch in batches], seed, hold)
    if isinstance(batches, Iterator):
        return Listed(kept_of(batches, read), seed, hold)
    if type(batches) is DataLoader and not isinstance(batches.dataset, IterableDataset):
        return Loaded(batches, read, seed, hold, ranks)
    seed_all(mixed(seed, "pass", 0, 0, ranks.rank))
    first = [read(batch) for batch in itertools.islice(batches, PART - 1)] if hold else []
    if hold and len(first) < PART - 1:
        return Listed(first, seed, hold)
    return Streamed(batches, read, seed, hold, ranks)


class Streamed(Source):
    """Any other iterable that can be gone through again: every tenth batch is held out, by its place."""

    def __init__(self, batches: Iterable[Any], read: Reader, seed: int, hold: bool, ranks: Ranks) -> None:
        self.batches, self.read, self.seed, self.rank = batches, read, seed, ranks.rank
        self.held, self.share, self.notes = [], "", []
        self.places: dict[int, Example] = {}
        if not hold:
            return
        seen = nbytes = 0
        for seen, batch in enumerate(seeded(itertools.islice(batches, PART * MOST_BATCHES), seed, 0, self.rank), 1):
            if seen % PART:
                continue
            example = read(batch)
            nbytes += example.nbytes
            if self.places and nbytes > MOST_BYTES:
                break
            self.places[seen - 1] = example
        self.held = [example for example in self.places.values() if example.rows > 0]
        self.share = f"{len(self.places)} of the first {seen} batches"

    def examples(self, number: int, skip: int = 0) -> Iterator[Example]:
        for place, batch in enumerate(seeded(self.batches, self.seed, number, self.rank)):
            example = self.read(batch)
            if place in self.places:
                if not self.notes and not example.same(self.places[place]):
                    self.notes.append(
                        "batches come in another order, or with other values, in each pass: training may meet samples "
                        "that are held out (give evaluate=, or a DataLoader, whose held-out samples are known)"
                    )
                continue
            if skip:
                skip -= 1
                continue
            yield example


__all__ = ["Streamed", "open_source"]
