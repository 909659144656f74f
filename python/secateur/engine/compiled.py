"""``secateur.compile``: a model as one fused plan, and the module that holds it."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from .._base import fork
from .._base.errors import Error
from .._base.modules import pruning_hooks, version_of
from .._base.signals import keeps_grad_mode
from .._base.tensors import clones
from ..pt2e import from_pt2e, is_pt2e
from ..report import Report
from .architecture import check_alike, words
from .backends.program import ENGINE, Backend
from .backends.reference import REFERENCE
from .lowering.segment import Decision
from .packed import Loan, borrow, own
from .reporting import compile_report
from .unit import CompiledForward, CompileSession, Key, hooks_of, input_key, module_with_forward

C = TypeVar("C", bound="CompiledModel")

BUDGET_S = 40.0
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@keeps_grad_mode
def compile(model: nn.Module, example_input: Any, *, budget: float = BUDGET_S) -> CompiledModel:
    """A copy of ``model`` for running it: the whole graph fused, laid out once, in the fastest form measured here.

    The model is traced. Operations that the engine knows (convolutions, linear layers, BatchNorm, activations, pools,
    sums, concatenations, moves of channels) run from C++ in segments as large as can be, with the zeros of the weights
    skipped. All other operations run as ordinary torch between the segments, and the report says why. Each segment is
    timed beside torch's own form of it on the example's values, and left to torch where that is faster. Any model will
    do, with or without zeros, whatever made them; ``model`` itself is left alone. Where zeros are skipped, a zero
    weight times Inf or NaN counts for nothing; in torch's dense layers it gives NaN. int8 layers
    (:func:`secateur.quantize`'s, or those of PyTorch's ``convert_pt2e``) run in bytes from end to end.

    Args:
        model: the model. It is compiled as it computes in evaluation mode (BatchNorm's running statistics, no
            dropout), whatever mode it is in. float32 on the CPU runs in the engine, everything else in torch.
        example_input: a tensor, or a tuple of the model's positional arguments, at least one image. Later calls need
            the same dtypes, ranks and channels; batch size and image size may change, but the choices are made for
            those of the example.
        budget: seconds that may be spent on choosing kernels and timing.

    Returns:
        A :class:`CompiledModel`; its ``report`` has a row for each layer.

    Raises:
        Error: model is no module, is TorchScript (its parts may be) or has uninitialized parameters, it does not run
            on the example, or budget is not positive.
    """
    if isinstance(model, CompiledModel):
        model = model.source
    if not isinstance(model, nn.Module):
        raise Error(f"compile: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise Error("compile: model must be the module itself, got what TorchScript made of it, which is no graph")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise Error(f"compile: budget must be a positive number of seconds, got {budget!r}")
    return _compile(_integers(model), example_input, float(budget), ENGINE)


def _integers(model: nn.Module) -> nn.Module:
    """A model that PyTorch's own flow has quantized (``convert_pt2e``) with int8 layers; any other model as it is."""
    if not isinstance(model, fx.GraphModule) or not is_pt2e(model):
        return model
    try:
        return from_pt2e(model)
    except Error as reason:
        warnings.warn(f"compile: {reason}; the model runs in torch's operators", UserWarning, stacklevel=4)
        return model


def _compile(model: nn.Module, example_input: Any, budget: float, backend: Backend) -> CompiledModel:
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    for t in args:
        if isinstance(t, Tensor) and t.dim() >= 2 and t.numel() == 0:
            raise Error(f"compile: example_input must hold at least one image, got {list(t.shape)}")
    source, loan = _copy_of(model, "compile")
    fast = CompiledModel(source, budget, backend)
    fast._build(args)
    own(source, loan, pack=True)
    fast._take(source, fast.__dict__["_built"])
    return fast


def _copy_of(model: nn.Module, caller: str) -> tuple[nn.Module, Loan]:
    """A copy in evaluation mode, whose parameters need no gradients, and still share their memory."""
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(t):
            raise Error(f"{caller}: model must be initialized, but {name} is not: run it once on real data")
    memo: dict[int, Any] = {}
    for module in model.modules():  # deepcopy refuses tensors computed with gradients: torch.nn.utils.prune's weights
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    loan = borrow(model, memo)
    with torch.no_grad():  # TorchScript clones its parameters
        source = copy.deepcopy(model, memo).eval()
    for p in source.parameters():  # not the module's own method, which TorchScript refuses
        p.requires_grad_(False)
    for module in source.modules():
        for pruner in pruning_hooks(module):
            pruner(module, ())
    return source, loan


