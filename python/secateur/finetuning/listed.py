"""Batches in a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .._base.errors import Error
from .example import CALLER, Example, Reader
from .seeds import generator_of, mixed
from .source import MOST_BATCHES, PART, Source

#: Batches that cannot be gone through again are kept up to so many bytes.
KEPT_BYTES = 1 << 30


def kept_of(batches: Iterator[Any], read: Reader) -> list[Example]:
    kept: list[Example] = []
    held = 0
    for batch in batches:
        kept.append(read(batch))
        held += kept[-1].nbytes
        if held > KEPT_BYTES:
            raise Error(
                f"{CALLER}: batches is an iterator, which cannot be gone through again, and of its batches "
                f"{KEPT_BYTES / 2**30:g} GiB at most are kept: give a list, a DataLoader or fewer batches"
            )
    return kept


def _some() -> Error:
    return Error(f"{CALLER}: batches must hold at least one batch, got none (an iterator that was used up, perhaps)")


class Listed(Source):
    """Batches in a list, in another order in each pass. Held out are whole batches, or samples where these are few."""

    def __init__(self, examples: list[Example], seed: int, hold: bool) -> None:
        full = [example for example in examples if example.rows > 0]
        self.seed, self.held, self.share, self.notes = seed, [], "", []
        if len(full) < len(examples):
            self.notes.append(f"{len(examples) - len(full)} of {len(examples)} batches hold no sample: left out")
        if not full:
            raise _some()
        self.all = full
        if hold:
            self._hold(generator_of(mixed(seed, "held out")))

    def _hold(self, generator: torch.Generator) -> None:
        count = len(self.all)
        if count >= PART:
            self._hold_batches(min(count // PART, MOST_BATCHES), generator)
        elif any(example.separable and example.rows >= PART for example in self.all):
            rest = []
            for example in self.all:
                few = example.rows // PART if example.separable else 0
                order = torch.randperm(example.rows, generator=generator)
                if few:
                    self.held.append(example.take(order[:few].sort().values))
                rest.append(example.take(order[few:].sort().values) if few else example)
            self.share = f"{sum(e.rows for e in self.held)} of {sum(e.rows for e in self.all)} samples"
            self.all = rest
        elif count > 1:
            self._hold_batches(1, generator)

    def _hold_batches(self, few: int, generator: torch.Generator) -> None:
        count = len(self.all)
        chosen = set(torch.randperm(count, generator=generator)[:few].tolist())
        self.held = [example for i, example in enumerate(self.all) if i in chosen]
        self.all = [example for i, example in enumerate(self.all) if i not in chosen]
        self.share = f"{few} of {count} batches"

    def examples(self, number: int, skip: int = 0) -> Iterator[Example]:
        order = torch.randperm(len(self.all), generator=generator_of(mixed(self.seed, "order", number)))
        for i in order[skip:].tolist():
            yield self.all[i]


__all__ = ["Listed", "kept_of"]
