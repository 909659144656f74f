"""The batches that finetune takes, pass after pass, and the part that it holds out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from secateur import Error
from secateur.finetuning import listed as lists
from secateur.finetuning.example import Example, Reader
from secateur.finetuning.listed import Listed
from secateur.finetuning.loaded import Loaded
from secateur.finetuning.ranks import Ranks
from secateur.finetuning.source import Source
from secateur.finetuning.sources import Streamed, open_source
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler
from tuning import X, Y, assert_same, labelled, net, plain, pruned, tune, values

pytestmark = pytest.mark.usefixtures("one_thread")

READ = Reader(1, nn.Linear(1, 1), several=False)


def numbered(count: int, size: int = 4) -> list[Tensor]:
    """Batches whose samples are their numbers."""
    return list(torch.arange(count * size, dtype=torch.float32).view(count, size, 1))


def opened(batches: Any, seed: int = 0, hold: bool = True) -> Source:
    return open_source(batches, READ, seed, hold, Ranks())


def numbers(examples: Any) -> list[int]:
    return [int(v) for example in examples for v in example.args[0].flatten()]


class Pass:
    """An iterable that can be gone through again."""

    def __init__(self, batches: list[Any], shuffle: bool = False) -> None:
        self.batches, self.shuffle = batches, shuffle

    def __iter__(self) -> Iterator[Any]:
        yield from random.sample(self.batches, len(self.batches)) if self.shuffle else self.batches


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.tensor([float(i)]) for i in itertools.count())


DIGITS = TensorDataset(torch.arange(200.0).view(200, 1))

KINDS = {
    "a list": lambda: numbered(30),
    "a generator": lambda: (batch for batch in numbered(30)),
    "an iterable": lambda: Pass(numbered(30)),
    "few in an iterable": lambda: Pass(numbered(3, 40)),
    "a few large ones": lambda: numbered(2, 60),
    "a few small ones": lambda: numbered(5, 3),
    "a loader": lambda: DataLoader(DIGITS, 8, shuffle=True),
    "a loader with its generator": lambda: DataLoader(DIGITS, 8, shuffle=True, generator=torch.Generator()),
    "a loader that drops": lambda: DataLoader(DIGITS, 16, shuffle=True, drop_last=True),
    "a loader in order": lambda: DataLoader(DIGITS, 7),
    "a loader with a sampler": lambda: DataLoader(DIGITS, 8, sampler=WeightedRandomSampler(torch.ones(200), 500)),
    "a loader with lists of indices": lambda: DataLoader(
        DIGITS, batch_sampler=[list(range(i, i + 10)) for i in range(0, 200, 10)]
    ),
    "a dataset of batches": lambda: DataLoader(TensorDataset(torch.arange(120.0).view(30, 4, 1)), batch_size=None),
    "a loader with workers": lambda: DataLoader(DIGITS, 8, shuffle=True, num_workers=1),
    "a stream": lambda: DataLoader(Endless(), 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_out_is_never_trained_on(kind: str) -> None:
    source = opened(KINDS[kind]())
    held = set(numbers(source.held))
    passes = [numbers(itertools.islice(source.examples(number), 200)) for number in (0, 1)]
    assert held
    assert not held & {*passes[0], *passes[1]}
    share = len(held) / len(held | set(passes[0]))
    assert 0.03 <= share <= 0.21, source.share
    assert source.share
    if kind not in ("a stream", "a loader with a sampler", "a loader that drops"):
        assert sorted(passes[0]) == sorted(passes[1])
    again = opened(KINDS[kind]())
    assert set(numbers(again.held)) == held
    assert numbers(itertools.islice(again.examples(1), 200)) == passes[1], "the same pass of another run"
    part = numbers(itertools.islice(again.examples(1, skip=2), 198))
    assert passes[1][len(passes[1]) - len(part) :] == part
    source.close()


@pytest.mark.parametrize("kind", ["a list", "a loader"])
def test_each_pass_and_each_seed_has_an_order_of_its_own(kind: str) -> None:
    source = opened(KINDS[kind](), hold=False)
    assert not source.held
    one, two = (numbers(source.examples(number)) for number in (0, 1))
    assert sorted(one) == sorted(two)
    assert one != two
    assert numbers(opened(KINDS[kind](), seed=1, hold=False).examples(0)) != one


def test_the_callers_generator_and_sampler_are_as_before() -> None:
    class Sampler(RandomSampler):
        epoch = 7

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    generator = torch.Generator().manual_seed(3)
    sampler = Sampler(DIGITS, generator=generator)
    loader = DataLoader(TensorDataset(X, Y), 20, sampler=Sampler(X), generator=generator)
    state = generator.get_state()
    tune(net(), loader, steps=20)
    assert torch.equal(generator.get_state(), state)
    assert sampler.epoch == 7
    assert loader.sampler.epoch == 7  # type: ignore[attr-defined]


def test_augmentation_is_a_function_of_the_place() -> None:
    class Noisy(Dataset[Tensor]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Tensor:
            return torch.rand(1) + random.random() + index

    one, two = (opened(DataLoader(Noisy(), 5, shuffle=True), hold=False) for _ in range(2))
    whole = [example.args[0] for example in one.examples(3)]
    torch.rand(5)
    part = [example.args[0] for example in two.examples(3, skip=4)]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], part, strict=True))


def test_a_last_batch_of_one_sample_is_held_out_as_well() -> None:
    source = opened(DataLoader(TensorDataset(torch.arange(91.0).view(91, 1)), 9, shuffle=True))
    assert min(example.rows for example in source.examples(0)) > 1


def test_batches_that_come_in_another_order_are_noticed() -> None:
    report = tune(net(), Pass(labelled(10), shuffle=True), steps=70)
    assert any("come in another order" in note for note in report.notes)
    assert not any("another order" in note for note in tune(net(), Pass(labelled(10)), steps=70).notes)


def test_one_sample_is_judged_on_itself() -> None:
    report = tune(net(norm=False), [(X[:1], Y[:1])], steps=5)
    assert any("overfitting would not be seen" in note for note in report.notes)


def test_batches_without_samples_are_left_out() -> None:
    report = tune(net(), [*labelled(), (X[:0], Y[:0])], steps=20)
    assert any("1 of 13 batches hold no sample" in note for note in report.notes)
    with pytest.raises(Error, match="batches must hold a sample in each pass"):
        tune(net(), Pass([(X[:0], Y[:0])] * 20), evaluate=lambda m: 1.0)


def test_an_iterators_batches_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    listed, iterated = net(), net()
    tune(listed, labelled(), steps=30)
    tune(iterated, iter(labelled()), steps=30)
    assert_same(values(listed), values(iterated))
    monkeypatch.setattr(lists, "KEPT_BYTES", 10_000)
    with pytest.raises(Error, match="is an iterator, which cannot be gone through again"):
        tune(net(), iter(labelled()))


def test_the_kind_of_source() -> None:
    assert isinstance(opened(KINDS["a generator"]()), Listed)
    assert isinstance(opened(KINDS["few in an iterable"]()), Listed)
    assert isinstance(opened(KINDS["an iterable"]()), Streamed)
    assert isinstance(opened(KINDS["a loader"]()), Loaded)
    assert isinstance(opened(KINDS["a stream"]()), Streamed)


# ---- what a batch may be ----


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return {"logits": self.first(a) + self.second(b)}


A, B, C = torch.randn(60, 3), torch.randn(60, 2), torch.randint(0, 4, (60,))


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("form", ["tuple", "list", "dict"])
def test_networks_of_several_inputs(form: str, labels: bool) -> None:
    teacher, student = Two(), Two()
    parts = [list(p) for p in zip(A.split(6), B.split(6), C.split(6), strict=True)]
    batches: list[Any] = parts if labels else [part[:2] for part in parts]
    if form == "tuple":
        batches = [tuple(part) for part in batches]
    if form == "dict":
        batches = [dict(zip(("a", "b", "labels"), part, strict=False)) for part in batches]
    report = tune(student, batches, teacher, inputs=2 if form != "dict" else 1, lr=1e-2)
    assert report.best["kl"] < report.start["kl"]
    assert ("accuracy" in report.best) == labels


def test_a_label_that_the_forward_asks_for_is_an_argument() -> None:
    class Asks(nn.Linear):
        def forward(self, input: Tensor, target: Tensor, label: Any = None) -> Tensor:  # type: ignore[override]
            return super().forward(input) + target

    read = Reader(1, Asks(2, 2), several=False)
    example = read({"input": X, "target": X, "label": Y})
    assert set(example.kwargs) == {"input", "target"}
    assert example.labels is Y
    assert Reader(1, nn.Linear(2, 2), several=False)({"input": X, "target": Y}).labels is Y


def test_labels_as_shares_and_maps() -> None:
    shares = nn.functional.one_hot(Y, 5).float()
    report = tune(net(), list(zip(X.split(20), shares.split(20), strict=True)), lr=3e-3, steps=100)
    assert report.improved
    assert "accuracy" not in report.best
    maps = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    found = (X[:, 0] > 0).long() + (X[:, 0] > 1).long()
    found[:, 0] = -100
    report = tune(maps, list(zip(X.split(20), found.split(20), strict=True)), lr=3e-2, steps=100)
    assert report.best["accuracy"] > 0.8


def test_an_input_that_the_model_overwrites() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *net())
    batches = labelled()
    tune(model, batches, steps=20)
    assert all(torch.equal(x, y) for (x, _), y in zip(batches, X.split(20), strict=True))


def test_samples_are_taken_from_all_parts_alike() -> None:
    example = Example((X,), {"y": Y}, (Y, [Y]))
    assert example.separable
    part = example.take(torch.tensor([3, 5]))
    assert part.rows == 2
    assert torch.equal(part.labels[1][0], Y[[3, 5]])
    assert not Example((X,), {"scale": torch.ones(())}).separable


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (X, r"got one tensor: write \[tensor\]"),
        (3, "batches must be an iterable of batches, got int"),
        ({"x": X}, "batches must be an iterable of batches, got dict"),
        (DIGITS, "got TensorDataset: give a DataLoader over it"),
        ([], "batches must hold at least one batch, got none"),
        (iter([]), "batches must hold at least one batch, got none"),
        (DataLoader(TensorDataset(X[:0], Y[:0]), 4), "batches must hold"),
        ([(X[:0], Y[:0])], "batches must hold at least one batch, got none"),
        (["text"], "a batch must be a tensor, a tuple or list that starts with one, or a dict of arguments, got str"),
        ([()], "a batch must hold inputs=1 arguments of the model, got 0"),
        ([(X, Y, Y)], "at most one value of labels, got 3 values"),
        ([{1: X}], "must map argument names to values"),
        ([torch.empty(2, 1, 8, 8, device="meta")], "a batch must have values"),
        ([(X[:, :, :7], Y)], r"batches must be what the student takes, got float32 \[\d+, 1, 7, 8\]: RuntimeError"),
        (plain(), "there must be something to learn from"),
        ([(X, Y[:3])], r"labels must be integers|must hold"),
        ([(X, Y + 5)], "labels must be classes from 0 to 4"),
        ([(X, Y.tolist())], "labels must be a tensor"),
        ([(X * torch.nan, Y)], "student must give finite outputs before it is trained"),
    ],
)
def test_refused(batches: Any, message: str) -> None:
    student = pruned(net())
    before = values(student)
    with pytest.raises(Error, match="finetune: .*" + message):
        tune(student, batches)
    assert_same(values(student), before)


def test_refused_with_a_teacher() -> None:
    with pytest.raises(Error, match=r"the student's logits must be \[\d+, 7\] as the teacher's, got \[\d+, 5\]"):
        tune(net(), plain(), nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))
    with pytest.raises(Error, match="batches must be what the teacher takes"):
        tune(net(), plain(), nn.Linear(3, 5))
    with pytest.raises(Error, match="output must be one tensor of logits"):
        tune(nn.LSTM(8, 5), [torch.randn(4, 20, 8)], nn.LSTM(8, 5))
