"""What quantize and prepare_qat promise about the model that is given and the one that comes back."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from secateur import Error
from secateur.nn import QATConv2d, QuantizedConv2d
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:prune_activations")
X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


class InPlace(nn.Module):
    """A convolution, something that writes, and a reader of what was written."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.relu, self.write = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.ReLU(inplace=True), write

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.write(self, y)


def nobody_takes(m: InPlace, y: Tensor) -> Tensor:
    m.relu(y)
    return m.b(y)


def functional(m: InPlace, y: Tensor) -> Tensor:
    F.relu_(y)
    y.clamp_(max=0.3)
    return m.b(y) + y[:, :4, 1:-1, 1:-1]


def shortcut(m: InPlace, y: Tensor) -> Tensor:
    return m.b(m.relu(y)) + y[:, :4, 1:-1, 1:-1]


def half(m: InPlace, y: Tensor) -> Tensor:
    first, _ = y.chunk(2, 1)
    m.relu(first)
    return m.b(y)


def item(m: InPlace, y: Tensor) -> Tensor:
    y[:, 2:5] = 0.25
    return m.b(y)


def flat(m: InPlace, y: Tensor) -> Tensor:
    y.view(-1).mul_(-1)
    return m.b(m.relu(y))


def kept(m: InPlace, y: Tensor) -> tuple[Tensor, Tensor]:
    return y, m.b(m.relu(y))


@pytest.mark.parametrize("write", [nobody_takes, functional, shortcut, half, item, flat, kept])
@torch.no_grad()
def test_in_place_as_torch_has_it(write: Any) -> None:
    model = InPlace(write).eval()
    for other in (X, torch.cat([X, -X])[:, :, :9]):
        wanted = torch.utils._pytree.tree_leaves(model(other))
        for make in (secateur.quantize, secateur.prepare_qat):
            made = make(model, [X, -X], progress=False).eval()
            assert made.report.total["form"] == "int8: 2 of 2"
            got = torch.utils._pytree.tree_leaves(made(other.clone()))
            assert [off(a, b) < 0.06 for a, b in zip(got, wanted, strict=True)] == [True] * len(wanted)


def test_training_reaches_layers_before_a_write() -> None:
    student = secateur.prepare_qat(InPlace(item).train(), [X], progress=False)
    student(X).square().sum().backward()
    assert all(p.grad is not None for p in student.parameters())


