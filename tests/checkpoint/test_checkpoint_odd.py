"""Tensors that are no ordinary ones, tensors that claim more than they hold, arguments of the wrong kind."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from safetensors.torch import save_file
from secateur import Error
from secateur.checkpoint.report import checkpoint_report
from torch import Tensor, nn

SHAPE = (4, 24)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))


def with_weight(tensor: Tensor) -> nn.Sequential:
    model = net()
    model[2]._parameters["weight"] = nn.Parameter(tensor, requires_grad=False)
    return model


ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: torch.ones(SHAPE).to_sparse(), "a tensor in the layout torch.sparse_coo"),
    "csr": (lambda: torch.ones(SHAPE).to_sparse_csr(), "a tensor in the layout torch.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(5)]), "a nested tensor"),
    "jagged": (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged), "NestedTensor"),
    "meta": (lambda: torch.ones(SHAPE, device="meta"), "meta, without values"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(SHAPE), 0.1, 0, torch.qint8), "a quantized tensor"),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that some of these are prototypes, or deprecated
        yield


def unchanged(model: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_ordinary_ones(tmp_path: Path, kind: str) -> None:
    make, words = ODD[kind]
    rule = re.escape(f"2.weight must be an ordinary tensor with values, got {words}")
    secateur.save(net(), tmp_path / "f")
    with pytest.raises(Error, match="^save: " + rule):
        secateur.save(with_weight(make()), tmp_path / "g")
    assert not (tmp_path / "g").exists()
    with pytest.raises(Error, match="^load: " + rule):
        secateur.load(tmp_path / "f", with_weight(make()))
    with pytest.raises(Error, match="^import_checkpoint: " + rule):
        secateur.import_checkpoint(net().state_dict(), with_weight(make()))
    state, model = {**net().state_dict(), "2.weight": make()}, net()
    torch.save(state, tmp_path / "torch")
    for given in (state, tmp_path / "torch"):
        with pytest.raises(Error, match="^import_checkpoint: " + rule):
            secateur.import_checkpoint(given, model)
    report = checkpoint_report(tmp_path / "torch")
    assert [row["layer"] for row in report] == ["0.weight"]
    assert any("2.weight is not in the table: it is " in note for note in report.notes)
    assert unchanged(model)


def test_tensors_without_values_in_a_state_dict(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = nn.Linear(6, 24)
    lazy = nn.LazyLinear(24)
    for state, words in ((fake.state_dict(), "FakeTensor"), (lazy.state_dict(), "one that is not initialized")):
        with pytest.raises(
            Error, match=f"import_checkpoint: weight must be an ordinary tensor with values, got {words}"
        ):
            secateur.import_checkpoint(state, nn.Linear(6, 24))
    for model in (fake, lazy):
        with pytest.raises(Error, match=r"save: weight must be "):
            secateur.save(model, tmp_path / "f")
        with pytest.raises(Error, match=r"import_checkpoint: weight must be "):
            secateur.import_checkpoint(nn.Linear(6, 24).state_dict(), model)


@pytest.mark.parametrize("place", ["orig", "mask", "packed", "packed weight", "sparsifier"])
@pytest.mark.parametrize("kind", ODD)
def test_masks_that_are_no_ordinary_tensors(kind: str, place: str) -> None:
    state: dict[str, Any] = dict(net().state_dict())
    odd, weight, sparsifier = ODD[kind][0](), state.pop("2.weight"), None
    if place in ("orig", "mask"):
        state["2.weight_orig"] = odd if place == "orig" else weight
        state["2.weight_mask"] = odd if place == "mask" else torch.ones(SHAPE)
    else:
        state["2.weight"] = odd if place == "packed weight" else weight
        if place == "sparsifier":
            sparsifier = {"state": {"2.weight": {"mask": odd}}}
        else:
            state["2.weight_mask"] = odd if place == "packed" else torch.full((4, 3), 255, dtype=torch.uint8)
    model = net()
    with pytest.raises(Error, match=r"^import_checkpoint: .*must be an ordinary tensor|: file and model must hold"):
        secateur.import_checkpoint(state, model, sparsifier)
    assert unchanged(model)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_in_the_state_dict_may_be_odd(tmp_path: Path, kind: str) -> None:
    model = net()
    model.register_buffer("cache", ODD[kind][0](), persistent=False)
    secateur.save(model, tmp_path / "f")
    assert unchanged(secateur.import_checkpoint(net().state_dict(), secateur.load(tmp_path / "f", model)))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.float64, torch.bool]
)
def test_weights_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(96).reshape(SHAPE).remainder(7).to(dtype)
    secateur.save(with_weight(values), tmp_path / "f")
    for fill in (
        lambda model: secateur.load(tmp_path / "f", model),
        lambda model: secateur.import_checkpoint(with_weight(values).state_dict(), model),
    ):
        found = fill(with_weight(torch.zeros(SHAPE, dtype=dtype)))
        assert torch.equal(found[2].weight.view(torch.uint8), values.view(torch.uint8))
    with pytest.raises(Error, match=f"2.weight must be torch.float32 as in the model, got {dtype}"):
        secateur.load(tmp_path / "f", net())
    save_file({"w": values}, tmp_path / "plain")
    torch.save({"w": values, "v": torch.zeros(2, 2)}, tmp_path / "torch")
    report = checkpoint_report(tmp_path / "torch")
    if values.is_floating_point():
        assert report["w"]["kept"] == int((torch.arange(96) % 7 != 0).sum())
        assert checkpoint_report(tmp_path / "plain")["w"]["kept"] == report["w"]["kept"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.uint16])
def test_masks_of_dtypes_that_are_none(dtype: torch.dtype) -> None:
    state = dict(net().state_dict())
    state |= {"2.weight_orig": state.pop("2.weight"), "2.weight_mask": torch.ones(SHAPE).to(dtype)}
    with pytest.raises(Error, match=r"import_checkpoint: 2.weight_mask must be 0 and 1 in the shape of 2.weight"):
        secateur.import_checkpoint(state, net())


# ---- tensors that claim more than they hold ----

HUGE = 2**20


def claimed(dtype: torch.dtype = torch.float32, fill: float = 0) -> Tensor:
    """Four bytes that say they are 2^40 numbers."""
    return torch.full((1, 1), fill, dtype=dtype).expand(HUGE, HUGE)


def overlapping() -> Tensor:
    """Rows that lie over each other: no stride is 0."""
    return torch.zeros(2 * HUGE).as_strided((HUGE, HUGE), (1, 1))


def claims() -> dict[str, dict[str, Tensor]]:
    rest = {"0.bias": torch.zeros(24), "2.weight": torch.zeros(SHAPE), "2.bias": torch.zeros(4)}
    return {
        "plain": {**rest, "0.weight": claimed()},
        "one dim": {**rest, "0.weight": torch.zeros(24, 6), "0.bias": torch.zeros(1).expand(2**40)},
        "masked": {**rest, "0.weight_orig": claimed(), "0.weight_mask": claimed(fill=1)},
        "masked, a mask of bools": {**rest, "0.weight_orig": claimed(), "0.weight_mask": claimed(torch.bool, 1)},
        "the mask alone": {**rest, "0.weight_orig": torch.zeros(24, 6), "0.weight_mask": claimed(fill=1)},
        "the weight alone": {**rest, "0.weight_orig": claimed(), "0.weight_mask": torch.ones(24, 6)},
        "packed": {
            **rest, "0.weight": claimed(),
            "0.weight_mask": torch.zeros(1, 1, dtype=torch.uint8).expand(HUGE, HUGE // 8),
        },
        "parametrized": {
            **rest, "0.parametrizations.weight.original": claimed(),
            "0.parametrizations.weight.0.mask": claimed(fill=1),
        },
        "rows over each other": {**rest, "0.weight": overlapping()},
        "a bias": {
            "0.weight": torch.zeros(24, 6), "2.weight": torch.zeros(SHAPE), "2.bias": torch.zeros(4),
            "0.bias_orig": torch.zeros(1).expand(2**40), "0.bias_mask": torch.ones(1).expand(2**40),
        },
    }  # fmt: skip


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Or a test that fails would take all that there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", claims())
@pytest.mark.parametrize("form", ["state_dict", "file"])
def test_an_import_compares_before_it_computes(tmp_path: Path, name: str, form: str) -> None:
    given: Any = claims()[name]
    if form == "file":
        torch.save(given, tmp_path / "f")
        given = tmp_path / "f"
    model = net()
    with pytest.raises(Error, match=r"^import_checkpoint: .* must be .*\[|must be 0 and 1 in the shape of"):
        secateur.import_checkpoint(given, model)
    assert unchanged(model)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", claims())
def test_a_report_counts_what_is_stored(tmp_path: Path, name: str) -> None:
    torch.save(claims()[name], tmp_path / "f")
    if name not in ("plain", "one dim", "rows over each other"):
        rule = "must hold as many numbers as its shape says|must be 0 and 1 in the shape of"
        with pytest.raises(Error, match=f"^report: .*({rule})"):
            checkpoint_report(tmp_path / "f")
        return
    report = checkpoint_report(tmp_path / "f")
    assert report.total["weights"] <= 2 * HUGE + 24 * 6 + 4 * 24
    assert report.total["bytes_dense"] <= 4 * report.total["weights"]
    if name != "one dim":
        assert any(f"0.weight [{HUGE}, {HUGE}] is an expanded view of" in note for note in report.notes)


def test_small_expanded_tensors_are_as_good_as_others() -> None:
    model = net()
    secateur.import_checkpoint({**net().state_dict(), "2.weight": torch.full((1, 1), 3.0).expand(SHAPE)}, model)
    assert torch.equal(model[2].weight, torch.full(SHAPE, 3.0))  # type: ignore[arg-type]


def test_a_report_of_a_bomb_ends(tmp_path: Path) -> None:
    torch.save({"w": claimed()}, tmp_path / "f")
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "report", str(tmp_path / "f")], capture_output=True, text=True, check=False,
        timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{HUGE}x{HUGE}" in done.stdout
    with zipfile.ZipFile(tmp_path / "f") as file:
        assert sum(each.file_size for each in file.infolist()) < 10_000
