"""Wrappers and overridden methods: the file is that of the plain model, whatever stands around it or its parts."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.distributed as dist
from secateur import Error, Magnitude, masks
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

Wrap = Callable[[nn.Module], nn.Module]


def block(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), secateur.nn.ThresholdReLU(torch.full((8,), 0.1 * seed)))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), block(seed), nn.Flatten(), nn.Linear(800, 4)).eval()


def pruned(model: nn.Module) -> nn.Module:
    secateur.prune(model, Magnitude(0.8))
    return model


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def part(at: int, wrap: Wrap) -> Wrap:
    def made(model: nn.Module) -> nn.Module:
        model[at] = wrap(model[at])  # type: ignore[index, operator]
        return model

    return made


WRAPS: dict[str, Wrap] = {
    "none": lambda model: model,
    "torch.compile": compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compiled DDP": lambda model: compiled(DistributedDataParallel(model)),
    "DDP of a compiled one": lambda model: DistributedDataParallel(compiled(model)),
    "activation checkpointing": checkpoint_wrapper,
    "a compiled part": part(1, compiled),
    "a compiled layer": part(0, compiled),
    "a part in DataParallel": part(1, nn.DataParallel),
    "a layer in DDP": part(3, DistributedDataParallel),
    "a part under activation checkpointing": part(1, checkpoint_wrapper),
    "a part in all of them": part(1, lambda model: compiled(nn.DataParallel(checkpoint_wrapper(model)))),
    "DDP around a layer in DDP": lambda model: DistributedDataParallel(part(0, DistributedDataParallel)(model)),
}


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process, for DistributedDataParallel."""
    if not dist.is_available():
        pytest.skip("there is no torch.distributed here")
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def said(path: Path) -> dict[str, Any]:
    """All names in a file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    return {"tensors": set(header), **json.loads(header["__metadata__"]["secateur"])}


@pytest.mark.parametrize("late", [False, True], ids=["pruned", "wrapped"])
@pytest.mark.parametrize("name", WRAPS)
def test_the_file_is_the_plain_model_s(tmp_path: Path, name: str, late: bool) -> None:
    wrap = WRAPS[name]
    plain = pruned(network(1))
    model = pruned(wrap(network(1))) if late else wrap(pruned(network(1)))  # pruned last, or first
    secateur.save(plain, tmp_path / "plain")
    secateur.save(model, tmp_path / "f")
    assert said(tmp_path / "f") == said(tmp_path / "plain")
    other = network(2)
    assert secateur.load(tmp_path / "f", other) is other
    assert equal(other, plain)
    other.load_state_dict(plain.state_dict())  # strictly: the masks are there


@pytest.mark.parametrize("name", WRAPS)
def test_wrappers_are_filled(tmp_path: Path, name: str) -> None:
    plain = pruned(network(1))
    secateur.save(plain, tmp_path / "plain")
    target = WRAPS[name](network(2))
    assert secateur.load(tmp_path / "plain", target) is target
    assert equal(target, plain)
    weight = target.get_parameter(next(n for n, p in target.named_parameters() if p.dim() == 4))
    optimizer = torch.optim.SGD(target.parameters(), 0.1)
    zeros = weight == 0
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.equal(weight == 0, zeros)  # the mask holds where the layer is, inside
    dense = secateur.to_dense_state_dict(tmp_path / "plain")
    again = WRAPS[name](network(2))
    assert secateur.import_checkpoint(dense, again) is again
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("masked", [False, True])
def test_state_dicts_of_wrappers_are_imported(tmp_path: Path, name: str, masked: bool) -> None:
    """``torch.save(ddp.state_dict())`` has the wrapper's name before every key."""
    plain = pruned(network(1)) if masked else network(1)
    torch.save(WRAPS[name](pruned(network(1)) if masked else network(1)).state_dict(), tmp_path / "f")
    for target in (network(2), WRAPS[name](network(2))):
        secateur.import_checkpoint(tmp_path / "f", target)
        assert equal(target, plain)
        assert bool(list(masks.masked_modules(target))) == masked


