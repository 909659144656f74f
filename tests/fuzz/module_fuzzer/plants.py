"""Ten defects, one a kind of those that were found once, planted on purpose: each must be found.

They stand around the five calls and their results, so that they are defects whatever is inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import secateur
import torch
from secateur._base.copies import own_copy
from torch import Tensor, fx, nn

from . import calls, trees

Run = Callable[..., nn.Module]
Plant = Callable[[Run], Run]
PLANTS: dict[str, tuple[str, Plant]] = {}


def _plant(*names: str) -> Callable[[Plant], Plant]:
    """Enters a defect, for the calls of these names."""

    def enter(make: Plant) -> Plant:
        PLANTS[make.__name__.strip("_")] = (" ".join(names), make)
        return make

    return enter


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The defect is there while the ``with`` statement lasts."""
    where, make = PLANTS[name]
    known = dict(calls.CALLS)
    for call in where.split():
        calls.CALLS[call] = dataclasses.replace(known[call], run=make(known[call].run))
    try:
        yield
    finally:
        calls.CALLS.update(known)


@dataclasses.dataclass
class _Around:
    """A forward around another one; it copies and pickles."""

    own: Callable[..., Any]
    how: Callable[[Callable[..., Any], tuple[Any, ...]], Any]

    def __call__(self, *args: Any) -> Any:
        return self.how(self.own, args)


def _around(result: nn.Module, how: Callable[[Callable[..., Any], tuple[Any, ...]], Any]) -> nn.Module:
    result.__dict__["forward"] = _Around(result.forward, how)
    return result


def _shared(result: nn.Module) -> list[nn.Module]:
    return [m for m in result.modules() if not isinstance(m, torch.jit.ScriptModule)]


@_plant("compile", "convert", "quantize")
def trial_runs_on_the_callers_model(run: Run) -> Run:
    """Trial runs use the caller's own storage and attributes, and fire its hooks."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        with torch.no_grad():
            model(*trees.copied(example))
        return run(model, example, *more)

    return wrapped


@_plant("compile", "prune_activations")
def parameters_shared(run: Run) -> Run:
    """A write into the result's parameters reaches the caller's."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        with torch.no_grad():
            for p in model.parameters():
                p.clamp_(-0.3, 0.3)
        return result

    return wrapped


@_plant("quantize", "prepare_qat", "compile")
def inplace_switched_off(run: Run) -> Run:
    """Every ``inplace`` is off, whoever reads the value behind it."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        model = own_copy(model, "plant")
        for module in _shared(model):
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        return run(model, example, *more)

    return wrapped


@_plant("compile")
def writes_into_inputs_lost(run: Run) -> Run:
    """The result works on copies of its inputs."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        return _around(run(model, example, *more), _on_copies)

    return wrapped


def _on_copies(own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return own(*trees.copied(args))


@_plant("compile", "convert", "prune_activations")
def proxy_kept(run: Run) -> Run:
    """Tracing leaves a Proxy where the forward keeps a value."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        for module in _shared(result):
            for name, value in list(vars(module).items()):
                if name.startswith(("last", "cache", "past", "grid", "kept")):
                    tracer = fx.Tracer()
                    tracer.graph = fx.Graph()
                    module.__dict__[name] = fx.Proxy(tracer.graph.placeholder(name), tracer)
                    del value
        return result

    return wrapped


@_plant("convert")
def threshold_in_place(run: Run) -> Run:
    """Activations write over what the layer before them made, whoever else reads it."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        for module in _shared(result):
            if isinstance(module, nn.ReLU):
                module.inplace = True
        return result

    return wrapped


@_plant("compile", "convert")
def state_of_the_trial(run: Run) -> Run:
    """The result goes on from where the example left it."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        trial = own_copy(model, "plant")
        with torch.no_grad():
            trial(*trees.copied(example))
        getattr(trial, "eval", lambda: None)()
        return run(trial, example, *more)

    return wrapped


@_plant("convert", "prune_activations")
def training_mode(run: Run) -> Run:
    """The result comes back in training mode."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        result.train()
        return result

    return wrapped


@_plant("compile")
def batch_one_as_two(run: Run) -> Run:
    """A call with one image gives the shapes that the example's gave."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        return _around(run(model, example, *more), _batch_kept)

    return wrapped


def _batch_kept(own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    out = own(*args)
    if isinstance(out, Tensor) and out.dim() == 1:
        return out[None]
    return out


@_plant("compile", "convert", "quantize", "prepare_qat", "prune_activations")
def hooks_dropped(run: Run) -> Run:
    """Hooks of the model are not called any more."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        for module in _shared(result):
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        for module in _shared(getattr(result, "source", result)):
            module._forward_hooks.clear()
        return result

    return wrapped


@_plant("compile", "quantize")
def raw_errors(run: Run) -> Run:
    """A layer whose weight is read elsewhere ends in an error of a tracer."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        weights = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
        if len(weights) != len(set(weights)):
            raise KeyError("weight")
        return run(model, example, *more)

    return wrapped


@_plant("prune_activations", "convert", "quantize")
def masks_averaged(run: Run) -> Run:
    """Packed masks are averaged as if they were numbers: other weights die."""

    def wrapped(model: nn.Module, example: tuple[Any, ...], *more: Any) -> nn.Module:
        result = run(model, example, *more)
        with torch.no_grad():
            for module in result.modules():
                for name in secateur.masks.masked_parameters(module):
                    mask, weight = secateur.masks.get_mask(module, name), getattr(module, name)
                    worn = (mask.float() * 0.99).to(torch.uint8)
                    weight.mul_(secateur.ops.mask_unpack(worn, weight.shape))
        return result

    return wrapped