class Stream(nn.Module):
    """Counts its calls in each of the ways that people have, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.register_buffer("mean", torch.zeros(4))
        self.calls, self.log, self.last = 0, [], None  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        self.calls += 1
        self.log.append(self.calls)
        self.mean.mul_(0.5).add_(y.mean((0, 2, 3)).detach(), alpha=0.5)
        self.last = y
        return y


@pytest.mark.parametrize("inside", [False, True])
@torch.no_grad()
def test_state_goes_on_from_what_the_model_had(inside: bool) -> None:
    stream = Stream().eval()
    model = nn.Sequential(stream, nn.Conv2d(4, 2, 1)).eval() if inside else stream
    model(X)
    version, seed = stream.mean._version, torch.random.get_rng_state()
    for make in (
        lambda: secateur.quantize(model, [X, X], progress=False),
        lambda: secateur.prepare_qat(model, [X, X], progress=False).eval(),
        lambda: secateur.prune_activations(model, [X, X], secateur.MeanStd(k=100.0), progress=False),
        lambda: secateur.convert(model, X),
    ):
        made = make()
        assert (stream.calls, stream.log, stream.mean._version) == (1, [1], version)
        assert torch.equal(torch.random.get_rng_state(), seed)
        theirs = copy.deepcopy(model)
        for n in (2, 3):
            x = X.roll(n, 0)
            assert off(made(x), theirs(x)) < 0.06
            mine, own = (m[0] if inside else m for m in (made, theirs))
            assert (mine.calls, mine.log) == (n, list(range(1, n + 1)))
            assert off(mine.last, own.last) < 0.06
            assert off(mine.mean, own.mean) < 0.06


class Kept(nn.Module):
    """Attributes and methods of several kinds, on the model and on its parts."""

    kind = "classifier"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = Head()
        self.names, self.stride, self.grid = ["cat", "dog"], torch.tensor([8.0, 16.0]), {"a": [torch.ones(2)]}
        self.parts = [(self.stem, self.head)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))

    def name_of(self, x: Tensor) -> list[str]:
        return [self.names[i] for i in self(x).argmax(1).tolist()]

    @property
    def classes(self) -> int:
        return len(self.names)

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.note, self.act = nn.Linear(8, 2), "two classes", nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x).mean((2, 3)))


@torch.no_grad()
def test_attributes_and_methods_stay() -> None:
    class Local(Kept):
        pass

    for model in (Kept().eval(), Local().eval()):
        for made in (
            secateur.quantize(model, [X], progress=False),
            secateur.prepare_qat(model, [X], progress=False),
            secateur.prune_activations(model, [X], secateur.MeanStd(k=100.0), progress=False),
            secateur.convert(model, X),
        ):
            twins = [made, copy.deepcopy(made)]
            if type(model) is Kept:
                twins.append(pickle.loads(pickle.dumps(made)))
            for each in twins:
                assert (each.names, each.grid["a"][0].tolist(), each.kind) == (["cat", "dog"], [1, 1], "classifier")
                assert torch.equal(each.stride, model.stride)
                assert each.stride is not model.stride
                assert each.classes == 2
                assert each.name_of(X) == [each.names[i] for i in each(X).argmax(1).tolist()]
                assert each.head.note == "two classes"
                assert off(each.features(X), model.features(X)) < 0.06
                assert each.parts[0][0] is each.stem
                assert each.parts[0][1] is each.head
    shell = pickle.loads(pickle.dumps(secateur.quantize(Local().eval(), [X], progress=False)))  # its class is nowhere
    assert shell.names == ["cat", "dog"]


def test_hooks_fire_on_the_result_and_in_no_trial() -> None:
    seen: list[tuple[str, Tensor]] = []
    model = Kept().eval()
    for name in ("", "stem", "stem.0", "stem.2", "head"):
        part = model.get_submodule(name)
        part.register_forward_hook(lambda m, args, out, name=name: seen.append((name, out.detach().clone())))
    with torch.no_grad():
        model(X)
    wanted = list(seen)
    for make in (
        lambda: secateur.quantize(model, [X], progress=False),
        lambda: secateur.prepare_qat(model, [X], progress=False).eval(),
        lambda: secateur.prune_activations(model, [X], secateur.MeanStd(k=100.0), progress=False),
        lambda: secateur.convert(model, X),
    ):
        seen.clear()
        made = make()
        assert not seen
        with torch.no_grad():
            made(X)
        assert [name for name, _ in seen] == [name for name, _ in wanted]
        assert all(off(a, b) < 0.06 for (_, a), (_, b) in zip(seen, wanted, strict=True))


class TiedByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.fc = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.l(x) * self.l.weight.abs().mean() + self.fc(x)
        return F.linear(z, self.fc.weight.t())


class TiedByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(x)))


def test_ties_hold() -> None:
    x = torch.randn(16, 8)
    model = TiedByFunction().eval()
    with torch.no_grad():
        model.l.weight[::2] = 0
        model.fc.weight[::2] = 0
        wanted = model(x)
        q = secateur.quantize(nn.Sequential(nn.Linear(8, 8), model).eval(), [x], progress=False)
        assert [row["why"] for row in q.report.rows][1:] == ["its weights are read elsewhere in the forward too"] * 2
        fast = secateur.convert(model, x)
        torch.testing.assert_close(fast(x), wanted)
    student = secateur.prepare_qat(TiedByAttribute(), [x], progress=False)
    assert student.a.weight is student.b.weight
    student(x).sum().backward()
    with torch.no_grad():
        student.a.weight.sub_(student.a.weight.grad * 0.1)
    q = secateur.quantize(student)
    assert torch.equal(q.a.weight_int8, q.b.weight_int8)


class Frozen(nn.Module):
    """train() is overridden, returns nothing, and changes which parameters learn; its BatchNorm is folded away."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.relu(self.bn(self.stem(x))) - 0.1)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        nn.Module.train(self, mode)
        self.bn.eval()
        self.stem.weight.requires_grad = not mode


