"""``secateur bench MODEL``: dense against sparse for the caller's own model, all in one process, in turn."""

from __future__ import annotations

import copy
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._base import timing
from .._base.errors import Error
from .._base.load import watched
from ..checkpoint import load as load_packed
from ..checkpoint.foreign import plain
from ..checkpoint.tensor_files import kind_of, tensors_of
from ..engine import compile, profile
from ..nn.conversion import convert
from ..pruning.counting import sparsity
from ..pruning.criteria import Magnitude
from ..pruning.prune import prune
from ..report import Column, Report

#: Below this share a model has no zeros worth the name: a freshly initialised one has a handful.
_OWN_ZEROS = 0.01
_DEFAULT_SPARSITY = 0.9

#: What all others are held against.
_EAGER = "torch eager"

_COLUMNS = (
    Column("batch", "batch", "count"),
    Column("engine", "engine", "text"),
    Column("ms", "ms", "ms"),
    Column("ms_min", "at best", "ms"),
    Column("ms_p25", "25 %", "ms"),
    Column("ms_p75", "75 %", "ms"),
    Column("times_eager", "times eager", "text"),
    Column("ready_s", "made in s", "number"),
    Column("difference", "off by", "number"),
)


@dataclass
class Bench:
    """report: one row a batch size and engine. layers: one report a batch size, where asked for."""

    report: Report
    sparsity: float
    layers: list[Report] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.report.to_dict(),
            "sparsity": self.sparsity,
            "layers": [layers.to_dict() for layers in self.layers],
        }


# ---- the model ----


def load(name: str, weights: Path | None = None) -> nn.Module:
    """The model that ``name`` means, filled from ``weights`` if given, in eval mode.

    Args:
        name: ``module:callable``, a file that holds a whole module (torch.save) or an exported program (``.pt2``), or
            a torchvision model's name (its weights random, from a fixed seed).
        weights: a file of :func:`secateur.save`, a safetensors file, or a torch state_dict.

    Raises:
        Error: there is no such model, the file holds none, or the weights do not fit. OSError: a file does not open.
    """
    if ":" in name and not Path(name).exists():
        model = _made(name)
    elif Path(name).suffix or Path(name).exists():
        model = _from_file(Path(name))
    else:
        model = _torchvision(name)
    if weights is not None:
        _fill(model, weights)
    return model.eval()