class CompiledModel(nn.Module):
    """What :func:`secateur.compile` makes: runs like the model, for inference.

    ``state_dict`` has the model's own keys and values, and what is loaded takes effect at the next call. Copies and
    pickles (``torch.save``, ``torch.load(weights_only=False)``) hold the model and the choices, and build their
    programs at their first call. Weights written in place are seen after :meth:`refresh`. Any number of threads may
    call it, also while another calls ``refresh``: each call runs on one version of the weights (``load_state_dict``
    writes in place, so what is left to torch may see some of both meanwhile).

    Attributes:
        report: one row a layer: what runs it, and why.
    """

    report: Report

    def __init__(self, source: nn.Module, budget: float, backend: Backend) -> None:
        super().__init__()
        self.__dict__["_backend"] = backend
        self._budget = budget
        self._decisions: dict[str, Decision] = {}
        self.report = Report("compiled", (), [])
        self.__dict__["_lock"] = fork.Lock()
        self._take(source, None)

    def _take(self, source: nn.Module, built: _Built | None) -> None:
        self.__dict__["_source"] = source
        for table in _TABLES:  # the model's own, so that its parameters, buffers and children are this module's too
            self.__dict__[table] = source.__dict__[table]
        self.__dict__["training"] = False
        self.__dict__["_built"] = built  # one object, so that a call sees all of it or nothing

    # ---- running ----

    @property
    def source(self) -> nn.Module:
        """The model that is compiled: this module's own copy, in evaluation mode."""
        return cast(nn.Module, self.__dict__["_source"])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args = self._positional(args, kwargs)
        if torch.is_grad_enabled():
            _check_gradients(args)
        if fork.forked:
            fork.limit_threads()
        built: _Built | None = self.__dict__["_built"]
        if built is None:
            built = self._build(args)
        key = tuple([input_key(a, False) for a in args])
        if key != built.expected:
            self._refuse(args, built.expected)
        if not torch.is_grad_enabled():
            return built.call(args, key)
        with torch.no_grad():
            return built.call(args, key)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Keyword arguments in their places."""
        try:
            bound = inspect.signature(self.source.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise Error(f"compile: {error}") from None
        if bound.kwargs:
            bound.apply_defaults()
        if bound.kwargs:
            raise Error(f"compile: arguments must have a position, got {', '.join(bound.kwargs)} by keyword only")
        return bound.args

    def _refuse(self, args: tuple[Any, ...], expected: Key) -> None:
        if len(args) != len(expected):
            raise Error(f"compile: inputs must be {len(expected)}, as in the example, got {len(args)}")
        for i, (value, want) in enumerate(zip(args, expected, strict=True)):
            got = input_key(value, False)
            if got != want:
                raise Error(
                    f"compile: input {i} must be {words(want)}, as the example was, got {words(got)} (compile again "
                    "for other inputs)"
                )

    def _build(self, args: tuple[Any, ...]) -> _Built:
        with self.__dict__["_lock"]:
            built: _Built | None = self.__dict__["_built"]
            if built is None:
                built = self._made(self.source, args)
                self.__dict__["_built"] = built
            return built

    def _made(self, source: nn.Module, args: tuple[Any, ...]) -> _Built:
        settings = CompileSession(self.__dict__["_backend"], self._budget, self._decisions)
        settings.deadline = time.perf_counter() + self._budget
        unit = CompiledForward(source, "", settings)
        try:
            with _buffers_kept(source):
                unit.state(args)
        except Exception as error:
            _blame_example(source, args, error)
            raise
        settings.sealed = True
        unit.forget_weights()
        entry = module_with_forward(unit) if hooks_of(source) else unit
        self.report = compile_report(unit)
        example = tuple(clones(args))
        return _Built(entry, unit, tuple(input_key(a, False) for a in args), example)

    # ---- weights ----

    @keeps_grad_mode
    def refresh(self: C, model: nn.Module | None = None) -> C:
        """Take the weights that ``model`` has now; without it, those of this module, written in place.

        The choices stay as they were made, except where a segment has become denser or sparser. Calls that are under
        way finish with the old weights; the next ones have the new.

        Args:
            model: a model of the same architecture as the one that was compiled, or None.

        Returns:
            This module.

        Raises:
            Error: another architecture; the first difference is named. Nothing has changed then.
        """
        if isinstance(model, CompiledModel):
            model = model.source
        if model is not None and not isinstance(model, nn.Module):
            raise Error(f"refresh: model must be a torch.nn.Module, got {type(model).__name__}")
        source, loan = _copy_of(self.source if model is None else _integers(model), "refresh")
        check_alike(self.source, source)
        with self.__dict__["_lock"]:
            built: _Built | None = self.__dict__["_built"]
            made = None if built is None else self._made(source, built.example)
            own(source, loan, pack=made is not None)  # before any other thread sees it
            self._take(source, made)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.source.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        with self.__dict__["_lock"]:
            try:
                return self.source.load_state_dict(state_dict, strict, assign)
            finally:
                self._stale()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # as a part of a larger model
        self._stale()
        self.source._load_from_state_dict(*args, **kwargs)

    def _apply(self: C, fn: Any, recurse: bool = True) -> C:
        self.source._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        self._stale()
        return self

    def _stale(self) -> None:
        """Drop the built programs, which do not match the weights any more: the next call builds again."""
        self.__dict__["_built"] = None

    def _weights_changed(self) -> None:
        """What writes weights in place calls this on every module that has it."""
        self._stale()

    def train(self: C, mode: bool = True) -> C:
        if mode:
            raise Error(
                "train: a compiled model is for inference; train the model that was compiled, then call "
                "refresh(model) on this one"
            )
        return self

    # ---- copies ----

    def __deepcopy__(self: C, memo: dict[int, Any]) -> C:
        return cast(C, _restored(type(self), copy.deepcopy(self.source, memo), *copy.deepcopy(self._form(), memo)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.source, *self._form())

    def _form(self) -> tuple[str, float, dict[str, Decision], Report]:
        return self.__dict__["_backend"].name, self._budget, dict(self._decisions), self.report

    def extra_repr(self) -> str:
        return f"compiled from {type(self.source).__name__}"


@dataclass(frozen=True)
class _Built:
    entry: Any  # called with the inputs
    unit: CompiledForward
    expected: Key
    example: tuple[Any, ...]

    def call(self, args: tuple[Any, ...], key: Key) -> Any:
        unit = self.unit
        if self.entry is unit and not unit.size_bound and unit.settings.recorder is None:
            return unit.run(args, key)
        return self.entry(*args)


@contextmanager
def _buffers_kept(source: nn.Module) -> Iterator[None]:
    """Restores the buffers: a forward may count its calls, and the example's do not count."""
    kept = [
        (module, name, buffer, version_of(buffer), buffer.clone())
        for module in source.modules() for name, buffer in module._buffers.items() if buffer is not None
    ]  # fmt: skip
    yield
    for module, name, buffer, version, value in kept:
        module._buffers[name] = buffer
        if version_of(buffer) != version:
            buffer.copy_(value)


def _restored(
    kind: type[CompiledModel], source: nn.Module, backend: str, budget: float, decisions: dict[str, Decision],
    report: Report,
) -> CompiledModel:  # fmt: skip
    made = kind(source, budget, BACKENDS[backend])
    made._decisions.update(decisions)
    made.report = report
    return made


def _check_gradients(args: tuple[Any, ...]) -> None:
    for x in args:
        if isinstance(x, Tensor) and x.requires_grad:
            raise Error(
                "compile: input must not require grad, for a compiled model computes no gradients: call it under "
                "torch.no_grad(), or give it x.detach() (to train, use the model that was compiled)"
            )


def _blame_example(source: nn.Module, args: tuple[Any, ...], error: Exception) -> None:
    """An Error, if the model itself does not run on the example."""
    try:
        with torch.no_grad():
            source(*clones(args))
    except Exception as own:
        raise Error(f"compile: example_input must be what the model takes: {type(own).__name__}: {own}") from error


BACKENDS = {backend.name: backend for backend in (ENGINE, REFERENCE)}
