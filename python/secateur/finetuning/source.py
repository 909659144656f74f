"""What every source of batches is: examples pass after pass, and the part that is held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from .example import Example
from .seeds import mixed, seed_all

#: One part in so many is held out, and at most so many batches, of so many bytes.
PART, MOST_BATCHES, MOST_BYTES = 10, 32, 1 << 28


class Source:
    """``held``: examples to judge by, none where there are too few; ``share``: in words, for the report."""

    held: list[Example]
    share: str
    notes: list[str]

    def examples(self, number: int, skip: int = 0) -> Iterator[Example]:
        """The batches of one pass to train on, but the first ``skip``."""
        raise NotImplementedError

    def close(self) -> None:
        """Put back what belongs to the caller."""


def seeded(items: Iterable[Any], seed: int, number: int, rank: int) -> Iterator[Any]:
    """The items of one pass, each drawn under a seed of its own: random augmentation is a function of the place."""
    seed_all(mixed(seed, "pass", number, 0, rank))
    stream = iter(items)
    for place in itertools.count(1):
        seed_all(mixed(seed, "pass", number, place, rank))
        try:
            item = next(stream)
        except StopIteration:
            return
        yield item


__all__ = ["MOST_BATCHES", "MOST_BYTES", "PART", "Source", "seeded"]
