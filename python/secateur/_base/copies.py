"""Copies of a model that share nothing with it: a forward may write parameters, buffers and attributes, so a model that
belongs to somebody else is never run. Its copy is."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .errors import Error
from .modules import M
from .state import remember_original

V = TypeVar("V")


def own_copy(model: M, caller: str, memo: dict[int, Any] | None = None) -> M:
    """A copy with memory and attributes of its own.

    Values that the forward kept (computed with gradients) are copied without their graph. Forward hooks that are
    objects or methods from outside of the model are shared, so that they go on reporting to their owner. What cannot be
    copied (locks, generators, open files) is shared as well.

    Args:
        model: any module.
        caller: the public function that errors name.
        memo: replacements that are made already, as for ``copy.deepcopy``.

    Raises:
        Error: a parameter or buffer is not initialized yet.
    """
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(t):
            raise Error(f"{caller}: model must be initialized, but {name} is not: run it once on real data")
    memo = {} if memo is None else memo
    inside = {id(module) for module in model.modules()}
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not is_torchs(hook) and not is_ours(hook) and id(getattr(hook, "__self__", hook)) not in inside:
                memo[id(hook)] = hook
    _copy_tensors(model, memo)
    used = dict(memo)  # one that fails leaves half a copy in its memo
    try:
        result = _copied(model, used)
    except (TypeError, RuntimeError, NotImplementedError):
        _share_uncopyable(model, memo)
        used = memo
        result = _copied(model, used)
    _complete(model, result, used)
    return result


class _WithoutGraphs(TorchFunctionMode):
    """Lets tensors that were computed with gradients be copied: torch's own __deepcopy__ refuses them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _copy_tensors(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy what is an ordinary tensor in memory of its own, which deepcopy does slowly, into the memo."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in memo}
    plain = [t for t in tensors.values() if type(t) in (nn.Parameter, Tensor) and t.layout == torch.strided]
    held = Counter(t.untyped_storage()._cdata for t in plain if not t.is_meta)
    for t in plain:
        if vars(t) or not t.is_leaf or t.is_inference() or t.is_quantized or t.is_meta or not t.is_contiguous():
            continue
        storage = t.untyped_storage()
        if t.grad is not None or held[storage._cdata] > 1 or storage.nbytes() != t.numel() * t.element_size():
            continue
        made = t.detach().clone()
        memo[id(t)] = (
            nn.Parameter(made, t.requires_grad) if type(t) is nn.Parameter else made.requires_grad_(t.requires_grad)
        )


def _copied(model: V, memo: dict[int, Any]) -> V:
    with torch.no_grad(), _WithoutGraphs():  # TorchScript clones its parameters
        made = copy.deepcopy(model, memo)
    for p in model.parameters() if isinstance(model, nn.Module) else ():
        twin = memo.get(id(p))
        if isinstance(twin, nn.Parameter) and twin is not p:
            remember_original(twin, p)
    return made


def _complete(model: nn.Module, made: nn.Module, memo: dict[int, Any]) -> None:
    """What the copies of torch.fx's modules leave out: hooks, attributes, the mode (and so the graph of each mode)."""
    copies = dict(made.named_modules(remove_duplicate=False))
    pairs = [(each, copies.get(name)) for name, each in model.named_modules(remove_duplicate=False)]
    for each, twin in pairs:
        if not isinstance(each, fx.GraphModule) or type(twin) is nn.Module or not isinstance(twin, fx.GraphModule):
            continue
        for key, value in vars(each).items():
            if key not in vars(twin) or (key.startswith("_") and "hooks" in key and value and not vars(twin)[key]):
                twin.__dict__[key] = _copied(value, memo)
        if hasattr(each, "train_graph") and twin.training != each.training:
            twin.train(each.training)
    for each, twin in pairs:
        if twin is not None and twin.training != each.training:
            twin.training = each.training
    parameters = dict(made.named_parameters(remove_duplicate=False))
    for name, p in model.named_parameters(remove_duplicate=False):
        new = parameters.get(name)
        if new is not None and new.shape == p.shape and new.requires_grad != p.requires_grad:
            new.requires_grad_(p.requires_grad)  # TorchScript's copies have forgotten it


def _share_uncopyable(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put plain attributes that cannot be copied into the memo as themselves."""
    themselves: dict[int, Any] = {id(module): module for module in model.modules()}
    themselves.update({id(t): t for t in (*model.parameters(), *model.buffers())})
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                _copied(value, {**memo, **themselves})
            except Exception:
                memo[id(value)] = value


def evaluating(model: M) -> M:
    """The model after ``model.eval()``, whatever that returns: people forget to return self from ``train``."""
    model.eval()
    return model


def is_torchs(hook: Any) -> bool:
    """Whether a forward hook is torch's own and a part of the computation: spectral_norm, weight_norm, pruning."""
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return str(home).startswith("torch.")


def is_ours(hook: Any) -> bool:
    """Whether a forward hook is this package's own: it decides itself what its copies do."""
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return str(home).startswith("secateur.")


def drop_hooks(model: M) -> M:
    """Take the caller's forward hooks off a copy that is only run on trial; torch's own, which compute, stay."""
    for module in model.modules():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in table.items() if not is_torchs(hook)]:
                del table[key]
    return model


__all__ = ["drop_hooks", "evaluating", "is_ours", "is_torchs", "own_copy"]
