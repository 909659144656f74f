"""What the hooks around a step ask of torch: one call of the operator for each device, and nothing that waits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import secateur
import torch
from secateur import Magnitude
from secateur.masks import optimizer_hooks
from tensors import same_bits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """The names of the operators that run, with how many weights ours is given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.weights: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        if function.name() == "secateur::mask_apply_many_":
            self.weights.append(len(args[0]))
        return function(*args, **kwargs or {})


def net(layers: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(9, 9), nn.ReLU()) for _ in range(layers)])


def hooks(optimizer: torch.optim.Optimizer) -> Calls:
    with Calls() as calls:
        optimizer_hooks._before_step(optimizer, (), {})
        optimizer_hooks._after_step(optimizer, (), {})
    return calls


@pytest.mark.parametrize("layers", [1, 6, 200])
def test_one_call_masks_all_weights(layers: int) -> None:
    model = net(layers)
    secateur.prune(model, Magnitude(sparsity=0.7))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(4, 9)).sum().backward()
    optimizer.step()
    calls = hooks(optimizer)
    assert calls.names == ["secateur::mask_apply_many_"]  # no copy, no comparison, no value read by the host
    assert calls.weights == [layers]


def test_the_weights_of_this_optimizer_alone() -> None:
    model = net()
    secateur.prune(model, Magnitude(sparsity=0.7))
    first = torch.optim.SGD(model[:2].parameters(), 0.1)
    second = torch.optim.SGD(model[2:].parameters(), 0.1)
    hooks(first), hooks(second)  # the first looks whether an optimizer is older than the pruning
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    assert hooks(first).weights == [2]
    assert all(bool((block[0].weight == 0).any()) == (i < 2) for i, block in enumerate(model))
    assert hooks(second).weights == [4]
    assert secateur.sparsity(model).sparsity == pytest.approx(0.7, abs=0.01)


def test_no_call_without_masks() -> None:
    model, pruned = net(), net()
    secateur.prune(pruned, Magnitude(sparsity=0.7))
    assert hooks(torch.optim.SGD(model.parameters(), 0.1)).names == []


def test_as_if_each_weight_were_masked_by_itself() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 70), nn.Linear(70, 5).double())
    model[0].to(memory_format=torch.channels_last)
    secateur.prune(model, Magnitude(sparsity=0.8))
    masks = [model[i].weight_mask for i in (0, 2, 3)]
    with torch.no_grad():
        for i in (0, 2, 3):
            model[i].weight.normal_()
    twin = copy.deepcopy(model)
    hooks(torch.optim.SGD(model.parameters(), 0.1))
    for i, mask in zip((0, 2, 3), masks, strict=True):
        expected = secateur.ops.reference.mask_apply(twin[i].weight.detach(), mask)
        assert same_bits(model[i].weight, expected)


def test_a_call_for_each_device() -> None:
    """The meta device, where there is nothing to mask, stands for the second one."""
    model = net()
    secateur.prune(model, Magnitude(sparsity=0.7))
    model[3:].to("meta")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hooks(optimizer)
    assert hooks(optimizer).weights == [3]


@pytest.mark.filterwarnings("ignore:prune. .* one tied weight:UserWarning")
def test_tied_weights_whose_masks_are_two_tensors() -> None:
    model = net(2)
    model[1][0].weight = model[0][0].weight
    secateur.prune(model, Magnitude(sparsity=0.7))
    model[1][0].weight_mask = model[0][0].weight_mask.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        model[0][0].weight.fill_(1)
    assert hooks(optimizer).names.count("secateur::mask_apply_many_") == 1
    keep = secateur.ops.mask_unpack(model[0][0].weight_mask, (9, 9))
    assert torch.equal(model[0][0].weight, keep.float())


def test_backward_notices_that_weights_were_masked() -> None:
    model = net(2)
    secateur.prune(model, Magnitude(sparsity=0.7))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = model(torch.randn(4, 9, requires_grad=True)).sum()
    hooks(optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_masks_that_do_not_fit_are_named_and_change_nothing() -> None:
    model = net(3)
    secateur.prune(model, Magnitude(sparsity=0.7))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hooks(optimizer)
    model[1][0]._parameters["weight"].data = torch.ones(9, 30)
    before: list[Tensor] = [p.detach().fill_(1).clone() for p in model.parameters()]
    with pytest.raises(
        secateur.Error, match=r"mask_apply_many_: masks\[\d\] must be \[9, 4\] .* \[9, 30\], got \[9, 2\]"
    ):
        optimizer_hooks._after_step(optimizer, (), {})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