def test_train_that_returns_nothing() -> None:
    model = Frozen()
    model.train()
    flags = {name: m.training for name, m in model.named_modules()}
    wants = [p.requires_grad for p in model.parameters()]
    thin = secateur.prune_activations(model, [X], secateur.MeanStd(k=100.0), progress=False)
    fast = secateur.convert(model, X)
    for made in (thin, fast):
        assert {n: m.training for n, m in made.named_modules() if n in flags} == flags
        assert [p.requires_grad for p in made.parameters()] == wants
        made.eval()
        made.train()
        assert not made.bn.training
        assert not made.stem.weight.requires_grad
    secateur.quantize(model, [X], progress=False, evaluate=lambda net: 0.5)
    assert secateur.prepare_qat(model, [X], progress=False).training
    assert [p.requires_grad for p in model.parameters()] == wants
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert secateur.DistillationLoss(nn.Sequential(model)).teacher is not model


class Plain(nn.Module):
    """Modules in Python's own containers, some of them registered nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.steps = [(self.conv, self.act), (nn.Conv2d(4, 4, 3), nn.ReLU())]
        self.table = {"head": [nn.Conv2d(4, 2, 1)]}

    def forward(self, x: Tensor) -> Tensor:
        for conv, act in self.steps:
            x = act(conv(x))
        return self.table["head"][0](x)


@torch.no_grad()
def test_modules_in_plain_containers() -> None:
    model = Plain().eval()
    for conv in (model.conv, model.steps[1][0]):
        conv.weight[::2] = 0
    wanted = model(X)
    q = secateur.quantize(model, [X], progress=False)
    assert q.report.total["form"] == "int8: 3 of 3"
    assert isinstance(q.steps[1][0], QuantizedConv2d)
    assert q.steps[0][0] is q.conv
    assert off(q(X), wanted) < 0.06
    student = secateur.prepare_qat(model, [X], progress=False)
    assert isinstance(student.table["head"][0], QATConv2d)
    fast = secateur.convert(model, X)
    assert [row["layer"] for row in fast.report.rows] == ["conv", "steps.1.0", "table.head.0"]
    torch.testing.assert_close(fast(X), wanted, rtol=1e-4, atol=1e-4)
    thin = secateur.prune_activations(model, [X], secateur.MeanStd(k=0.0), progress=False)
    assert [row["layer"] for row in thin.report.rows] == ["act", "steps.1.1"]
    assert thin.steps[0][1] is thin.act
    assert isinstance(thin.steps[1][1], secateur.nn.ThresholdReLU)


class Taps(nn.Module):
    """Runs a Sequential one by one, and looks between a convolution and its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
        self.layers[1].running_mean.fill_(0.3)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        if bool(x.isfinite().all()):  # torch.fx cannot trace this
            for layer in self.layers:
                x = layer(x)
                taps.append(x.clone())
        return taps


@torch.no_grad()
def test_what_is_between_two_layers_stays_visible() -> None:
    model = Taps().eval()
    for make in (secateur.quantize, secateur.prepare_qat):
        made = make(model, [X], progress=False).eval()
        assert max(off(a, b) for a, b in zip(made(X), model(X), strict=True)) < 0.06


class Clamped(nn.Module):
    def __init__(self, data: bool) -> None:
        super().__init__()
        self.fc, self.out, self.data = nn.Linear(8, 8), nn.Linear(8, 4), data

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            (self.fc.weight.data if self.data else self.fc.weight).clamp_(0, 0.1)
        return self.out(self.fc(x))


@pytest.mark.parametrize("data", [False, True])
@torch.no_grad()
def test_a_forward_that_writes_its_weights(data: bool) -> None:
    x, model = torch.randn(6, 8), Clamped(data).eval()
    before = model.fc.weight.clone()
    q = secateur.quantize(model, [x], progress=False)
    fast = secateur.convert(model, x)
    assert torch.equal(model.fc.weight, before)
    assert torch.equal(q.fc.weight, before)
    wanted = copy.deepcopy(model)(x)
    assert off(q(x), wanted) < 0.06
    torch.testing.assert_close(fast(x), wanted)


