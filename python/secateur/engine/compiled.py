"""``secateur.compile``: a model as one fused plan, and the module that holds it."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from .._base import fork
from .._base.copies import evaluating, own_copy
from .._base.errors import Error
from .._base.modules import hooks_of, pruning_hooks
from .._base.signals import keeps_grad_mode
from .._base.state import MODE, in_torch, live, state_kept
from .._base.tensors import clones
from .._base.wrappers import unwrapped
from ..pt2e import from_pt2e, is_pt2e
from ..report import Report
from .architecture import check_alike, words
from .backends.program import ENGINE, Backend
from .backends.reference import REFERENCE
from .lowering.segment import Decision
from .packed import pack_parameters
from .reporting import compile_report
from .unit import MOST_MADE, CompiledForward, CompileSession, Key, input_key, is_empty, undressed
from .watched import Watch

C = TypeVar("C", bound="CompiledModel")

BUDGET_S = 40.0
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_MOST_KINDS = 256  # of inputs that are remembered as taken

_autocast = torch._C._is_any_autocast_enabled
_transforms = torch._C._functorch.peek_interpreter_stack


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
    model = unwrapped(model)
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
    fast = CompiledModel(_copy_of(model, "compile"), budget, backend)
    fast._build(args)
    fast._pack()
    return fast


def _copy_of(model: nn.Module, caller: str) -> nn.Module:
    """A copy in evaluation mode, whose parameters need no gradients."""
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_nested or t.layout != torch.strided:
            kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
            raise Error(f"{caller}: parameters must be dense tensors, but {name} is {kind}")
    source = evaluating(own_copy(model, caller))
    undressed(source)
    for p in source.parameters():  # not the module's own method, which TorchScript refuses
        p.requires_grad_(False)
    for module in source.modules():
        for pruner in pruning_hooks(module):
            pruner(module, ())
    return source


class CompiledModel(nn.Module):
    """What :func:`secateur.compile` makes: runs like the model, for inference.

    ``state_dict`` has the model's own keys and values, and what is loaded takes effect at the next call. Copies and
    pickles (``torch.save``, ``torch.load(weights_only=False)``) hold the model and the choices, and build their
    programs at their first call. Weights written in place are seen after :meth:`refresh`. Any number of threads may
    call it, also while another calls ``refresh``: each call runs on one version of the weights (``load_state_dict``
    writes in place, so what is left to torch may see some of both meanwhile).

    It has the model's attributes, methods and children. Children are called through, so hooks that hang on them fire,
    and hooks that are registered later fire from the next call on. Calls that the engine does not serve run in torch,
    and the report's notes name them: under autocast, with parameters that were replaced (``torch.func.functional_call``
    among others), inside ``torch.vmap``, with global module hooks, with no image at all.

    Attributes:
        report: one row a layer: what runs it, and why.
    """

    report: Report

    def __init__(self, source: nn.Module, budget: float, backend: Backend) -> None:
        super().__init__()
        held = self.__dict__
        held["_backend"] = backend
        held["_budget"] = budget
        held["_decisions"] = {}
        held["report"] = Report("compiled", (), [])
        held["_lock"] = fork.Lock()
        held["_generation"] = 0  # of the weights
        held["_warned"] = False  # that it stays in evaluation mode
        held["_watch"] = Watch(self._stale)
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call,unused-ignore]
        self._take(source, None)

    def _take(self, source: nn.Module, built: _Built | None) -> None:
        held = self.__dict__
        held["_source"] = source
        held["_watch"].install(source)
        for table in _TABLES:  # the model's own, so that its parameters, buffers and children are this module's too
            held[table] = source.__dict__[table]
        held["training"] = False
        held["_built"] = built  # one object, so that a call sees all of it or nothing
        if built is not None:
            held["report"] = built.report

    # ---- attributes ----

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            source = self.__dict__.get("_source")
            if source is None or (name.startswith("__") and name.endswith("__")):
                raise
            return getattr(source, name)

    def __setattr__(self, name: str, value: Any) -> None:
        source = self.__dict__.get("_source")
        if source is None or name in self.__dict__ or hasattr(type(self), name):
            super().__setattr__(name, value)
            return
        setattr(source, name, value)
        if name not in source._parameters and name not in source._buffers and name not in source._modules:
            self._stale()  # the forward may read it

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.source, name)

    def __getitem__(self, which: Any) -> Any:
        return cast(Any, self.source)[which]

    def __setitem__(self, which: Any, module: nn.Module) -> None:
        cast(Any, self.source)[which] = module

    # ---- running ----

    @property
    def source(self) -> nn.Module:
        """The model that is compiled: this module's own copy, in evaluation mode."""
        return cast(nn.Module, self.__dict__["_source"])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args, kwargs = self._positional(args, kwargs)
        if torch.is_grad_enabled():
            _check_gradients(args)
        if fork.forked:
            fork.limit_threads()
        held = self.__dict__
        if (
            kwargs or held["_watch"].altered or _autocast() or forward_ad._current_level >= 0
            or _transforms() is not None or _global_forward_hooks or _global_forward_pre_hooks
        ):  # fmt: skip
            return self._in_torch(args, kwargs, self._why_in_torch(args, kwargs))
        built: _Built | None = held["_built"]
        if built is None or built.generation != held["_generation"]:
            if is_empty(args):
                return self._in_torch(args, kwargs, "calls without an image")
            built = self._build(args)
        try:
            key = tuple([input_key(a) for a in args])
        except RuntimeError as error:  # nested tensors have no shape
            raise Error(f"compile: inputs must be plain tensors: {error}") from error
        if key != built.expected and key not in built.taken:
            return self._take_on(built, args, key)
        if not torch.is_grad_enabled():
            return built.call(args, key)
        with torch.no_grad():
            return built.call(args, key)

    def _why_in_torch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Why the engine does not serve a call. Raises where gradients are wanted of the input."""
        if _differentiated(args):
            raise Error(
                "compile: a compiled model has no derivatives, and forward-mode differentiation of its input was asked "
                "for (jvp, jacfwd, dual numbers): use the model that was compiled"
            )
        altered = [name for _, name in self.__dict__["_watch"].altered]
        if altered:
            return (
                f"calls with other parameters than were compiled ({', '.join(altered[:3])}"
                f"{', ...' if len(altered) > 3 else ''} replaced; refresh() takes them)"
            )
        if _autocast():
            return "calls under autocast"
        if kwargs:
            return f"calls with keyword-only arguments ({', '.join(kwargs)})"
        if _transforms() is not None or forward_ad._current_level >= 0:
            return "calls inside torch.func's transforms"
        return "calls while global module hooks are registered"

    def _in_torch(self, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> Any:
        self._note(why)
        with in_torch():
            return self.source(*args, **kwargs)

    def _note(self, why: str) -> None:
        note = f"{why} run in torch"
        if note not in self.report.notes:
            self.report.notes.append(note)

    def _take_on(self, built: _Built, args: tuple[Any, ...], key: Key) -> Any:
        """Inputs of another kind than the example's: planned for, if the model takes them."""
        if is_empty(args):
            return self._in_torch(args, {}, "calls without an image")
        try:
            with torch.no_grad():
                result = built.call(args, key)
        except Error:
            raise
        except Exception as error:
            raise Error(
                f"{self._refusal(args, built.expected)}; the model says {type(error).__name__}: {error}"
            ) from error
        built.unit.forget_weights()
        if built.unit.made >= MOST_MADE:
            self._note(f"calls with inputs of another kind than the first {MOST_MADE}")
        if len(built.taken) < _MOST_KINDS:
            built.taken.add(key)
        return result

    def _refusal(self, args: tuple[Any, ...], expected: Key) -> str:
        """What is wrong with inputs that the model refuses: where they differ from the example's."""
        if len(args) != len(expected):
            return f"compile: inputs must be {len(expected)}, as in the example, got {len(args)}"
        for i, (value, want) in enumerate(zip(args, expected, strict=True)):
            got = input_key(value)
            if got != want:
                return f"compile: input {i} must be {words(want)}, as the example was, got {words(got)}"
        return "compile: inputs must be what the model takes"

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keyword arguments in their places; those that have none stay."""
        try:
            bound = inspect.signature(type(self.source).forward).bind(self.source, *args, **kwargs)
        except TypeError as error:
            raise Error(f"compile: {error}") from None
        if bound.kwargs:
            bound.apply_defaults()
        if bound.kwargs:
            return args, kwargs
        return bound.args[1:], {}

    def _build(self, args: tuple[Any, ...]) -> _Built:
        held = self.__dict__
        with held["_lock"]:
            built: _Built | None = held["_built"]
            while built is None or built.generation != held["_generation"]:  # weights may be loaded meanwhile
                held["_watch"].install(self.source)
                with live(built is not None):
                    built = self._made(self.source, args)
                held["report"], held["_built"] = built.report, built
            return built

    def _made(self, source: nn.Module, args: tuple[Any, ...]) -> _Built:
        generation = self.__dict__["_generation"]  # before the first look at the weights
        settings = CompileSession(self.__dict__["_backend"], self._budget, self._decisions)
        settings.deadline = time.perf_counter() + self._budget
        undressed(source)
        unit = CompiledForward(source, "", settings)
        try:
            unit.state(args)
        except Exception as error:
            if (own := _not_taken(source, args)) is not None:
                raise _ExampleNotTaken(
                    f"compile: example_input must be what the model takes: {type(own).__name__}: {own}"
                ) from error
            raise
        settings.sealed = True
        unit.forget_weights()
        entry: Any = unit
        if hooks_of(source) or _has_own_call(type(source)):
            source.__dict__["forward"] = unit
            entry = source
        example = tuple(clones(args))
        return _Built(entry, unit, tuple(input_key(a) for a in args), example, generation, compile_report(unit))

    def _pack(self) -> None:
        """Keep weights with zeros as bits and nonzeros, now that the programs have their own."""
        pack_parameters(self.source, self.__dict__["_watch"])
        self.__dict__["_parameters"] = self.source.__dict__["_parameters"]

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
        model = unwrapped(model)
        if isinstance(model, CompiledModel):
            model = model.source
        if model is not None and not isinstance(model, nn.Module):
            raise Error(f"refresh: model must be a torch.nn.Module, got {type(model).__name__}")
        source = _copy_of(self.source if model is None else _integers(model), "refresh")
        check_alike(self.source, source)
        held = self.__dict__
        with held["_lock"]:
            built: _Built | None = held["_built"]
            held["_watch"].prepare(source)
            try:
                made = None if built is None else self._made(source, built.example)
            except _ExampleNotTaken:
                if model is not None:
                    raise
                made = None  # in the state that its calls left: planned with the next one's inputs
            if made is not None:  # before any other thread sees it
                pack_parameters(source, held["_watch"])
            self._take(source, made)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.source.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        more = {"assign": True} if assign else {}  # a model's own load_state_dict may know no assign
        with self.__dict__["_lock"]:
            try:
                return self.source.load_state_dict(state_dict, strict, **more)
            finally:
                self._stale()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # as a part of a larger model
        self._stale()
        self.source._load_from_state_dict(*args, **kwargs)

    def _apply(self: C, fn: Any, recurse: bool = True) -> C:
        self.source._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        self._stale()
        return self

    def _weights_changed(self) -> None:
        """Called by what writes weights in place: ``prune``, ``strip``, ``masks.apply``."""
        self._stale()

    def _stale(self) -> None:
        """Drop the built programs, which do not match the weights any more: the next call builds again."""
        self.__dict__["_generation"] += 1

    def train(self: C, mode: bool = True) -> C:
        """Stays in evaluation mode, and says so once: as the frozen part of a larger model it may be told to train."""
        if mode and not self.__dict__["_warned"]:
            self.__dict__["_warned"] = True
            warnings.warn(
                "train: a compiled model stays in evaluation mode and learns nothing: train the model that it was made "
                "of, then call refresh(model) on this one",
                UserWarning,
                stacklevel=2,
            )
        return self

    # ---- copies ----

    def __deepcopy__(self: C, memo: dict[int, Any]) -> C:
        made = _restored(type(self), copy.deepcopy(self.source, memo), *copy.deepcopy(self._form(), memo))
        memo[id(self)] = made
        return cast(C, made)

    def __copy__(self: C) -> C:
        """A copy of its own all the same: two could not hold one source."""
        return self.__deepcopy__({})

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
    generation: int  # of the weights: it is for no other
    report: Report
    taken: set[Key] = field(default_factory=set)  # other kinds of inputs that the model took

    def call(self, args: tuple[Any, ...], key: Key) -> Any:
        unit = self.unit
        last = unit.last
        # A graph, which nothing of Python's can change while it runs.
        if self.entry is unit and last is not None and last[1].assembled is not None and unit.settings.recorder is None:
            if unit.size_bound or unit.batch_bound:
                key = unit.key(args)
            return unit.run(args, key)
        MODE.running += 1
        try:
            return self.entry(*args)
        finally:
            MODE.running -= 1


def _has_own_call(kind: type[nn.Module]) -> bool:
    """Whether a class overrides ``__call__``, which the engine must then go through."""
    return any(
        "__call__" in vars(base)
        for base in kind.__mro__
        if not base.__module__.startswith("torch.") and not issubclass(base, fx.GraphModule)
    )


def _restored(
    kind: type[CompiledModel], source: nn.Module, backend: str, budget: float, decisions: dict[str, Decision],
    report: Report,
) -> CompiledModel:  # fmt: skip
    undressed(source)
    made = kind(source, budget, BACKENDS[backend])
    made._decisions.update(decisions)
    made.__dict__["report"] = report
    return made


def _loaded(module: nn.Module, _: Any) -> None:
    """After the children of a compiled part of a larger model are loaded, too."""
    assert isinstance(module, CompiledModel)
    module._stale()


def _differentiated(args: tuple[Any, ...]) -> bool:
    """Whether forward-mode derivatives, or those of torch.func's transforms, are wanted of an input."""
    for x in args:
        if not isinstance(x, Tensor):
            continue
        inner = x
        while torch._C._functorch.is_functorch_wrapped_tensor(inner):
            if torch._C._functorch.is_gradtrackingtensor(inner):
                return True
            inner = torch._C._functorch.get_unwrapped(inner)
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            return True
    return False


def _check_gradients(args: tuple[Any, ...]) -> None:
    for x in args:
        if isinstance(x, Tensor) and x.requires_grad:
            raise Error(
                "compile: input must not require grad, for a compiled model computes no gradients: call it under "
                "torch.no_grad(), or give it x.detach() (to train, use the model that was compiled)"
            )


class _ExampleNotTaken(Error):
    pass


def _not_taken(source: nn.Module, args: tuple[Any, ...]) -> Exception | None:
    """What the model itself raises on the example, if it does."""
    try:
        with torch.no_grad(), in_torch(), state_kept(source):
            source(*clones(args))
    except Exception as own:
        return own
    return None


BACKENDS = {backend.name: backend for backend in (ENGINE, REFERENCE)}
