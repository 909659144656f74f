"""A term for the loss that makes activations sparse while a network trains."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._base.checks import checked_choice, checked_number
from .._base.errors import Error
from ..activations.relu_sites import relu_kind


class ActivationSparsityLoss:
    """``loss = criterion(model(x), y) + reg()``: a plain term that is small where the ReLUs' outputs are sparse.

    For a ReLU's output a, of n values a sample::

        "hoyer":  (sum |a|)^2 / sum a^2 / n     for each sample, then the mean over samples
        "l1":     mean |a|

    and of that the mean over all ReLU calls of the forward pass, times ``weight``. The squared Hoyer measure is that of
    Kurtz et al. ("Inducing and Exploiting Activation Sparsity", ICML 2020); divided by n it lies between 0 and the
    share of values that are not zero (Cauchy-Schwarz), whatever the size of the layer and the scale of its values. L1
    can be lowered by making everything small; Hoyer can't.

    Watched are the modules ``nn.ReLU``, ``nn.ReLU6`` and :class:`secateur.nn.ThresholdReLU`. Functional ReLUs can't be
    seen: :func:`secateur.prune_activations` makes modules of them. Only forward passes in training mode with gradients
    enabled count. Each pass of ``model`` starts anew, so a pass whose term is never read costs no memory for long;
    reading it lets go of the graph, so it can be read once a pass. The hooks go with :meth:`remove`, with the end of a
    ``with`` block, or with this object; copies and pickles of the model do not have them.

    Args:
        model: what trains.
        kind: ``"hoyer"`` or ``"l1"``.
        weight: the factor, >= 0; may be changed at any time.

    Raises:
        Error: model is no module, or has no ReLU module; another kind; a weight that is no number >= 0; called when no
            forward pass has been recorded since the last call.
    """

    def __init__(self, model: nn.Module, kind: Literal["hoyer", "l1"] = "hoyer", weight: float = 1.0) -> None:
        caller = "ActivationSparsityLoss"
        if not isinstance(model, nn.Module):
            raise Error(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
        checked_choice(caller, "kind", kind, ("hoyer", "l1"))
        self.kind = kind
        self.weight = checked_number(caller, "weight", weight, 0.0, float("inf"))
        self._terms: list[Tensor] = []
        watched = [module for module in model.modules() if relu_kind(module) is not None]
        if not watched:
            raise Error(
                f"{caller}: model must have a ReLU module (nn.ReLU, nn.ReLU6, ThresholdReLU), found none; functional "
                "ReLUs become modules by prune_activations"
            )
        self._handles = [module.register_forward_hook(_Hook(self)) for module in watched]
        # First of its pre-hooks, so that what the model's other hooks compute is not lost.
        self._handles.append(model.register_forward_pre_hook(_Restart(self), prepend=True))

    def __call__(self) -> Tensor:
        """The term, a scalar with a gradient, of the last forward pass."""
        terms, self._terms = self._terms, []
        if not terms:
            raise Error(
                "ActivationSparsityLoss: a forward pass in training mode, with gradients, must come before each call, "
                "there was none"
            )
        return self.weight * torch.stack([term.to(terms[0].device) for term in terms]).mean()

    def remove(self) -> None:
        """Take the hooks off the model. It may be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._terms = []

    def __enter__(self) -> ActivationSparsityLoss:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _take(self, module: nn.Module, a: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and isinstance(a, Tensor) and a.requires_grad):
            return
        if a.numel() == 0:
            return
        single = a if a.dtype == torch.float64 else a.to(torch.float32)  # sums of squares overflow in half precision
        # A ReLU's output is its own absolute value.
        if self.kind == "l1":
            self._terms.append(single.mean())
            return
        rows = single.flatten(1) if single.dim() > 1 else single.reshape(1, -1)  # [N, n]
        squares = rows.square().sum(1)
        # All zeros: the measure is 0 / 0, and nothing is left to make sparse. The gradient there is 0, too.
        share = rows.sum(1).square() / squares.clamp_min(torch.finfo(rows.dtype).tiny) / rows.shape[1]
        self._terms.append(share.mean())


class _Hook:
    """A forward hook that holds its loss weakly, so that a model outlives it. Copies and pickles of it are empty."""

    def __init__(self, loss: ActivationSparsityLoss | None = None) -> None:
        self.loss = None if loss is None else weakref.ref(loss)

    def _owner(self) -> ActivationSparsityLoss | None:
        return None if self.loss is None else self.loss()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        owner = self._owner()
        if owner is not None:
            owner._take(module, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class _Restart(_Hook):
    """The pre-hook of the whole model: drops the terms of an earlier pass."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        owner = self._owner()
        if owner is not None:
            owner._terms = []
