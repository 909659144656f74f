"""A DataLoader over a dataset with indices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from .example import Example, Reader
from .ranks import Ranks
from .seeds import generator_of, mixed, seed_all
from .source import MOST_BATCHES, MOST_BYTES, PART, Source, seeded


class _Without:
    """What a sampler gives, without some indices. ``lists``: it gives lists of indices, each a batch."""

    def __init__(self, sampler: Any, held: frozenset[Any], lists: bool) -> None:
        self.sampler, self.held, self.lists = sampler, held, lists

    def __iter__(self) -> Iterator[Any]:
        for index in self.sampler:
            if self.lists:
                if kept := [each for each in index if each not in self.held]:
                    yield kept
            elif index not in self.held:
                yield index

    def __len__(self) -> int:
        return len(self.sampler)  # an upper limit, which DataLoader asks for and nobody needs


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
        self.loader = loader if not held else _rebuilt(loader, _Without(self.sampler, held, own), own)

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
        except (TypeError, NotImplementedError):
            most = 10**7
        for index in itertools.islice(self.sampler, most):
            if own:
                size = max(size, len(index))
            found.update(dict.fromkeys(index if own else [index]))
        indices = list(found)
        batched = own or loader.batch_size is not None
        few = min(len(indices) // PART, MOST_BATCHES * (size if batched else 1))
        if few and batched and not own and not loader.drop_last and (len(indices) - few) % size == 1:
            few += 1  # BatchNorm refuses a last batch of one sample, which the caller's own batches may not have had
        order = torch.randperm(len(indices), generator=generator_of(mixed(self.seed, "held out", self.rank)))
        mine = [indices[i] for i in sorted(order[:few].tolist())]
        batches = [mine[i : i + size] for i in range(0, len(mine), size)] if batched else mine
        nbytes = 0
        for batch in seeded(_rebuilt(loader, batches, batched, workers=False), self.seed, -1, self.rank):
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
        for batch in itertools.islice(seeded(self.loader, self.seed, number, self.rank), skip, None):
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


__all__ = ["Loaded"]
