"""finetune's checkpoint: a run that is cut short goes on along the same way, and other files are refused."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from secateur import Error, Magnitude
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tuning import X, Y, assert_same, labelled, net, pruned, tune, values

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A shell's background job ignores them."""
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, held)


def batches(kind: str) -> Any:
    if kind == "list":
        return labelled()
    generator = torch.Generator().manual_seed(0) if kind == "generator" else None
    workers = 1 if kind == "worker" else 0
    return DataLoader(TensorDataset(X, Y), 20, shuffle=True, generator=generator, num_workers=workers)


def cutting(at: int) -> Any:
    """AdamW that interrupts the process in its step ``at``, as Ctrl-C does."""

    class Cut(torch.optim.AdamW):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            type(self).steps += 1
            result = super().step()
            if type(self).steps == at:
                os.kill(os.getpid(), signal.SIGINT)
            return result

    Cut.__name__ = "AdamW"
    return Cut


@pytest.mark.parametrize("kind", ["list", "loader", "generator", "worker"])
def test_a_run_that_was_cut_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Weights, averages, the optimizer's state and the rows; with dropout, a teacher and BatchNorm."""
    teacher, whole, cut = net(1), pruned(net(dropout=0.3)), pruned(net(dropout=0.3))
    how: dict[str, Any] = {"lr": 1e-3, "steps": 40}
    expected = tune(whole, batches(kind), teacher, checkpoint=tmp_path / "whole.pt", optimizer=torch.optim.AdamW, **how)
    path = tmp_path / "cut.pt"
    for at in (7, 13):  # the second time in another pass
        with pytest.raises(KeyboardInterrupt):
            tune(cut, batches(kind), teacher, checkpoint=path, optimizer=cutting(at), **how)
    report = tune(cut, batches(kind), teacher, checkpoint=path, optimizer=torch.optim.AdamW, **how)
    assert any(f"resumed at step 20 from {path}" in note for note in report.notes)
    one, two = (torch.load(file, weights_only=True) for file in (tmp_path / "whole.pt", path))
    for part in ("values", "average", "best"):
        assert_same(one[part], two[part])
    for number, state in one["optimizer"]["state"].items():
        assert_same(state, two["optimizer"]["state"][number])
    for a, b in zip(expected.rows, report.rows, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert_same(values(cut), values(whole))
    assert not torch.equal(one["values"]["5.weight"], pruned(net())[5].weight)  # type: ignore[index]


def test_an_interrupt_leaves_the_best_so_far(tmp_path: Path) -> None:
    dense, student = net(), pruned(net())
    tune(dense, labelled(), steps=100, lr=3e-3)
    start = values(student)
    judged: list[tuple[float, dict[str, Tensor]]] = []

    def evaluate(model: nn.Module) -> float:
        judged.append((float((model(X).argmax(1) == Y).double().mean()), values(model)))
        return judged[-1][0]

    flags = [m.training for m in student.modules()]
    optimizer = cutting(27)(student.parameters(), lr=3e-3)
    with pytest.raises(KeyboardInterrupt):
        tune(student, labelled(), optimizer=optimizer, evaluate=evaluate, checkpoint=tmp_path / "run.pt")
    assert len(judged) == 3
    assert_same(values(student), max(judged, key=lambda pair: pair[0])[1])
    assert not torch.equal(values(student)["5.weight"], start["5.weight"])
    assert [m.training for m in student.modules()] == flags
    assert optimizer.param_groups[0]["lr"] == 3e-3


def test_an_interrupt_while_judging(tmp_path: Path) -> None:
    student, calls = pruned(net()), iter(range(100))

    def evaluate(model: nn.Module) -> float:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return 0.5

    path, other = tmp_path / "run.pt", pruned(net())
    start = values(student)
    with pytest.raises(KeyboardInterrupt):
        tune(student, labelled(), evaluate=evaluate, checkpoint=path)
    assert_same(values(student), start)
    stored = torch.load(path, weights_only=True)
    assert stored["state"]["step"] == 20
    assert not torch.equal(stored["values"]["5.weight"], stored["average"]["5.weight"]), "the student's own values"
    tune(student, labelled(), evaluate=lambda m: float(m(X).mean()), checkpoint=path)
    tune(other, labelled(), evaluate=lambda m: 0.5, checkpoint=tmp_path / "other.pt")
    one, two = (torch.load(p, weights_only=True)["values"] for p in (path, tmp_path / "other.pt"))
    assert_same(one, two)


def test_a_run_that_is_complete_is_not_repeated(tmp_path: Path) -> None:
    path, student, again = tmp_path / "run.pt", pruned(net()), pruned(net())
    first = tune(student, labelled(), checkpoint=path, lr=3e-3)
    second = tune(again, labelled(), checkpoint=path, lr=3e-3)
    assert_same(values(student), values(again))
    assert second.rows == first.rows
    assert "nothing was trained: the run in" in second.notes[0]


def test_an_error_leaves_the_student_as_it_was(tmp_path: Path) -> None:
    student = pruned(net())
    before = values(student)
    batches = [*labelled(), (X[:10, :, :5], Y[:10])]
    with pytest.raises(Error, match="batches must be what the student takes"):
        tune(student, batches, evaluate=lambda m: 0.5, steps=100)
    assert_same(values(student), before)


def _cut(path: Path, student: nn.Module, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(student, labelled(), checkpoint=path, optimizer=cutting(5), lr=1e-3, **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": lambda: pruned(net(), 0.5)}, "of a student with other zeros"),
        ({"student": lambda: pruned(nn.Sequential(*net(), nn.Linear(5, 5)))}, r"of another student \(they differ in 6"),
        ({"steps": 80}, "of a run with steps=40, this one has 80"),
        ({"seed": 1}, "of a run with seed=0, this one has 1"),
        ({"lr": 1e-2}, "of a run with lr=0.001"),
        ({"optimizer": torch.optim.SGD}, "of a run with AdamW, not SGD"),
        ({"teacher": net(1)}, "of a run with teacher=False, this one has True"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    _cut(path, pruned(net()))
    content = path.read_bytes()
    more = {"optimizer": torch.optim.AdamW, "lr": 1e-3, **change}
    student = more.pop("student", lambda: pruned(net()))()
    before = values(student)
    with pytest.raises(Error, match=message):
        tune(student, labelled(), checkpoint=path, **more)
    assert_same(values(student), before)
    assert path.read_bytes() == content


class _Evil:
    def __reduce__(self) -> Any:
        return os.abort, ()


def test_other_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for content in (b"text", _saved(_Evil()), _saved({"format": 1}), _saved([1])):
        path.write_bytes(content)
        with pytest.raises(Error, match=f"of {path} it (does not open|is another kind of file)"):
            tune(net(), labelled(), checkpoint=path)
        assert path.read_bytes() == content
    with pytest.raises(Error, match="is a folder"):
        tune(net(), labelled(), checkpoint=tmp_path)
    with pytest.raises(Error, match="checkpoint must be a path or None, got int"):
        tune(net(), labelled(), checkpoint=3)
    with pytest.raises(OSError, match="No such file"):
        tune(net(), labelled(), checkpoint=tmp_path / "nowhere" / "run.pt")


def _saved(value: Any) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_student_that_was_stripped_resumes(tmp_path: Path) -> None:
    """Its zeros have masks for the time of a run only."""
    path, model = tmp_path / "run.pt", net()
    secateur.prune(model, Magnitude(0.6))
    student = secateur.strip(copy.deepcopy(model))
    _cut(path, student)
    report = tune(student, labelled(), checkpoint=path, optimizer=torch.optim.AdamW, lr=1e-3)
    assert any("resumed at step 5" in note for note in report.notes)
