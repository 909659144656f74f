"""docs/contract.md, for compile: what others see of the model is on the result, however it is called."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import secateur
import torch
import torch.nn.functional as F
from compiling import compiled
from contract import X, conv, near
from secateur import Error
from torch import Tensor, nn

# ---- what others see ----


def test_hooks_fire_as_in_torch() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Sequential(conv(4, 4), nn.ReLU(inplace=True)), conv(4, 2)).eval()
    fired: list[tuple[str, Tensor]] = []
    model[2][0].register_forward_hook(lambda m, a, out: fired.append(("before", out.clone())))
    model[3].register_forward_pre_hook(lambda m, a: (a[0] * 2,))
    fast = compiled(model, X)
    assert not fired
    with torch.no_grad():
        want = model(X)
        seen, fired[:] = fired[0][1], []
        near(fast(X), want)
        assert [name for name, _ in fired] == ["before"]
        near(fired[0][1], seen)
        fired.clear()
        known = {m: name for name, m in fast.named_modules()}
        handle = fast[0].register_forward_hook(lambda m, a, out: fired.append((known[m], out.clone())))
        for x in (X, torch.rand(1, 3, 9, 9)):
            fired.clear()
            near(fast(x), model(x))
            assert [name for name, _ in fired] == ["0", "before", "before"]  # ours, ours, and the model's own
            near(fired[0][1], model[0](x))
        handle.remove()
        fired.clear()
        near(fast(X), want)
        assert [name for name, _ in fired] == ["before"]
        fast[0].register_forward_hook(lambda m, a, out: out * 0)
        near(fast(X), model[3](model[2](model[1](0 * model[0](X)))))


def test_what_a_hook_keeps_is_overwritten_as_in_torch() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(inplace=True), conv(4, 4), nn.ReLU(inplace=True), conv(4, 2)).eval()
    kept: list[Tensor] = []
    model[0].register_forward_hook(lambda m, a, out: kept.append(out))
    model[4].register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    fast = compiled(model, X)
    with torch.no_grad():
        for x in (X, torch.randn(1, 3, 9, 9)):
            kept.clear()
            want = model(x)
            theirs = list(kept)
            kept.clear()
            near(fast(x), want)
            for a, b in zip(kept, theirs, strict=True):
                near(a, b)


def test_hooks_of_what_nobody_reads() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 4), nn.Identity(), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.c(self.b(y))
            return y

    model = Side().eval()
    fired: list[str] = []
    for name in "bc":
        model.get_submodule(name).register_forward_hook(lambda *a, name=name: fired.append(name))
    fast = compiled(model, X)
    fast(X)
    assert fired == ["b", "c"]


def test_attributes_and_methods() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.names, self.stride = conv(3, 4), ["a", "b"], 8
            self.anchors, self.scale = torch.ones(3), 2.0

        def classes(self) -> int:
            return len(self.names)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale

    model = Named().eval()
    fast = compiled(model, X)
    assert (fast.names, fast.stride, fast.classes()) == (["a", "b"], 8, 2)
    assert torch.equal(fast.anchors, torch.ones(3))
    assert not hasattr(fast, "absent")
    fast.scale = model.scale = 3.0
    fast.more = 1
    with torch.no_grad():
        near(fast(X), model(X))
    assert copy.deepcopy(fast).names == ["a", "b"]
    assert copy.deepcopy(fast).more == 1
    near(copy.copy(fast)(X), fast(X))


def test_wrappers_and_what_overrides() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(3, 4), nn.BatchNorm2d(4)

        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)
            self.bn.eval()
            for p in self.conv.parameters():
                p.requires_grad = False

        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x + 1)

        def load_state_dict(self, state_dict: Any, strict: bool = True) -> None:  # type: ignore[override]
            super().load_state_dict(state_dict, strict)

        def __getattr__(self, name: str) -> Any:
            if name == "extra":
                return 7
            return super().__getattr__(name)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    model = Odd()
    flags = [p.requires_grad for p in model.parameters()]
    for given in (
        model,
        nn.Sequential(model, conv(4, 2)),
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
    ):
        fast = compiled(given, X)
        plain = copy.deepcopy(given if isinstance(given, nn.Sequential) else model)
        plain.eval()
        with torch.no_grad():
            near(fast(X), plain(X))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert compiled(model, X).extra == 7
    fast = compiled(model, X)
    new = Odd().state_dict()
    fast.load_state_dict(new)
    model.load_state_dict(new)
    model.eval()
    with torch.no_grad():
        near(fast(X), model(X))


def test_tied_by_function() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.conv = nn.Linear(12, 12), conv(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * self.conv.weight.abs().mean()
            return F.linear(self.fc(y), self.fc.weight.t()) * self.fc.bias

    model = Tied().eval()
    secateur.prune(model, secateur.Magnitude(0.5))
    with torch.no_grad():
        near(compiled(model, X)(X), model(X))


# ---- other ways to call ----


def test_parameters_of_a_call() -> None:
    model, other = (nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval() for _ in range(2))
    fast = compiled(model, X)
    theirs = dict(other.named_parameters())
    with torch.no_grad():
        near(torch.func.functional_call(fast, theirs, (X,)), other(X))
        near(fast(X), model(X))
    assert any("other parameters than were compiled" in note for note in fast.report.notes)
    loss = torch.func.functional_call(fast, theirs, (X,)).sum()
    loss.backward()
    assert other[0].weight.grad is not None
    fast[2] = nn.Identity()
    with torch.no_grad():
        near(fast(X), model[:2](X))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its decompositions
def test_derivatives_are_refused() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU()).eval()
    fast = compiled(model, X)
    for call in (
        lambda: torch.func.jvp(fast, (X,), (X,)), lambda: torch.func.jacfwd(fast)(X),
        lambda: torch.func.grad(lambda x: fast(x).sum())(X), lambda: fast(X.clone().requires_grad_()),
    ):  # fmt: skip
        with pytest.raises(Error, match="compile: "):
            call()
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(Error, match="forward-mode"):
            fast(torch.autograd.forward_ad.make_dual(X, X))
        with torch.no_grad():
            near(fast(X), model(X))


def test_a_part_of_a_larger_model_is_loaded_whole() -> None:
    a, b = (nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval() for _ in range(2))
    fast = compiled(a, X)
    outer = nn.Sequential(fast)
    amid = fast.get_submodule("2").register_load_state_dict_pre_hook(lambda *_: fast(X))
    with torch.no_grad():
        outer.load_state_dict({"0." + k: v for k, v in b.state_dict().items()})
        amid.remove()
        near(outer(X), b(X))


def test_a_head_is_trained_on_it() -> None:
    backbone = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.warns(UserWarning, match="stays in evaluation mode"):
        net = nn.Sequential(compiled(backbone, X), nn.Flatten(), nn.Linear(4 * 144, 2)).train()
    net(X).sum().backward()
    assert net[2].weight.grad is not None
    assert net[0].training is False
    assert net[2].training is True


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_clear_errors() -> None:
    sparse = nn.Linear(4, 4)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    with pytest.raises(Error, match="compile: parameters must be dense tensors, but weight is sparse_coo"):
        compiled(sparse, torch.rand(1, 4))
    fast = compiled(nn.Sequential(conv(3, 4)), X)
    with pytest.raises(Error, match="compile: inputs must be plain tensors"):
        fast(torch.nested.nested_tensor([X[0]]))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = conv(3, 4), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out = y if self.last is None else y + self.last.expand_as(y)
        self.last = y
        return out


def test_refresh_in_a_state_that_the_example_does_not_fit() -> None:
    model = Remembers().eval()
    fast = compiled(model, X)
    four = torch.rand(4, 3, 12, 12)
    with torch.no_grad():
        for _ in range(2):
            fast.source.last = model.last = None
            near(fast(four), model(four))
            fast.refresh()  # the example has two images: the state would be one of four
            near(fast(four), model(four))


class ReadAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.last = conv(3, 4), nn.ReLU(inplace=True), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.relu(y)) + y


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_that_changes_what_is_written(register: str) -> None:
    model = ReadAgain().eval()
    change = (lambda m, args: (args[0] + 0.25,)) if "pre" in register else (lambda m, args, out: out + 0.25)
    getattr(model.relu, register)(change)
    with torch.no_grad():
        near(compiled(model, X)(X), model(X))


class Replaced(nn.Module):
    """Its forward hangs on the object; the class's computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        self.forward = self.other  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def other(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_forward_on_the_object_stays(hooked: bool, inside: bool) -> None:
    part = Replaced().eval()
    model = nn.Sequential(part, nn.ReLU()) if inside else part
    if hooked:
        part.register_forward_hook(lambda *_: None)
    fast = compiled(model, X)
    with torch.no_grad():
        wanted = model(X)
        near(fast(X), wanted)
        for made in (fast.refresh(), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)) if not hooked else fast):
            near(made(X), wanted)
        fast.get_submodule("0.conv" if inside else "conv").register_forward_hook(lambda *_: None)
        near(fast(X), wanted)
        near(copy.deepcopy(fast)(X), wanted)


class WritesAndForgets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        z -= y  # nobody but a hook holds it
        with torch.autocast("cpu", torch.bfloat16):
            self.second(y)
        return y


def test_what_only_a_hook_sees() -> None:
    model = WritesAndForgets().eval()
    seen: list[Tensor] = []
    model.second.register_forward_hook(lambda m, args, out: seen.append(out))
    fast = compiled(model, X)
    assert not seen
    with torch.no_grad():
        near(fast(X), model(X))
    ours, theirs = seen[:2], seen[2:]
    near(ours[0], theirs[0])
    assert ours[1].dtype == theirs[1].dtype == torch.bfloat16
