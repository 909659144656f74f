"""Averages of pruned networks: whoever blends a model's weights, buffers or state_dict keeps every living weight."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from secateur import CubicSchedule, Error, GradualPruner, Magnitude, masks
from torch import Tensor, nn
from torch.optim import swa_utils

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*the bits of a mask were not those that it was given.*:UserWarning"),
]

MENDED = "the bits of a mask were not those that it was given"


def net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12) if norm else nn.GroupNorm(3, 12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Flatten(),
        nn.Linear(12 * 36, 5),
    )


def pruned(share: float = 0.5, norm: bool = True) -> nn.Sequential:
    model = net(norm)
    secateur.prune(model, Magnitude(share))
    return model


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 3, 6, 6)).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{parameter}": masks.get_mask(module, parameter)  # type: ignore[misc]
        for name, module in masks.masked_modules(model)
        for parameter in masks.masked_parameters(module)
    }


def assert_nothing_is_lost(average: nn.Module, want: dict[str, Tensor], folder: Path, norm: bool = True) -> None:
    """Through a state_dict, a pickle, a copy, the package's own file: the weights are those of the average."""
    state = average.state_dict()
    fresh = net(norm)
    masks.match_state_dict(fresh, state).load_state_dict(state)
    secateur.save(average, folder / "average.safetensors")
    loaded = secateur.load(folder / "average.safetensors", net(norm))
    copied = masks.apply(copy.deepcopy(average))
    stepped = copy.deepcopy(average)
    for parameter in stepped.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(stepped.parameters(), 0.1).step()
    for other in (fresh, loaded, copied, pickle.loads(pickle.dumps(average)), stepped):
        for name, p in other.named_parameters():
            assert torch.equal(p, want[name]), name


AVERAGES: dict[str, dict[str, Any]] = {
    **{f"ema {d}": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(d)} for d in (0.9, 0.99, 0.999, 0.9995, 0.9999)},
    "ema one by one": {"avg_fn": swa_utils.get_ema_avg_fn(0.99)},
    "equal": {},
    "equal one by one": {"avg_fn": swa_utils.get_swa_avg_fn()},
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("pruned_first", [True, False])
def test_averaged_model_with_its_buffers(kind: str, pruned_first: bool, tmp_path: Path) -> None:
    """What it makes of the weights is what it makes of them in a network that nobody pruned."""
    norm = kind != "equal"  # torch cannot average BatchNorm's counter so
    model = pruned(norm=norm) if pruned_first else net(norm)
    average = swa_utils.AveragedModel(model, use_buffers=True, **AVERAGES[kind])
    if not pruned_first:
        secateur.prune(model, Magnitude(0.5))
    plain = copy.deepcopy(model)
    secateur.strip(plain)
    reference = swa_utils.AveragedModel(plain, use_buffers=True, **AVERAGES[kind])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        train_step(model, optimizer)
        average.update_parameters(model)
        with torch.no_grad():
            for p, q in zip(itertools.chain(plain.parameters(), plain.buffers()),
                            itertools.chain(model.parameters(), model.buffers()), strict=True):  # fmt: skip
                p.copy_(q)
        reference.update_parameters(plain)
    for a, b in zip(average.module.buffers(), reference.module.buffers(), strict=True):
        assert torch.equal(a, b)
    if pruned_first:
        assert bits(average.module).keys() == bits(model).keys()
        assert all(torch.equal(mask, bits(average.module)[name]) for name, mask in bits(model).items())
    assert_nothing_is_lost(average.module, weights(reference.module), tmp_path, norm)


@torch.no_grad()
def blend_values(average: nn.Module, model: nn.Module, decay: float) -> None:
    """timm's ModelEmaV2."""
    for ema_v, model_v in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        ema_v.copy_(decay * ema_v + (1.0 - decay) * model_v)