def test_names_that_only_look_like_a_wrapper_s(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.module = nn.Linear(3, 3)
            self.other = nn.ModuleDict({"module": nn.Linear(3, 3), "more": nn.Linear(3, 3)})

    secateur.save(Own(1), tmp_path / "f")
    assert "other.module.weight" in said(tmp_path / "f")["tensors"]
    assert equal(secateur.load(tmp_path / "f", nn.DataParallel(Own(2))), Own(1))
    assert equal(secateur.import_checkpoint(nn.DataParallel(Own(1)).state_dict(), Own(2)), Own(1))


# ---- methods of the model's own ----


class Fixed(nn.Module):
    """As image restoration networks have it: no ``assign``, nothing returned, some tensors left out."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> None:  # type: ignore[override]
        own = self.state_dict()
        for name, value in state_dict.items():
            if name in own and not name.startswith("tail"):
                own[name].copy_(value)


class Refusing(Fixed):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        raise RuntimeError("use load_weights()")


class Renaming(Fixed):
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"net." + key: value for key, value in super().state_dict(*args, **kwargs).items()}


class Silent(Fixed):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


@pytest.mark.parametrize("kind", [Fixed, Refusing, Renaming, Silent])
def test_models_that_load_in_their_own_way(tmp_path: Path, kind: type[Fixed]) -> None:
    secateur.save(kind(1), tmp_path / "f")
    other = kind(2)
    assert secateur.load(tmp_path / "f", other) is other
    assert equal(other, kind(1))
    assert equal(secateur.load(tmp_path / "f", nn.DataParallel(kind(3))), kind(1))
    assert equal(secateur.import_checkpoint(kind(1).state_dict(), kind(4)), kind(1))


def test_pruned_models_that_load_in_their_own_way(tmp_path: Path) -> None:
    model = pruned(Fixed(1))
    secateur.save(model, tmp_path / "f")
    for other in (Fixed(2), pruned(Fixed(3))):
        assert equal(secateur.load(tmp_path / "f", other), model)


def test_a_state_dict_that_is_none(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return [1]

    with pytest.raises(Error, match=r"save: state_dict\(\) of the model must give tensors by name, got list"):
        secateur.save(Odd(2, 2), tmp_path / "f")


# ---- TorchScript ----


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)  # type: ignore[no-any-return]


def traced(model: nn.Module, *shape: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.rand(shape))  # type: ignore[no-any-return]


class InParts(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.act = nn.Conv2d(3, 8, 3), scripted(Swish())
        self.body = scripted(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
        self.head = traced(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval(), 1, 8, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.act(self.stem(x))))  # type: ignore[no-any-return]


def test_parts_of_torchscript(tmp_path: Path) -> None:
    model = pruned(InParts(1)).eval()
    x = torch.rand(2, 3, 12, 12)
    secateur.save(model, tmp_path / "f")
    for other in (InParts(2).eval(), pruned(InParts(2)).eval()):
        assert torch.equal(secateur.load(tmp_path / "f", other)(x), model(x))
    plain = InParts(3).eval()
    secateur.import_checkpoint(model.state_dict(), plain)
    assert torch.equal(plain(x), model(x))
    assert {name for name, _ in masks.masked_modules(plain)} == {"stem"}


def test_a_whole_model_of_torchscript(tmp_path: Path) -> None:
    def made(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(800, 4)).eval()

    x = torch.rand(2, 3, 12, 12)
    secateur.save(made(1), tmp_path / "plain")
    for script in (scripted(made(2)), traced(made(3), *x.shape)):
        assert torch.equal(secateur.load(tmp_path / "plain", script)(x), made(1)(x))
        secateur.save(script, tmp_path / "f")
        assert torch.equal(secateur.load(tmp_path / "f", made(5))(x), made(1)(x))
        assert torch.equal(secateur.import_checkpoint(made(6).state_dict(), script)(x), made(6)(x))


def test_a_masked_file_does_not_fit_into_torchscript(tmp_path: Path) -> None:
    """A scripted layer has nowhere to keep a mask."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(6, 6))
    secateur.save(pruned(model), tmp_path / "f")
    script = scripted(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(6, 6)))
    before = [t.clone() for t in tensors(script)]
    with pytest.raises(Error, match=r"load: .* is masked in the file and must be able to take its mask"):
        secateur.load(tmp_path / "f", script)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(script), strict=True))


def test_what_is_frozen_would_be_lost(tmp_path: Path) -> None:
    """Its state_dict is empty: a file without weights would be no file of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(scripted(nn.Sequential(nn.Conv2d(3, 8, 3)).eval()))
    for model, name in ((frozen, "model"), (nn.Sequential(nn.Conv2d(3, 3, 1), frozen), "1")):
        with pytest.raises(Error, match=f"save: {name} must hold its weights, but torch.jit.freeze has made constants"):
            secateur.save(model, tmp_path / "f")
    secateur.save(nn.Sequential(nn.Conv2d(3, 8, 3)), tmp_path / "plain")
    with pytest.raises(Error, match="load: file and model must hold the same names"):
        secateur.load(tmp_path / "plain", frozen)
