"""A caller's batches, pass after pass, and the part of them that is held out to judge by.

Each source gives the same batches for the same seed and number of the pass, as far as the caller's own do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from .._base.errors import Error
from .example import CALLER, Example, Reader
from .ranks import Ranks
from .seeds import generator_of, mixed, seed_all

#: Batches that cannot be gone through again are kept up to so many bytes.
KEPT_BYTES = 1 << 30
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
        return Listed(_kept(batches, read), seed, hold)
    if type(batches) is DataLoader and not isinstance(batches.dataset, IterableDataset):
        return Loaded(batches, read, seed, hold, ranks)
    seed_all(mixed(seed, "pass", 0, 0, ranks.rank))
    first = [read(batch) for batch in itertools.islice(batches, PART - 1)] if hold else []
    if hold and len(first) < PART - 1:
        return Listed(first, seed, hold)
    return Streamed(batches, read, seed, hold, ranks)


def _kept(batches: Iterator[Any], read: Reader) -> list[Example]:
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


class _Without:
    """What a sampler gives, without some indices."""

    def __init__(self, sampler: Any, held: frozenset[Any]) -> None:
        self.sampler, self.held = sampler, held

    def __iter__(self) -> Iterator[Any]:
        for index in self.sampler:
            if isinstance(index, list):  # of a sampler of batches
                if kept := [each for each in index if each not in self.held]:
                    yield kept
            elif index not in self.held:
                yield index

    def __len__(self) -> int:
        return len(self.sampler)  # an upper limit, which DataLoader asks for and nobody needs


def _seeded(items: Iterable[Any], seed: int, number: int, rank: int) -> Iterator[Any]:
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


class Loaded(Source):
    """A DataLoader over a dataset with indices: held-out samples are left out by their index, whatever the order."""

    def __init__(self, loader: DataLoader[Any], read: Reader, seed: int, hold: bool, ranks: Ranks) -> None:
        self.read, self.seed, self.rank = read, seed, ranks.rank
        self.held, self.share, self.notes = [], "", []
        own = loader.batch_size is None and loader.batch_sampler is not None  # DataLoader(batch_sampler=)
        self.sampler: Any = loader.batch_sampler if own else loader.sampler
        inner = getattr(self.sampler, "sampler", None)
        self.samplers = [s for s in (self.sampler, inner) if s is not None]
        self.generators = [
            g
            for g in (getattr(s, "generator", None) for s in (loader, *self.samplers))
            if isinstance(g, torch.Generator)
        ]
        self.before = [(g, g.get_state()) for g in self.generators]
        self.epochs = [(s, s.epoch) for s in self.samplers if hasattr(s, "set_epoch") and hasattr(s, "epoch")]
        self.loader = loader
        held: frozenset[Any] = frozenset()
        if hold:
            held = self._hold(loader, own, ranks)
        self.loader = loader if not held else _rebuilt(loader, _Without(self.sampler, held), own)

    def _start(self, number: int) -> None:
        for g in self.generators:
            g.manual_seed(mixed(self.seed, "loader", number))
        for sampler in self.samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(number)

    def _hold(self, loader: DataLoader[Any], own: bool, ranks: Ranks) -> frozenset[Any]:
        self._start(0)
        seed_all(mixed(self.seed, "pass", 0, 0, self.rank))
        size = loader.batch_size or 1
        found: dict[Any, None] = {}
        try:
            most = len(self.sampler)
        except TypeError:
            most = 10**7
        for index in itertools.islice(self.sampler, most):
            if isinstance(index, list):
                size = max(size, len(index))
            found.update(dict.fromkeys(index if isinstance(index, list) else [index]))
        indices = list(found)
        batched = own or loader.batch_size is not None
        few = min(len(indices) // PART, MOST_BATCHES * (size if batched else 1))
        if few and batched and not own and not loader.drop_last and (len(indices) - few) % size == 1:
            few += 1  # BatchNorm refuses a last batch of one sample, which the caller's own batches may not have had
        order = torch.randperm(len(indices), generator=generator_of(mixed(self.seed, "held out", self.rank)))
        mine = [indices[i] for i in sorted(order[:few].tolist())]
        batches = [mine[i : i + size] for i in range(0, len(mine), size)] if batched else mine
        nbytes = 0
        for batch in _seeded(_rebuilt(loader, batches, batched, workers=False), self.seed, -1, self.rank):
            example = self.read(batch)
            nbytes += example.nbytes
            if self.held and nbytes > MOST_BYTES:
                break
            self.held.append(example)
        what = "samples" if batched else "batches"
        count = sum(example.rows for example in self.held) if batched else len(self.held)
        self.share = f"{count} of {len(indices)} {what}"
        return frozenset(itertools.chain.from_iterable(ranks.gather(mine)))

    def examples(self, number: int, skip: int = 0) -> Iterator[Example]:
        self._start(number)
        for batch in itertools.islice(_seeded(self.loader, self.seed, number, self.rank), skip, None):
            yield self.read(batch)

    def close(self) -> None:
        for generator, state in self.before:
            generator.set_state(state)
        for sampler, epoch in self.epochs:
            with suppress(Exception):
                sampler.set_epoch(epoch)


def _rebuilt(loader: DataLoader[Any], order: Any, batched: bool, workers: bool = True) -> DataLoader[Any]:
    """The loader, over other indices. ``batched``: ``order`` gives lists of them, each a batch."""
    more: dict[str, Any] = {}
    if workers and loader.num_workers > 0:
        more = {
            "num_workers": loader.num_workers,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": loader.worker_init_fn,
            "timeout": loader.timeout,
        }
    if batched:
        how: dict[str, Any] = {"batch_sampler": order}
    elif loader.batch_size is None:
        how = {"batch_size": None, "sampler": order}
    else:
        how = {"batch_sampler": BatchSampler(order, loader.batch_size, loader.drop_last)}
    return DataLoader(
        loader.dataset, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory, generator=loader.generator, **how,
        **more,
    )  # fmt: skip


class Streamed(Source):
    """Any other iterable that can be gone through again: every tenth batch is held out, by its place."""

    def __init__(self, batches: Iterable[Any], read: Reader, seed: int, hold: bool, ranks: Ranks) -> None:
        self.batches, self.read, self.seed, self.rank = batches, read, seed, ranks.rank
        self.held, self.share, self.notes = [], "", []
        self.places: dict[int, Example] = {}
        if not hold:
            return
        seen = nbytes = 0
        for seen, batch in enumerate(_seeded(itertools.islice(batches, PART * MOST_BATCHES), seed, 0, self.rank), 1):
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
        for place, batch in enumerate(_seeded(self.batches, self.seed, number, self.rank)):
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


__all__ = ["Listed", "Loaded", "Source", "Streamed", "open_source"]
