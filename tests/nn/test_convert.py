"""convert: which layers it swaps, what it leaves alone, what it says."""

from __future__ import annotations

import copy
import itertools
import pickle
import time
from types import SimpleNamespace
from typing import Any

import pytest
import secateur
import torch
from secateur import Error, MeanStd
from secateur._base import timing
from secateur._base.timing import interleave
from secateur.nn import SparseConv2d, SparseLinear, ThresholdReLU
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


@pytest.fixture
def pruned() -> nn.Sequential:
    model = network().eval()
    secateur.prune(model, MeanStd(sparsity=0.9))
    return model


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "medians", lambda *_, **__: [1e-3, 2e-3])


@pytest.fixture
def dense_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "medians", lambda *_, **__: [3e-3, 2e-3])


X = torch.randn(2, 3, 16, 16)


def test_the_copy_computes_the_same_and_the_model_is_left_alone(pruned: nn.Sequential) -> None:
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    expected = pruned(X)
    fast = secateur.convert(pruned, X)
    torch.testing.assert_close(fast(X), expected, rtol=1e-4, atol=1e-5)
    assert type(fast) is nn.Sequential
    assert list(pruned.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    assert not any(hook for module in pruned.modules() for hook in module._forward_hooks.values())
    fast_tensors = {tensor.data_ptr() for tensor in fast.state_dict().values() if tensor.numel()}
    assert not fast_tensors & {tensor.data_ptr() for tensor in pruned.state_dict().values() if tensor.numel()}


@pytest.mark.usefixtures("sparse_wins")
def test_faster_layers_become_sparse(pruned: nn.Sequential) -> None:
    fast = secateur.convert(pruned, X)
    assert [type(layer) for layer in fast] == [
        SparseConv2d, nn.BatchNorm2d, nn.ReLU, SparseConv2d, nn.ReLU, nn.Flatten, SparseLinear,
    ]  # fmt: skip
    report: Any = fast.report
    assert [row["kernel"] for row in report] == ["sparse"] * 3
    assert report["0"]["why"] == "2.00x as fast as dense"
    assert report["3"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert report["6"]["bytes_packed"] < report["6"]["bytes_dense"] / 5
    assert "2.00x as fast" in str(report)


@pytest.mark.usefixtures("dense_wins")
def test_slower_layers_stay_dense_and_plain(pruned: nn.Sequential) -> None:
    fast = secateur.convert(pruned, X)
    assert [type(layer) for layer in fast] == [type(layer) for layer in network()]
    assert not any("mask" in name for name in fast.state_dict())
    assert {row["why"] for row in fast.report} == {"sparse would take 1.50x as long"}  # type: ignore[union-attr]
    torch.testing.assert_close(fast(X), pruned(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("fixture", "kernel"), [("sparse_wins", "sparse"), ("dense_wins", "dense")])
def test_without_an_example_layers_decide_at_their_first_call(
    pruned: nn.Sequential, fixture: str, kernel: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(fixture)
    fast = secateur.convert(pruned)
    report: Any = fast.report
    assert {row["kernel"] for row in report} == {"undecided"}
    torch.testing.assert_close(fast(X), pruned(X), rtol=1e-4, atol=1e-5)
    assert {row["kernel"] for row in report} == {kernel}
    assert "first call" in report["0"]["why"]
    torch.testing.assert_close(fast(X), pruned(X), rtol=1e-4, atol=1e-5)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(other(X), pruned(X), rtol=1e-4, atol=1e-5)


def test_what_stays_as_it_is_says_why() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.full, self.own, self.double = nn.Linear(4, 4), Own(4, 4), nn.Linear(4, 4).double()
            self.conv1d, self.rnn = nn.Conv1d(4, 4, 1), nn.LSTM(4, 4)

    model = Several()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.flatten()[::2] = 0
        model.full.weight.fill_(1)
    why = {row["layer"]: row["why"] for row in secateur.convert(model).report}  # type: ignore[union-attr]
    assert why == {
        "full": "no zeros",
        "own": "Own has no sparse kernel",
        "double": "sparse kernels run float32 on the CPU, this is float64 on cpu",
        "conv1d": "Conv1d has no sparse kernel",
        "rnn": "LSTM has no sparse kernel",
    }


@pytest.mark.usefixtures("sparse_wins")
def test_zeros_from_torchs_own_pruning_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    torch_prune.l1_unstructured(model[0], "weight", 0.9)
    torch_prune.l1_unstructured(model[2], "weight", 0.5)
    x = torch.randn(2, 3, 8, 8)
    fast = secateur.convert(model, x)
    assert [type(layer) for layer in fast] == [SparseConv2d, nn.Flatten, SparseLinear]
    torch.testing.assert_close(fast(x), model(x))


def test_torchs_own_pruning_after_a_step_is_taken_as_the_next_forward_would() -> None:
    """Its hook computes the weight; until the next forward the attribute holds the one from before the step."""
    model = nn.Sequential(nn.Linear(64, 32))
    torch_prune.random_unstructured(model[0], "weight", 0.9)
    with torch.no_grad():
        model[0].weight_orig.mul_(3.0)
    before = model[0].weight.clone()
    fast = secateur.convert(model)
    assert torch.equal(model[0].weight, before)
    x = torch.randn(4, 64)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("sparse_wins")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated")
@pytest.mark.parametrize("example", [X, None])
def test_layers_that_compute_more_than_their_class_stay(example: Tensor | None) -> None:
    """Hooks (spectral_norm of old is one) and a forward of the object's own would be lost with the layer."""
    model = network().eval()
    secateur.prune(model, MeanStd(sparsity=0.9))
    nn.utils.spectral_norm(model[0])
    model[3].register_forward_hook(lambda module, inputs, output: 2 * output)
    plain = model[6].forward
    model[6].forward = lambda x: plain(x) + 1
    with torch.no_grad():  # spectral_norm's weight is no leaf, and torch refuses to copy those that carry a gradient
        expected = model(X)
    fast = secateur.convert(model, example)
    torch.testing.assert_close(fast(X), expected, rtol=1e-4, atol=1e-5)
    hooks = "it has forward hooks, and another layer in its place would lose them"
    assert [row["why"] for row in fast.report.rows] == [
        hooks, hooks, "its forward was replaced, and another layer in its place would lose that"
    ]  # fmt: skip


@pytest.mark.usefixtures("dense_wins")
def test_a_layer_that_stays_dense_keeps_what_is_frozen(pruned: nn.Sequential) -> None:
    pruned[0].weight.requires_grad_(False)
    pruned[6].bias.requires_grad_(False)
    fast = secateur.convert(pruned, X)
    assert {name for name, parameter in fast.named_parameters() if not parameter.requires_grad} == {
        "0.weight", "6.bias"
    }  # fmt: skip


@pytest.mark.usefixtures("sparse_wins")
def test_a_shared_layer_stays_shared_and_a_bare_layer_will_do() -> None:
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight[::2] = 0
    model = nn.Sequential(layer, nn.ReLU(), layer)
    fast = secateur.convert(model, torch.randn(2, 6))
    assert fast[0] is fast[2]
    assert len(fast.report.rows) == 1  # type: ignore[union-attr]
    assert isinstance(secateur.convert(layer, torch.randn(2, 6)), SparseLinear)
    twice: Any = secateur.convert(fast, torch.randn(2, 6))
    assert twice.report[0]["why"] == "already converted"


def test_modes_are_kept(pruned: nn.Sequential) -> None:
    pruned.train()
    pruned[1].eval()
    fast = secateur.convert(pruned, X)
    assert [m.training for m in pruned.modules()] == [m.training for m in fast.modules()]
    assert int(pruned[1].num_batches_tracked) == 0


@pytest.mark.usefixtures("sparse_wins")
def test_a_layer_that_disagrees_stays_dense(pruned: nn.Sequential) -> None:
    report: Any = secateur.convert(pruned, torch.full_like(X, float("inf"))).report
    assert report["0"]["kernel"] == "dense"
    assert "differ" in report["0"]["why"]


def test_bad_input_says_what_is_wrong(pruned: nn.Sequential) -> None:
    with pytest.raises(Error, match=r"convert: model must be a torch\.nn\.Module, got str"):
        secateur.convert("model")  # type: ignore[type-var]
    with pytest.raises(Error, match="convert: example_input must be what the model takes: RuntimeError"):
        secateur.convert(pruned, torch.randn(2, 5, 16, 16))
    assert not any(hook for module in pruned.modules() for hook in module._forward_hooks.values())


@pytest.mark.usefixtures("sparse_wins")
def test_saves_and_loads_packed(pruned: nn.Sequential, tmp_path: Any) -> None:
    fast = secateur.convert(pruned, X)
    secateur.save(fast, tmp_path / "fast.safetensors")
    other = secateur.convert(pruned, X)
    with torch.no_grad():
        other[6].weight_values.zero_()
    secateur.load(tmp_path / "fast.safetensors", other)
    assert torch.equal(other(X), fast(X))


def test_interleave_takes_turns_and_counts() -> None:
    calls: list[str] = []
    times = interleave([lambda: calls.append("a"), lambda: calls.append("b")], rounds=4)
    assert [len(each) for each in times] == [4, 4]
    assert all(t > 0 for each in times for t in each)
    assert {"a", "b"} == set(calls)


def test_interleave_stops_where_it_is_clear_who_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds

        return run

    def rounds(*seconds: float, **more: Any) -> list[int]:
        return [len(each) for each in interleave([takes(s) for s in seconds], rounds=3, **more)]

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    assert rounds(0.01, 0.12, until_clear=True) == [1, 1]
    assert rounds(0.12, 0.12, until_clear=True) == [3, 3]
    assert rounds(0.05, 0.12, until_clear=True) == [3, 3]  # not three times as long
    assert rounds(0.01, 0.09, until_clear=True) == [3, 3]  # over in a moment: worth a second measurement
    assert rounds(0.01, 0.12) == [3, 3]
    assert interleave([takes(0.5), takes(0.25)], rounds=3) == [[0.5] * 3, [0.25] * 3]


def test_interleave_prepares_every_call_outside_of_the_clock() -> None:
    said: list[str] = []
    slow = lambda: (time.sleep(0.02), said.append("ready"))  # noqa: E731
    calls = [lambda: said.append("a"), lambda: said.append("b")]
    (first, second) = interleave(calls, rounds=3, prepare=[slow, None])
    assert max(first) < 0.01
    assert said.count("ready") == said.count("a") == 5  # two to warm up; never twice a turn
    assert all(after == "a" for before, after in itertools.pairwise(said) if before == "ready")
    assert said.count("b") > 5
    assert len(second) == 3


def test_interleave_gives_slow_ones_fewer_turns_and_everybody_the_least() -> None:
    calls = [lambda: time.sleep(0.005), lambda: None]
    assert [len(each) for each in interleave(calls, rounds=9, slow_s=0.004)] == [3, 9]
    assert [len(each) for each in interleave(calls, rounds=9, budget_s=0.0, least=5)] == [5, 5]


@pytest.mark.usefixtures("sparse_wins")
def test_tied_weights_stay_tied() -> None:
    embedding, head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
    head.weight = embedding.weight
    with torch.no_grad():
        head.weight[::2] = 0
    fast = secateur.convert(nn.Sequential(embedding, head), torch.tensor([1, 2]))
    assert fast[0].weight is fast[1].weight
    assert "tied to another layer's" in fast.report[0]["why"]  # type: ignore[index]


@pytest.mark.usefixtures("sparse_wins")
def test_a_layer_that_the_example_never_reaches_stays_as_it_is() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
            with torch.no_grad():
                self.used.weight[0] = self.unused.weight[0] = 0

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    fast = secateur.convert(Unused(), torch.randn(2, 4))
    assert [type(layer) for layer in fast.children()] == [SparseLinear, nn.Linear]
    assert fast.report["unused"]["why"] == "the example never called it"  # type: ignore[index]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.conv(x), self.again(x)
        return torch.relu(once) + torch.relu(twice) + twice  # twice is read again: it may not be written over


@pytest.fixture
def written_over(monkeypatch: pytest.MonkeyPatch) -> list[ThresholdReLU]:
    """The thresholds that wrote over their input though ``inplace`` is False, call by call."""
    seen: list[ThresholdReLU] = []
    over = ThresholdReLU.over

    def spy(self: ThresholdReLU, x: Tensor) -> Tensor:
        seen.append(self)
        return over(self, x)

    monkeypatch.setattr(ThresholdReLU, "over", spy)
    return seen


def test_thresholds_write_over_what_only_they_read(written_over: list[ThresholdReLU]) -> None:
    thin = secateur.prune_activations(Functional(), [X], MeanStd(k=-0.5), progress=False)
    fast = secateur.convert(thin, X)
    thresholds = [m for m in fast.modules() if isinstance(m, ThresholdReLU)]
    with torch.no_grad():
        assert torch.equal(fast(X), thin(X))
    assert written_over == thresholds[:1]

    written_over.clear()
    chain = nn.Sequential(ThresholdReLU(0.1), nn.Conv2d(3, 4, 3), ThresholdReLU(0.1), ThresholdReLU(0.2))
    fast = secateur.convert(chain, X)
    with torch.no_grad():
        assert torch.equal(fast(X), chain(X))
    assert written_over == [fast[2]]
    x = X.clone().requires_grad_()
    a = torch.autograd.grad(fast(x).sum(), x)[0]
    b = torch.autograd.grad(chain(x).sum(), x)[0]
    torch.testing.assert_close(a, b)
    assert not any(m.inplace for m in [*chain, *fast] if isinstance(m, ThresholdReLU))


@torch.no_grad()
def test_nobody_sees_an_output_that_was_written_over(written_over: list[ThresholdReLU]) -> None:
    """Hooks at any time, one threshold in several places, layers called one by one, a hook for every module."""
    act = ThresholdReLU(0.1)
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act).eval()
    fast = secateur.convert(chain, X)
    want = [chain[0](X), chain(X)]
    taps = [X]
    for layer in fast:
        x = layer(taps[-1])
        taps += [x]
    del taps[0]
    torch.testing.assert_close(taps[0], want[0])

    kept: list[Tensor] = []
    for target, index in ((fast[0], 0), (fast[1], 0)):
        handle = target.register_forward_hook(lambda m, args, out: kept.append(out if m is fast[0] else args[0]))
        torch.testing.assert_close(fast(X), want[1])
        torch.testing.assert_close(kept[index], want[0])
        kept.clear()
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: kept.append(out))
    fast(X)
    handle.remove()
    torch.testing.assert_close(kept[0], want[0])
    written_over.clear()
    fast(X)
    assert len(written_over) == 2
    again = pickle.loads(pickle.dumps(copy.deepcopy(fast)))
    torch.testing.assert_close(again(X), want[1])
    assert repr(fast).startswith("Sequential")