def test_wrappers_and_what_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert type(secateur.quantize(wrapped, [X], progress=False)[0]) is QuantizedConv2d
        secateur.convert(wrapped, X)
        secateur.prune_activations(wrapped, [X], secateur.MeanStd(k=0.0), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, not gone
        scripted = torch.jit.script(model)
    for call, name in (
        (lambda m: secateur.quantize(m, [X], progress=False), "quantize"),
        (lambda m: secateur.prepare_qat(m, [X], progress=False), "prepare_qat"),
        (lambda m: secateur.prune_activations(m, [X], secateur.MeanStd(k=0.0), progress=False), "prune_activations"),
        (lambda m: secateur.convert(m, X), "convert"),
    ):
        with pytest.raises(Error, match=f"{name}: model must be the module itself, got what TorchScript made of it"):
            call(scripted)
    sparse = copy.deepcopy(model)
    sparse[0].weight = nn.Parameter(sparse[0].weight.detach().to_sparse())
    with pytest.raises(Error, match=r"quantize: model must have dense parameters .* 0\.weight is sparse_coo"):
        secateur.quantize(sparse, [X], progress=False)
    with pytest.raises(Error, match=r"0\.weight is float8_e4m3fn"):
        secateur.quantize(copy.deepcopy(model).to(torch.float8_e4m3fn), [X], progress=False)
    with pytest.raises(Error, match=r"prune_activations: model must have values, but 0\.weight is on the meta device"):
        secateur.prune_activations(copy.deepcopy(model).to("meta"), [X], secateur.MeanStd(k=0.0), progress=False)


class InAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            self.last = self.a(x)
        return self.b(self.last.float())


def test_autocast_is_followed_and_sums_stay_exact() -> None:
    model = InAutocast().eval()
    q = secateur.quantize(model, [X], progress=False)
    assert type(q.a) is QuantizedConv2d
    q(X)
    assert q.last.dtype == torch.bfloat16
    assert torch.equal(q.last, q.a(X).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert q.a(X.double()).dtype == model.double().a(X.double()).dtype


class Marked(nn.Module):
    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class NotAllOfItRuns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.used, self.unused = nn.Conv2d(3, 4, 3), Marked("used"), Marked("unused")
        self.head = nn.Conv2d(4, 4, 1)
        self.heads = [nn.Conv2d(4, 4, 1)]

    def forward(self, x: Tensor, head: str = "") -> Tensor:
        y = self.used(self.conv(x))
        if head:
            return self.heads[0](y) if head == "listed" else self.head(y)
        return y


@pytest.mark.parametrize("call", [secateur.quantize, secateur.prepare_qat])
def test_modules_without_layers_stay(call: Any) -> None:
    model = NotAllOfItRuns().eval()
    q = call(model, [X], progress=False)
    assert (q.used.mark, q.unused.mark) == ("used", "unused")
    with pytest.warns(UserWarning, match="NotAllOfItRuns is called with head, which it was not seen with"):
        torch.testing.assert_close(q(X, "listed"), model(X, "listed"), atol=0.05, rtol=0)
    with pytest.raises(Error, match=r"NotAllOfItRuns was seen without head, and cannot take it now: .*'head'"):
        q(X, "registered")


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.unused = nn.Conv2d(4, 4, 1), Marked("unused")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(self.block(x)))


@pytest.mark.parametrize("call", [secateur.quantize, secateur.prepare_qat])
def test_hooks_registered_afterwards_fire_or_are_refused(call: Any) -> None:
    q = call(Shared().eval(), [X], progress=False)
    for net in (q, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), secateur.compile(q, X, budget=0.05)):
        seen: list[str] = []
        for path in ("block", "block.1"):
            for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
                with pytest.raises(Error, match=f"quantize: a hook of {path} would never be called"):
                    getattr(net.get_submodule(path), register)(lambda *_: None)
        for path in ("", "block.0", "block.2", "conv", "unused"):
            net.get_submodule(path).register_forward_hook(lambda *_, path=path, seen=seen: seen.append(path))
        with torch.no_grad():
            net(X)
        assert seen == ["block.0", "block.2", "conv", "conv", ""]


class PartlyFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.body(x)
        return self.head(y)


def test_what_runs_under_no_grad_is_not_trained() -> None:
    q = secateur.prepare_qat(PartlyFrozen(), [X], progress=False)
    q.train()(X).sum().backward()
    assert q.body.weight.grad is None
    assert q.head.weight.grad is not None
