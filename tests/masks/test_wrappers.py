"""Models inside torch.compile, DataParallel and DistributedDataParallel, on the meta device, of odd tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
import torch.distributed as dist
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, MeanStd, masks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda m: torch.compile(m, backend="eager"),  # type: ignore[dict-item,return-value]
    "data parallel": nn.DataParallel,
    "distributed": DistributedDataParallel,
    "compiled, distributed": lambda m: DistributedDataParallel(torch.compile(m, backend="eager")),  # type: ignore[arg-type]
    "distributed, compiled": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.usefixtures("group")
def test_wrapped_models(kind: str) -> None:
    wrap = WRAPPERS[kind]
    plain, inner = net(), net()
    wrapped = wrap(inner)
    want = secateur.prune(plain, MeanStd(sparsity=0.6))
    assert secateur.prune(wrapped, MeanStd(sparsity=0.6)).to_dict() == want.to_dict()
    assert secateur.sparsity(wrapped).to_dict() == secateur.sparsity(plain).to_dict()
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9)
    pruner = GradualPruner(wrapped, Magnitude(0.9), CubicSchedule(0.9, 0.7, end=2), optimizer=optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        pruner.step()
    assert secateur.sparsity(inner).sparsity == pytest.approx(0.9, abs=0.01)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.add_(1)
    masks.apply(wrapped)
    assert secateur.sparsity(wrapped).sparsity == pytest.approx(0.9, abs=0.01)
    # Its state_dict goes into another of its kind; the inner one's goes into a plain model, and into a wrapped one's.
    for into, state in ((wrap(net()), wrapped.state_dict()), (net(), inner.state_dict())):
        masks.match_state_dict(into, state).load_state_dict(state)
        assert secateur.sparsity(into).to_dict()["rows"] == secateur.sparsity(masks.adopt(into)).to_dict()["rows"]
        assert secateur.sparsity(into).sparsity == pytest.approx(0.9, abs=0.01)
    masks.match_state_dict(wrap(net()), inner.state_dict())
    secateur.strip(wrapped)
    assert not list(masks.masked_modules(inner))


@pytest.mark.parametrize("assign", [True, False])
def test_a_model_on_meta_takes_masks(assign: bool) -> None:
    pruned = net()
    secateur.prune(pruned, Magnitude(0.75))
    state = pruned.state_dict()
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masks.match_state_dict(model, state) is model
        assert all(p.device.type == "meta" for p in model.parameters())
        if not assign:
            model.to_empty(device="cpu")
        model.load_state_dict(state, assign=assign)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    zeros = [p == 0 for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert all(bool((p[z] == 0).all()) for p, z in zip(model.parameters(), zeros, strict=True) if p.dim() > 1)
    with pytest.raises(Error, match=r"'0.weight_mask' must be a packed mask, uint8 \[8, 4\]"):
        masks.match_state_dict(net().to("meta"), {**state, "0.weight_mask": torch.ones(8, 5, dtype=torch.uint8)})


def with_weight(make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Sequential:
    model = net()
    model[3].weight = nn.Parameter(make(model[3].weight.detach()), requires_grad=False)
    return model


def nested(weight: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([weight[:1, :5], weight[:2, :7]])


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch.sparse_coo": torch.Tensor.to_sparse,
    "torch.sparse_csr": torch.Tensor.to_sparse_csr,
    "float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn),
    "complex64": lambda w: w.to(torch.complex64),
    "a nested tensor": nested,
    "an? nested tensor|NestedTensor": lambda w: torch.nested.nested_tensor([w[:1], w[:2]], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*(nested|Nested|Sparse CSR).*:UserWarning")
@pytest.mark.parametrize("what", ODD)
def test_odd_weights_are_named_and_left(what: str) -> None:
    model = with_weight(ODD[what])
    with pytest.warns(UserWarning, match=f"prune: 3 is left as it is: its weight is .*({what})"):
        report = secateur.prune(model, Magnitude(0.5))
    assert [row["layer"] for row in report] == ["0"]
    assert len(secateur.sparsity(model).notes) == 1
    masks.adopt(masks.apply(model))
    state = {**net().state_dict(), "3.weight_mask": torch.ones(4, 36, dtype=torch.uint8)}
    with pytest.raises(Error, match="match_state_dict: 3 cannot take a mask: its weight is"):
        masks.match_state_dict(model, state)
    with pytest.raises(Error, match="must leave a layer to prune, but none is left: 3 is left as it is"):
        secateur.prune(model, Magnitude(0.5), exclude=["0"])


@pytest.mark.filterwarnings("ignore:.*(nested|Nested).*:UserWarning")
def test_a_masked_weight_that_became_nested() -> None:
    model = net()
    secateur.prune(model, Magnitude(0.5))
    model[3].weight = nn.Parameter(nested(model[3].weight.detach()))
    model.state_dict()
    with pytest.raises(Error, match="the pruned 'weight' of a Linear must be an ordinary tensor, got a nested one"):
        masks.apply(model)


@pytest.mark.filterwarnings("ignore:.*(nested|Nested).*:UserWarning")
def test_a_nested_parameter_of_an_unknown_layer_is_noted() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)]))

    assert any("table (nested)" in note for note in secateur.prune(Own(), Magnitude(0.5)).notes)


def test_models_on_meta_are_refused() -> None:
    for call in (secateur.prune, lambda m, c: GradualPruner(m, c, CubicSchedule(0.5, end=2))):
        with pytest.raises(Error, match="0 cannot be pruned: its weights are on the meta device"):
            call(net().to("meta"), Magnitude(0.5))
    assert "meta device" in secateur.sparsity(net().to("meta")).notes[0]


def test_compiled_parts_take_the_new_weights() -> None:
    x = torch.rand(2, 3, 8, 8)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    whole = nn.Sequential(secateur.compile(body, x, budget=1), nn.Flatten(), nn.Linear(128, 4)).eval()
    whole(x)

    def same() -> bool:
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        state = {k: v for k, v in whole[0].state_dict().items() if not k.endswith("_mask")}
        plain.load_state_dict(state)
        return torch.allclose(whole[0](x), plain(x), atol=1e-5)

    calls: tuple[Callable[[], Any], ...] = (
        lambda: secateur.prune(whole, Magnitude(0.5)),
        lambda: secateur.prune(whole[0], Magnitude(0.9)),
        lambda: masks.apply(whole),
        GradualPruner(whole, Magnitude(0.99), CubicSchedule(0.99, 0.95, end=5)).step,
    )
    for call in calls:
        before = whole[0](x)
        if call is calls[2]:
            with torch.no_grad():
                for parameter in whole.parameters():
                    parameter.add_(0.1)
        call()
        assert same()
        assert not torch.equal(whole[0](x), before)