def _made(name: str) -> nn.Module:
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the working directory, as python -m would find it
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as reason:
        raise Error(f"bench: {name} must be module:callable ({reason})") from reason
    if not callable(make):
        raise Error(f"bench: {name} must be module:callable, got a {type(make).__name__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make()
    if not isinstance(made, nn.Module):
        raise Error(f"bench: {name} must return a torch.nn.Module, got {type(made).__name__}")
    return made


def _torchvision(name: str) -> nn.Module:
    try:
        from torchvision import models  # type: ignore[import-untyped,unused-ignore]
    except ImportError as missing:
        raise Error(
            f"bench: {name} is looked up in torchvision, which is not installed: pip install torchvision, or "
            "give module:callable or a file"
        ) from missing
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the slow initialisation that some have
            torch.manual_seed(0)
            return cast(nn.Module, models.get_model(name, weights=None))
    except ValueError as unknown:
        raise Error(f"bench: torchvision has no model {name!r}, and there is no such file") from unknown


def _from_file(path: Path) -> nn.Module:
    kind = kind_of(path, "bench")
    if kind != "torch":
        raise Error(
            f"bench: {path} holds weights and no model: give the model too, secateur bench module:callable "
            f"--weights {path}"
        )
    try:
        if path.suffix == ".pt2":
            program = torch.export.load(path).module()
            for mode in ("train", "eval"):  # an exported program has no modes and refuses both
                vars(program).pop(mode, None)
            return cast(nn.Module, program)
        found = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as reason:  # whatever the code in the file does
        raise Error(
            f"bench: {path} does not open: {type(reason).__name__}: {reason} (a pickled model needs its own code to "
            "be importable)"
        ) from reason
    if not isinstance(found, nn.Module):
        raise Error(
            f"bench: {path} holds no model but a {type(found).__name__}: if these are its weights, secateur bench "
            f"module:callable --weights {path}"
        )
    return found


def _fill(model: nn.Module, path: Path) -> None:
    if kind_of(path, "bench") == "packed":
        load_packed(path, model)
        return
    try:
        model.load_state_dict(plain(tensors_of(path, "bench"), "bench").tensors)
    except RuntimeError as reason:
        said = " ".join(str(reason).split())
        raise Error(f"bench: {path} must hold the weights of {type(model).__name__}: {said}") from reason


# ---- the measurement ----


def run(
    model: nn.Module, title: str, shape: Sequence[int], batches: Sequence[int], zeros: float | None, seconds: float,
    *, inductor: bool = False, layers: bool = False, say: Callable[[str], None] = lambda text: None,
) -> Bench:  # fmt: skip
    """Prune, make every form of the model, check that they agree, and time them in turn.

    Args:
        model: in eval mode; pruned in place where ``zeros`` says so.
        shape: of one input, without the batch. batches: sizes to time.
        zeros: share of each layer's weights to zero first; None: 0.9 where the model has no zeros of its own.
        seconds: of timing for each batch size.
        inductor: torch.compile takes part. layers: profile too. say: is told what goes on.

    Raises:
        Error: the model does not run on the shape, or a form computes something else.
    """
    notes = []
    own, layered = _zeros(model)
    if zeros is None and not layered:
        notes.append("it holds no layers that could be pruned, as exported programs do: timed as it is")
    elif zeros is None and own < _OWN_ZEROS:
        zeros = _DEFAULT_SPARSITY
        notes.append(f"the model had no zeros: pruned by magnitude, {100 * zeros:g} % of each layer (--sparsity)")
    elif zeros is None:
        notes.append("its own zeros, nothing was pruned (--sparsity)")
    generator = torch.Generator().manual_seed(0)
    examples = {batch: torch.randn(batch, *shape, generator=generator) for batch in batches}
    _runs(model, next(iter(examples.values())))
    if zeros:
        say("pruning")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tied weights and the like do not matter here
            own = prune(model, Magnitude(zeros)).sparsity
    rows: list[dict[str, Any]] = []
    warned: list[str] = []
    reports: list[Report] = []
    for batch, x in examples.items():
        forms = _forms(model, x, inductor, notes, say)
        say(f"batch {batch}: timing")
        contenders = list(forms.values())
        with watched() as machine:
            taken = timing.interleave([form.call for form in contenders], rounds=100_000, budget_s=seconds)
        for (name, form), each in zip(forms.items(), taken, strict=True):
            spread, gain = timing.Spread.of(each), timing.Gain.of(taken[0], each)
            rows.append({
                "batch": batch, "engine": name, "ms": 1e3 * spread.median, "ms_min": 1e3 * spread.least,
                "ms_p25": 1e3 * spread.low, "ms_p75": 1e3 * spread.high, "runs": spread.runs,
                "ratio": gain.ratio, "ratio_low": gain.low, "ratio_high": gain.high,
                "sure": name == _EAGER or gain.sure, "times_eager": "1" if name == _EAGER else str(gain),
                "ready_s": form.ready_s, "difference": form.difference,
            })  # fmt: skip
        if machine.warning is not None:
            warned.append(f"batch {batch}: {machine.warning}")
        if layers:
            reports.append(profile(forms["secateur.compile"].module, x))
            reports[-1].title = f"secateur.compile, batch {batch}, layer by layer"
    say("")
    notes.append("medians of calls in turn; the same weights on all sides; off by: relative to the largest output")
    notes.append("times eager: by the medians, and what the rounds leave possible")
    if not all(row["sure"] for row in rows):
        notes.append("a range alone: the rounds differ by more than what is gained, and no single ratio can be trusted")
    notes += warned
    notes.append(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    return Bench(Report(f"{title}, {100 * own:.1f} % zeros", _COLUMNS, rows, notes), own, reports)


def _zeros(model: nn.Module) -> tuple[float, bool]:
    """Share of zeros in the weights, and whether there are layers that hold them; an exported program has none."""
    report = sparsity(model)
    if len(report):
        return report.sparsity, True
    weights = [p for p in model.parameters() if p.dim() > 1]
    total = sum(w.numel() for w in weights)
    return 1 - sum(int(w.count_nonzero()) for w in weights) / max(total, 1), False


def _runs(model: nn.Module, x: Tensor) -> None:
    try:
        with torch.no_grad():
            model(x)
    except Exception as reason:  # the model is the caller's: it may raise anything
        said = (str(reason).strip().splitlines() or [""])[0]
        raise Error(
            f"bench: the model must run on inputs of --input-shape {','.join(map(str, x.shape[1:]))}: "
            f"{type(reason).__name__}: {said}"
        ) from reason


@dataclass
class _Form:
    """One way to run the model, made ready: ``call`` is what is timed."""

    module: Any
    call: Callable[[], Any]
    ready_s: float
    difference: float = 0.0


class _Maker(NamedTuple):
    """How to make a form ready: the module, and the input as it takes it."""

    make: Callable[[], tuple[Any, Tensor]]
    freezing: bool = False  # torch.compile's, for as long as it compiles
    ours: bool = False  # an error in it is one of this package


def _forms(
    model: nn.Module, x: Tensor, inductor: bool, notes: list[str], say: Callable[[str], None]
) -> dict[str, _Form]:
    """Eager first. Every form is checked against it before anything is timed."""
    makers = {_EAGER: _Maker(lambda: (model, x))}
    if x.dim() == 4:
        last = torch.channels_last
        makers["torch eager, channels_last"] = _Maker(
            lambda: (copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last))
        )
    if inductor:
        makers["torch.compile, freezing"] = _Maker(
            lambda: (torch.compile(copy.deepcopy(model), dynamic=False), x), freezing=True
        )
    makers["secateur.convert"] = _Maker(lambda: (convert(model, x), x), ours=True)
    makers["secateur.compile"] = _Maker(lambda: (compile(model, x), x), ours=True)
    forms: dict[str, _Form] = {}
    with torch.no_grad():
        expected = model(x)
    for name, maker in makers.items():
        say(f"batch {len(x)}: making {name}")
        begin = time.perf_counter()
        try:
            with _freezing(maker.freezing):
                module, own_x = maker.make()
                call = _call(module, own_x)
                found = call()  # torch.compile does its work here
        except Error:
            raise
        except Exception as reason:
            if maker.ours:
                raise
            note = f"{name} cannot run it: {type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0]}"
            if note not in notes:
                notes.append(note)
            continue
        forms[name] = _Form(module, call, time.perf_counter() - begin, _difference(name, expected, found))
    return forms


def _call(module: Any, x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():  # torch's freezing does not support inference_mode
            return module(x)

    return call


@contextmanager
def _freezing(on: bool) -> Iterator[None]:
    """torch.compile treats the weights as constants while it compiles."""
    if not on:
        yield
        return
    import torch._inductor.config as config

    with config.patch(freezing=True):
        yield


def _difference(name: str, expected: Any, found: Any) -> float:
    """Relative to the largest output; an Error where it is more than rounding explains."""
    from torch.utils._pytree import tree_leaves

    pairs = [(a, b) for a, b in zip(tree_leaves(expected), tree_leaves(found), strict=True) if isinstance(a, Tensor)]
    if not pairs:
        raise Error(f"bench: the model must return tensors, got {type(expected).__name__}")
    off = max(float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-12)) for a, b in pairs)
    if not off < 1e-3:
        raise Error(f"bench: {name} must compute what the model does, off by {off:.2g} of the largest output")
    return off
