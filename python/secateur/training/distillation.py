"""Distillation: a loss that trains a smaller network on the outputs of the one it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.checks import checked_number
from .._base.copies import evaluating, own_copy
from .._base.errors import Error
from .._base.wrappers import unwrapped
from .logits import checked_labels, checked_logits, cross_entropy, divergence, wide

_CALLER = "DistillationLoss"


class DistillationLoss(nn.Module):
    """Fine-tune a pruned or quantized student on what its dense teacher answers (Hinton et al., "Distilling the
    Knowledge in a Neural Network", 2015)::

        distill = secateur.DistillationLoss(model)  # the teacher: a frozen copy of the dense network as it is now
        secateur.prune(model, secateur.Magnitude(0.98))  # the student
        for x, labels in batches:
            loss = distill(model, x, labels)  # in place of cross_entropy(model(x), labels)
            ...

    With logits z of the student and t of the teacher, temperature T::

        loss = alpha * T^2 * KL(softmax(t / T) || softmax(z / T)) + (1 - alpha) * cross_entropy(z, labels)
               + hint_weight * mean over the hints of mean((student's output - teacher's output)^2)

    each a mean over samples (and positions). T^2 keeps the size of the soft part's gradient, whatever T. Sums are
    float32 or wider, under autocast and for half precision too. NaN in, NaN out.

    **The teacher** is copied, so pruning, quantizing or training the module that was given does not change it; the copy
    is in eval mode for good, runs without gradients, and keeps nothing from one call to the next. It is no submodule:
    neither ``parameters()``, ``state_dict()`` nor ``train()`` of the loss, or of a module that holds the loss, reach it
    (copies and pickles of the loss contain it, as ``loss.teacher``). The loss has no parameters and nothing to save.
    ``to()``, ``cuda()``, ``double()`` ... do reach it; it follows x to another device by itself, and a floating x is
    cast to the teacher's dtype for it. What :func:`secateur.compile` made of the dense network is a faster teacher.

    **Hints** (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015) draw outputs of the student's inner layers to
    the teacher's, which must have the same shape, as they have in pruned and quantized copies: there is no regressor
    between other shapes. They are watched by hooks that exist during a call only, in which each layer must run once;
    what ``torch.compile`` has made of a network calls no such hooks.

    Args:
        teacher: what answers; gives logits ``[N, C]`` or ``[N, C, ...]``, classes in dim 1.
        temperature: T, from 1e-6 to 1e6; higher shows more of what the teacher thinks of the wrong classes.
        alpha: the weight of the soft part, 0 to 1; the labels have the rest.
        hints: names of layers that both networks have, or a mapping from the teacher's names to the student's.
        hint_weight: >= 0; what is right depends on the scale of the layers' outputs.

    ``temperature``, ``alpha`` and ``hint_weight`` are attributes that may be changed at any time; what is put in place
    of ``teacher`` is copied, too.

    Raises:
        Error: a teacher that is no module or can't be copied, a number out of its range, a hint that names no layer of
            the teacher.
    """

    teacher: nn.Module

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 4.0,
        alpha: float = 0.5,
        hints: Mapping[str, str] | Iterable[str] | None = None,
        hint_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        # Beyond these limits T^2, a factor of the loss, leaves float32.
        self.temperature = checked_number(_CALLER, "temperature", temperature, 1e-6, 1e6)
        self.alpha = checked_number(_CALLER, "alpha", alpha, 0.0, 1.0)
        self.hints = _named(hints)
        self.hint_weight = checked_number(_CALLER, "hint_weight", hint_weight, 0.0, float("inf"))
        for name in self.hints:
            _layer(self.teacher, name, "teacher")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":  # not by nn.Module's own, which would make it a submodule
            object.__setattr__(self, name, _frozen(value))
        else:
            super().__setattr__(name, value)

    def forward(self, student: nn.Module | Tensor, x: Any, labels: Tensor | None = None) -> Tensor:
        """The loss, a scalar with a gradient for the student.

        Args:
            student: the network, which is run on x here, in its own mode; or its logits for x, if you want them for
                something else as well (hints need the network).
            x: the input, given to both networks as their one argument.
            labels: classes ``[N]`` or ``[N, ...]``, integers from 0 to C - 1 (-100: the position is left out of the
                soft part as well); or a share for each class, floating point, in the logits' shape. None: the soft
                part with its whole weight, and the hints.

        Raises:
            Error: logits that are no floating-point tensor of two or more dims, or whose shape is not the teacher's;
                labels that don't fit (classes out of range on the CPU only: elsewhere the check would wait for the
                device at each step, and torch's own assertion remains); a hint that names no layer of the student,
                which does not run once, gives another shape than the teacher's, or no gradient where the logits have
                one.
        """
        with _outputs(self.teacher, list(self.hints), "teacher") as expected, torch.no_grad():
            t = self.answer(x)
        if isinstance(student, nn.Module):
            with _outputs(student, list(self.hints.values()), "student") as found:
                z = student(x)
        elif self.hints:
            raise Error(f"{_CALLER}: student must be the network where there are hints, got {type(student).__name__}")
        else:
            z, found = student, []
        z = checked_logits(z, "student", _CALLER)
        t = checked_logits(t, "teacher", _CALLER).to(z)
        if z.shape != t.shape:
            raise Error(
                f"{_CALLER}: the student's logits must be {list(t.shape)} like the teacher's, got {list(z.shape)}"
            )
        counted = None if labels is None else checked_labels(labels, z, _CALLER)  # [N, ...] or None: all of them
        share = 1.0 if labels is None else self.alpha
        loss = z.new_zeros(())
        if share > 0:  # a part without weight is left out: 0 times its infinity would be NaN
            loss = loss + share * self.temperature**2 * divergence(z, t, self.temperature, counted)
        if labels is not None and share < 1:
            loss = loss + (1 - share) * cross_entropy(z, labels, counted)
        if self.hints and self.hint_weight > 0:
            pairs = zip(self.hints.items(), found, expected, strict=True)
            terms = [_hint(names, s, e, z.requires_grad) for names, s, e in pairs]
            loss = loss + self.hint_weight * torch.stack([term.to(loss) for term in terms]).mean()
        return loss

    def answer(self, x: Any) -> Any:
        """What the teacher says to x, on x's device and in the teacher's dtype."""
        if isinstance(x, Tensor):
            held = [*self.teacher.parameters(), *self.teacher.buffers()]
            devices = {tensor.device for tensor in held}
            if len(devices) == 1 and x.device not in devices:
                self.teacher.to(x.device)
            dtypes = {tensor.dtype for tensor in self.teacher.parameters() if tensor.is_floating_point()}
            if len(dtypes) == 1 and x.is_floating_point():
                x = x.to(dtypes.pop())
        return self.teacher(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationLoss:
        # to(), half(), cuda() ... all end here.
        self.teacher._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        shown = f"{type(self.teacher).__name__}, temperature={self.temperature:g}, alpha={self.alpha:g}"
        return shown + (f", hints={self.hints}, hint_weight={self.hint_weight:g}" if self.hints else "")


def _frozen(teacher: Any) -> nn.Module:
    if not isinstance(teacher, nn.Module):
        raise Error(f"{_CALLER}: teacher must be a torch.nn.Module, got {type(teacher).__name__}")
    try:
        frozen: nn.Module = evaluating(own_copy(unwrapped(teacher), _CALLER))
    except Error:
        raise
    except (RuntimeError, TypeError) as reason:
        raise Error(f"{_CALLER}: teacher must be a module that copy.deepcopy copies, it says: {reason}") from reason
    for parameter in frozen.parameters():  # after eval(), which may be overridden and turn gradients on
        parameter.requires_grad_(False)
    return frozen


def _named(hints: Any) -> dict[str, str]:
    """The teacher's layers -> the student's."""
    if isinstance(hints, Mapping):
        pairs = dict(hints)
    elif hints is None or (isinstance(hints, Iterable) and not isinstance(hints, str)):
        pairs = {name: name for name in hints or ()}
    else:
        pairs = {None: None}
    if not all(isinstance(name, str) for pair in pairs.items() for name in pair):
        raise Error(f"{_CALLER}: hints must be a list of layers' names or a mapping between them, got {hints!r:.80}")
    return pairs


def _layer(network: nn.Module, name: str, whose: str) -> nn.Module:
    layers = dict(network.named_modules(remove_duplicate=False))
    if not name or name not in layers:
        known = ", ".join(each for each, _ in network.named_modules() if each)
        raise Error(f"{_CALLER}: hints must name layers of the {whose}, got {name!r}; it has {known or 'none':.400}")
    layer: nn.Module = layers[name]
    return layer


@contextmanager
def _outputs(network: nn.Module, names: list[str], whose: str) -> Iterator[list[Tensor]]:
    """The outputs of these layers, in this order, once the block has ended; each must have run once in it."""
    outputs: list[Tensor] = []
    calls: list[list[Any]] = [[] for _ in names]

    def watch(into: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
        # A copy, as the layer behind may work in place (nn.ReLU(inplace=True)).
        return lambda module, args, output: into.append(output.clone() if isinstance(output, Tensor) else output)

    layers = [_layer(network, name, whose) for name in names]
    handles = [layer.register_forward_hook(watch(into)) for layer, into in zip(layers, calls, strict=True)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
    for name, each in zip(names, calls, strict=True):
        if len(each) != 1:
            raise Error(
                f"{_CALLER}: hints must name layers that run once, the {whose}'s {name!r} ran {len(each)} times"
            )
        if not (isinstance(each[0], Tensor) and each[0].is_floating_point()):
            raise Error(
                f"{_CALLER}: hints must name layers that give one floating-point tensor, the {whose}'s {name!r} gave "
                f"{each[0].dtype if isinstance(each[0], Tensor) else type(each[0]).__name__}"
            )
        outputs.append(each[0])


def _hint(names: tuple[str, str], student: Tensor, teacher: Tensor, expect_gradient: bool) -> Tensor:
    if student.shape != teacher.shape:
        raise Error(
            f"{_CALLER}: hints must join layers of one output shape, the teacher's {names[0]!r} gave "
            f"{list(teacher.shape)}, the student's {names[1]!r} {list(student.shape)}"
        )
    if expect_gradient and not student.requires_grad:
        # Frozen layers, or reentrant checkpointing: the hint would silently do nothing.
        raise Error(f"{_CALLER}: hints must name layers that learn, no gradient reaches the student's {names[1]!r}")
    student = wide(student)
    return F.mse_loss(student, teacher.to(student))