@torch.no_grad()
def blend_data(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Past the version counters."""
    state = model.state_dict()
    for key, value in average.state_dict().items():
        value.data.copy_(value.data * decay + state[key].data * (1 - decay))


@torch.no_grad()
def blend_floats_copy_others(average: nn.Module, model: nn.Module, decay: float) -> None:
    """timm's ModelEmaV3."""
    for ema_v, model_v in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        ema_v.lerp_(model_v, 1 - decay) if ema_v.is_floating_point() else ema_v.copy_(model_v)


@torch.no_grad()
def blend_floats(average: nn.Module, model: nn.Module, decay: float) -> None:
    """YOLOv5's ModelEMA."""
    state = model.state_dict()
    for key, value in average.state_dict().items():
        if value.dtype.is_floating_point:
            value *= decay
            value += (1 - decay) * state[key].detach()


BLENDS = (blend_values, blend_data, blend_floats_copy_others, blend_floats)
Blend = Callable[[nn.Module, nn.Module, float], None]


def follow(shadow: dict[str, Tensor], model: nn.Module, average: nn.Module, blend: Blend, decay: float) -> None:
    """Blend, and do to the ``shadow`` of the weights what is done to a network that nobody pruned."""
    plain, other = net(), net()
    plain.load_state_dict(shadow, strict=False)
    other.load_state_dict(weights(model), strict=False)
    blend(plain, other, decay)
    shadow.update(weights(plain))
    blend(average, model, decay)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("blend", BLENDS)
def test_blended_state_dicts(blend: Blend, decay: float, tmp_path: Path) -> None:
    model = pruned()
    average = copy.deepcopy(model).eval()
    shadow = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        train_step(model, optimizer)
        follow(shadow, model, average, blend, decay)
    assert_nothing_is_lost(average, shadow, tmp_path)
    assert all(torch.equal(mask, bits(average)[name]) for name, mask in bits(model).items())


@pytest.mark.parametrize("blend", BLENDS)
def test_blended_while_the_pruning_goes_on(blend: Blend, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = GradualPruner(model, Magnitude(0.8), CubicSchedule(0.8, 0.2, end=9, every=3), optimizer=optimizer)
    pruner.step()
    average = copy.deepcopy(model).eval()
    shadow = weights(model)
    for _ in range(12):
        train_step(model, optimizer)
        pruner.step()
        follow(shadow, model, average, blend, 0.99)
    assert pruner.done
    assert secateur.sparsity(average).sparsity == pytest.approx(0.2, abs=0.01)  # what was pruned later fades away
    assert_nothing_is_lost(average, shadow, tmp_path)
    for name, mask in bits(average).items():
        assert not bool((bits(model)[name] & ~mask).any())
    # Whoever wants the average with the model's zeros says so.
    masks.apply(masks.match_state_dict(average, {**model.state_dict()}))
    assert secateur.sparsity(average).sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("pruned_first", [True, False])
def test_averaged_model_while_the_pruning_goes_on(pruned_first: bool, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = GradualPruner(model, Magnitude(0.8), CubicSchedule(0.8, 0.2, end=9, every=3), optimizer=optimizer)
    if pruned_first:
        pruner.step()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True)
    plain = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
    for _ in range(12):
        train_step(model, optimizer)
        pruner.step()
        average.update_parameters(model)
        plain.update_parameters(model)
    assert_nothing_is_lost(average.module, weights(plain.module), tmp_path)
    swa_utils.update_bn([torch.randn(4, 3, 6, 6)], average)
    again = swa_utils.AveragedModel(net(), use_buffers=True)
    masks.match_state_dict(again, average.state_dict()).load_state_dict(average.state_dict())
    assert all(torch.equal(p, dict(average.named_parameters())[n]) for n, p in again.named_parameters())


@pytest.mark.parametrize("through", [float, torch.Tensor.byte])
def test_an_average_kept_as_a_dict(through: Any) -> None:
    """The masks in it have become floats, or bytes that were cut off: the weights beside them say what they were."""
    model = pruned()
    shadow = {key: value.clone() for key, value in model.state_dict().items()}
    want = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        train_step(model, optimizer)
        for key, value in model.state_dict().items():
            mean = 0.999 * shadow[key] + 0.001 * value
            shadow[key] = mean.byte() if key.endswith("_mask") and through is not float else mean
            if key in want:
                want[key] = mean
    fresh = net()
    masks.match_state_dict(fresh, shadow).load_state_dict(shadow)
    resumed = pruned(0.7)
    resumed.load_state_dict(shadow)
    for other in (fresh, resumed):
        for name, p in other.named_parameters():
            assert torch.equal(p, want[name]), name
        assert all(torch.equal(mask, bits(other)[name]) for name, mask in bits(model).items())


def test_a_dict_with_blended_masks_is_noticed() -> None:
    state = pruned().state_dict()
    state["0.weight_mask"] = (state["0.weight_mask"].int() - 1).clamp(0).byte()
    with pytest.warns(UserWarning, match=MENDED):
        masks.match_state_dict(net(), state)
    with pytest.warns(UserWarning, match=MENDED):
        pruned(0.7).load_state_dict(state)


def test_a_mask_that_was_overwritten_is_noticed_before_a_step() -> None:
    model = pruned()
    want = {name: p != 0 for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model[3].weight_mask.copy_(model[3].weight_mask * 0.999)
    with pytest.warns(UserWarning, match=MENDED):
        train_step(model, optimizer)
    assert all(torch.equal(p != 0, want[name]) for name, p in model.named_parameters() if name.endswith("weight"))
    model[3].weight_mask.zero_()
    for use in (masks.apply, lambda m: secateur.prune(m, Magnitude(0.9)), nn.Module.state_dict):
        other = copy.deepcopy(model)
        with pytest.warns(UserWarning, match=MENDED):
            use(other)
        assert bool(other[3].weight.any())


def test_a_mask_that_was_overwritten_with_one_that_fits_is_taken() -> None:
    """A load_state_dict by hand, as older projects have it: weights and masks of another network."""
    model, other = pruned(0.5), pruned(0.8)
    own = model.state_dict()
    for key, value in other.state_dict().items():
        own[key].copy_(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.apply(model)
        train_step(model, torch.optim.SGD(model.parameters(), 0.1))
    assert all(torch.equal(mask, bits(model)[name]) for name, mask in bits(other).items())
    assert secateur.sparsity(model).sparsity == pytest.approx(0.8, abs=0.01)


def test_dense_weights_by_hand_and_apply() -> None:
    class Net(nn.Sequential):
        def load_state_dict(self, state_dict: Any, strict: bool = True) -> None:  # type: ignore[override]
            own = self.state_dict()
            for name, value in state_dict.items():
                own[name].copy_(value)

    model = Net(*net())
    secateur.prune(model, Magnitude(0.7))
    model.load_state_dict({key: torch.ones_like(v) for key, v in model.state_dict().items() if "mask" not in key})
    assert secateur.sparsity(model).sparsity == 0
    masks.apply(model)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.7, abs=0.01)


def test_the_weights_that_a_pruned_network_began_with() -> None:
    """Its own masks hold, although they say that weights are pruned which live in that state."""
    beginning = weights(net())
    model = pruned(0.7)
    state = {key: beginning.get(key, value) for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="not zero where its mask, which is the model's own, prunes them"):
        model.load_state_dict(state)
    assert secateur.sparsity(model).sparsity == pytest.approx(0.7, abs=0.01)


def test_layers_that_own_their_mask(tmp_path: Path) -> None:
    layer = nn.Linear(40, 30)
    secateur.prune(layer, Magnitude(0.5))
    model = nn.Sequential(secateur.nn.MaskedLinear.from_dense(layer)).train()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True)
    blended = copy.deepcopy(model)
    for _ in range(4):
        average.update_parameters(model)
        blend_values(blended, model, 0.99)
    x = torch.randn(3, 40)
    for other in (average.module, blended):
        assert other.training
        torch.testing.assert_close(other(x), model(x))
        torch.testing.assert_close(other.eval()(x), model(x))


def test_a_layer_that_owns_its_mask_on_meta() -> None:
    layer = secateur.nn.MaskedLinear(20, 10, mask=torch.rand(10, 20) > 0.5)
    empty = secateur.nn.MaskedLinear(20, 10, device="meta")
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    given = secateur.nn.MaskedLinear(20, 10, device="meta", mask=torch.rand(10, 20) > 0.5)
    given.load_state_dict(layer.state_dict(), assign=True)
    for other in (empty, given):
        assert all(torch.equal(v, layer.state_dict()[k]) for k, v in other.state_dict().items())
        torch.testing.assert_close(other(torch.ones(2, 20)), layer(torch.ones(2, 20)))


def test_swapped_in_for_a_validation_and_back() -> None:
    """As Lightning does it: parameters and buffers of the average change places with the model's."""
    model = pruned()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def swap() -> None:
        for a, b in zip(
            itertools.chain(average.module.parameters(), average.module.buffers()),
            itertools.chain(model.parameters(), model.buffers()),
            strict=True,
        ):
            kept = a.data.clone()
            a.data.copy_(b.data)
            b.data.copy_(kept)

    for _ in range(3):
        train_step(model, optimizer)
        average.update_parameters(model)
        before = weights(model)
        swap()
        model.eval()(torch.randn(2, 3, 6, 6))
        swap()
        assert all(torch.equal(p, before[name]) for name, p in model.train().named_parameters())
    assert secateur.sparsity(model).sparsity == pytest.approx(0.5, abs=0.01)


def test_one_bit_a_weight() -> None:
    model = pruned()
    held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    rows = [w.value.shape[0] for w in masks.weights.weights_of(model)]
    count = sum(w.value.numel() for w in masks.weights.weights_of(model))
    assert sum(v.nbytes for v in held) <= count / 8 + sum(rows)  # rows begin on a byte
    assert {v.dtype for v in held} == {torch.uint8}
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in net().named_buffers()]


def test_models_that_an_earlier_version_has_pickled() -> None:
    """Their masks are buffers, and a hook of another name hangs on them."""
    model = pruned()
    for _, module in masks.masked_modules(model):
        mark = masks.mark_of(module)
        assert mark is not None
        for hook in mark.hooks[:2]:
            hook.remove()
        mark.load_hook = mark.hooks[2]  # type: ignore[attr-defined]
        del mark.hooks, mark.known
        module.register_buffer("weight_mask", module.__dict__.pop("weight_mask"))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    old = torch.load(buffer, weights_only=False)
    want = weights(old)
    del model, module, mark
    assert "0.weight_mask" in dict(old.named_buffers())
    assert list(old.state_dict()) == list(pruned().state_dict())
    blend_values(old, copy.deepcopy(old), 0.999)
    assert_same_zeros(masks.apply(old), want)
    train_step(old, torch.optim.SGD(old.parameters(), 0.1))
    secateur.prune(old, Magnitude(0.8))
    assert "0.weight_mask" not in dict(old.named_buffers())
    assert list(old.state_dict()) == list(pruned().state_dict())
    secateur.strip(old)
    assert set(vars(old[3])) == set(vars(net()[3]))


def assert_same_zeros(model: nn.Module, want: dict[str, Tensor]) -> None:
    assert all(torch.equal(p == 0, want[name] == 0) for name, p in model.named_parameters())


def test_a_state_dict_that_does_not_fit() -> None:
    model = pruned()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight_mask"):
        pruned().load_state_dict({**state, "0.weight_mask": state["0.weight_mask"][:2]})
    with pytest.raises(RuntimeError, match=r"0.weight_mask must be a tensor, a packed mask, got str"):
        pruned().load_state_dict({**state, "0.weight_mask": "x"})
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.weight_mask"'):
        pruned().load_state_dict({k: v for k, v in state.items() if k != "0.weight_mask"})
    with pytest.raises(Error, match="match_state_dict: state_dict must be a mapping of names, got list"):
        masks.match_state_dict(net(), list(state))  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"'0.weight_mask' must be a packed mask"):
        masks.match_state_dict(net(), {**state, "0.weight_mask": state["0.weight_mask"].long()})
    masks.match_state_dict(net(), {5: torch.ones(1), **state})  # type: ignore[dict-item]
