"""Prune activations: a ReLU's output below its channel's threshold becomes zero.

Definition (the source tutorial's rule, per channel j of a ReLU's output a, over calibration data)::

    theta_j = mean(a_j) - k * std(a_j), never below 0;   at inference  a <- 0 if a < theta_j else a

which at inference is FATReLU (Kurtz et al., ICML 2020) with a threshold per channel.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

from ._errors import Error
from ._relu_sites import FUNCTIONS, needs_rewriting, relu_kind, rewrite, watch
from .calibration import Calibrator, ChannelStatistics, solve
from .criteria import Magnitude, MeanStd
from .nn.threshold_relu import ThresholdReLU
from .report import Column, Report

COLUMNS = (
    Column("layer", "layer", "text"),
    Column("channels", "channels", "count"),
    Column("zeros_before", "zeros % before", "percent"),
    Column("sparsity", "after", "percent"),
    Column("theta_min", "theta min", "number"),
    Column("theta_mean", "mean", "number"),
    Column("theta_max", "max", "number"),
    Column("clamped", "clamped at 0", "count"),
)


def prune_activations(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: MeanStd | Magnitude,
    *,
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> nn.Module:
    """A new model in which every ReLU is a :class:`secateur.nn.ThresholdReLU`, calibrated on ``batches``.

    The given model is left as it is, its mode and its BatchNorm statistics included. All layers are calibrated together
    in one pass, in evaluation mode, on the network without thresholds (existing ``ThresholdReLU`` count as ReLU and are
    calibrated anew). Found and replaced: ``nn.ReLU``, ``nn.ReLU6``, ``F.relu``, ``torch.relu``, ``Tensor.relu``, their
    in-place forms, and ``F.relu6``; a module that is called at several places gets a threshold for each. A module whose
    own forward computes functional ReLUs is traced and becomes a ``torch.fx.GraphModule`` of the same name, with the
    same children, parameters and buffers; every other module keeps its class. The result trains, copies, pickles.

    Args:
        model: any module.
        batches: an iterable of inputs, or of ``(input, target)`` tuples or lists whose first item is the input; inputs
            are moved to the model's device. It is gone through once, so a generator is fine.
        criterion: ``MeanStd(k=...)``; ``MeanStd(sparsity=...)``, which solves k for each layer so that its zeros (those
            that ReLU makes by itself included) reach that fraction; ``Magnitude(sparsity=...)``, which keeps the
            largest, by one threshold a layer, or one for all layers with ``scope="global"``.
        exclude: names or patterns (``*``) of ReLUs to leave alone, as the report prints them.
        progress: show a progress bar.

    Returns:
        The new model; ``.report`` has a row for each layer: channels, zeros before and after on the calibration data,
        the thresholds, and how many of them had to be clamped at 0. Solved thresholds and the zeros after are counted
        from a histogram with logarithmic bins (at most 1/32 of a value wide, interpolated); the notes state the most
        that this can be off by.

    Raises:
        Error: no ReLU was found, no batch came, a batch is no tensor or not what the model takes, an activation is NaN
            or infinite, an ``exclude`` that matches nothing, a criterion of another kind.
    """
    if not isinstance(model, nn.Module):
        raise Error(f"prune_activations: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(criterion, MeanStd | Magnitude):
        raise Error(f"prune_activations: criterion must be MeanStd or Magnitude, got {criterion!r}")
    if not isinstance(exclude, Sequence) or isinstance(exclude, str) or not all(isinstance(p, str) for p in exclude):
        raise Error(f"prune_activations: exclude must be a sequence of names or patterns, got {exclude!r}")
    if not isinstance(batches, Iterable):
        raise Error(f"prune_activations: batches must be an iterable of batches, got {type(batches).__name__}")
    stream = _inputs(model, batches)
    first = next(stream, None)
    if first is None:
        raise Error("prune_activations: batches must hold at least one batch, got none")
    if isinstance(batches, Tensor):
        raise Error("prune_activations: batches must be an iterable of batches, got one tensor: write [tensor]")

    watched = _instrument(model, first, tuple(exclude))
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:
        length = None
    # _instrument has shown the first batch to the calibrators already.
    for batch in tqdm(stream, desc="calibrating", total=length, initial=1, disable=not progress, leave=False):
        with torch.no_grad():
            watched.model(batch)
    return _finish(model, watched, criterion)


def _inputs(model: nn.Module, batches: Iterable[Any]) -> Iterator[Tensor]:
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) and len(batch) > 0 else batch
        if not isinstance(x, Tensor):
            raise Error(
                "prune_activations: a batch must be a tensor, or a tuple or list that starts with one, "
                f"got {type(batch).__name__}"
            )
        yield x if device is None else x.to(device)


@dataclass
class _Watched:
    """A copy of the model with a Calibrator at every ReLU."""

    model: nn.Module
    found: int = 0
    excluded: set[str] = field(default_factory=set)  # names that a pattern of ``exclude`` matched
    unmatched: set[str] = field(default_factory=set)  # patterns that have matched nothing so far
    missed: list[str] = field(default_factory=list)  # why some ReLUs can't be replaced


def _instrument(model: nn.Module, first: Tensor, exclude: tuple[str, ...]) -> _Watched:
    """Find the ReLUs, put calibrators in their place, and run the first batch through them."""
    problem = None
    for trace in (True, False):
        work = copy.deepcopy(model).eval()
        for module in work.modules():
            if isinstance(module, ThresholdReLU):
                module.theta = torch.zeros_like(module.theta)  # calibrate the network as it is without thresholds
        with torch.no_grad(), watch(work) as seen:
            expected = _first_run(work, first)
        watched = _Watched(work, unmatched=set(exclude))
        if problem is not None:
            watched.missed.append(problem)
        _replace_all(watched, seen, exclude, trace)
        if watched.found == 0:
            _refuse(watched)
        with torch.no_grad():
            got = watched.model(first.clone())
        if _same(expected, got):
            if watched.unmatched:
                raise Error(f"prune_activations: exclude must match a ReLU, got {sorted(watched.unmatched)}")
            return watched
        problem = "tracing changed what the model computes, so functional ReLUs were left alone"
    raise Error("prune_activations: model must compute the same twice in evaluation mode, its outputs differ")


def _first_run(model: nn.Module, batch: Tensor) -> Any:
    try:
        return model(batch.clone())
    except Error:
        raise
    except Exception as error:
        got = f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
        raise Error(
            f"prune_activations: batches must be what the model takes, got {got}: {type(error).__name__}: {error}"
        ) from error


def _refuse(watched: _Watched) -> None:
    if watched.excluded:
        raise Error("prune_activations: exclude must leave at least one ReLU, it matches all of them")
    why = "; ".join(watched.missed)
    raise Error("prune_activations: model must compute a ReLU that can be replaced, found none" + (why and f" ({why})"))


def _same(expected: Any, got: Any) -> bool:
    a, b = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) != isinstance(y, Tensor):
            return False
        # The same operations on the same data; a little room for kernels that don't sum in a fixed order (CUDA).
        if isinstance(x, Tensor) and not (
            x.shape == y.shape and torch.allclose(x.float(), y.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
        ):
            return False
    return True


def _replace_all(watched: _Watched, seen: dict[nn.Module, Any], exclude: tuple[str, ...], trace: bool) -> None:
    def make(name: str, limit: float | None, inplace: bool) -> nn.Module:
        patterns = {p for p in exclude if fnmatchcase(name, p)}
        if patterns:
            watched.unmatched -= patterns
            watched.excluded.add(name)
            return nn.ReLU(inplace) if limit is None else nn.ReLU6(inplace)
        watched.found += 1
        return Calibrator(name, limit, inplace)

    work = watched.model
    owners = {m: calls for m, calls in seen.items() if needs_rewriting(m, calls)}
    paths = list(work.named_modules(remove_duplicate=False))
    for path, module in paths:
        if (kind := relu_kind(module)) is not None:
            if any(fnmatchcase(path, p) for p in exclude) and isinstance(module, ThresholdReLU):
                make(path, *kind)  # counts it as excluded; it stays as it is, thresholds and all
                continue
            watched.model = _put(watched.model, path, make(path, *kind))
    # Deepest first: a parent is traced with its children as leaves, whatever has become of them.
    rewritten: dict[nn.Module, nn.Module] = {}
    for path, module in sorted(paths, key=lambda item: -item[0].count(".") if item[0] else 1):
        if module not in owners:
            continue
        if module not in rewritten:
            try:
                if not trace:
                    continue
                rewritten[module] = rewrite(module, path, owners[module], make)
            except Exception as reason:  # whatever a forward may raise when it is given proxies
                watched.missed.append(_cannot(path, module, owners[module], reason))
                rewritten[module] = module
        watched.model = _put(watched.model, path, rewritten[module])
    for path, module in paths:
        if isinstance(module, torch.jit.ScriptModule):
            watched.missed.append(f"{path!r} is scripted: ReLUs inside it can't be found")
        elif module not in owners and _holds_function(module):
            where = f"{path!r} ({type(module).__name__})"
            watched.missed.append(f"{where} holds a functional ReLU that was not seen to run: it stays as it is")


def _holds_function(module: nn.Module) -> bool:
    """An attribute that is F.relu: nn.TransformerEncoderLayer's, whose fast path computes it where nobody can look."""
    return any(value is function for value in vars(module).values() for function in FUNCTIONS)


def _cannot(path: str, module: nn.Module, calls: list[Any], reason: Exception) -> str:
    number = max(c.functional for c in calls)
    what, remedy = "the several calls of one ReLU module", "they share one threshold"
    if number:
        what, remedy = f"{number} functional ReLU call{'s' if number > 1 else ''}", "make them nn.ReLU modules"
    text = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
    return f"{what} in the forward of {where} could not be reached by tracing it ({text}): {remedy}"


def _put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
    return model


def _finish(original: nn.Module, watched: _Watched, criterion: MeanStd | Magnitude) -> nn.Module:
    """Thresholds from what the calibrators saw, ThresholdReLU in their place, the report."""
    sites = {path: m for path, m in watched.model.named_modules() if isinstance(m, Calibrator)}
    usable: dict[str, ChannelStatistics] = {}
    loud = list(watched.missed)
    for path, site in sites.items():
        if site.mixed:
            loud.append(f"{path!r} is called with different numbers of channels: it stays a plain ReLU")
        elif site.statistics is None or site.statistics.count == 0:
            loud.append(f"{path!r} never ran on the calibration data: it stays a plain ReLU")
        else:
            usable[path] = site.statistics
    sequences = [path for path, site in sites.items() if site.sequences and path in usable]
    if sequences:
        loud.append(
            f"3-d activations of {', '.join(sequences)}: the channel is dim 1, as in Conv1d's [N, C, L]; "
            "where a Linear made them, [N, L, C], that is the position: exclude such layers"
        )
    thetas, clamped = _thresholds(usable, criterion)
    idle = [path for path, s in usable.items() if _prunes_nothing(s, thetas[path])]
    if idle:
        loud.append(f"{criterion} prunes nothing in {', '.join(idle)}: ReLU's own zeros are all there is")

    replacement: dict[nn.Module, nn.Module] = {}
    for path, site in sites.items():
        if path in thetas:
            replacement[site] = ThresholdReLU(thetas[path], site.max, site.inplace)
        else:
            replacement[site] = nn.ReLU(site.inplace) if site.max is None else nn.ReLU6(site.inplace)
    for path, module in list(watched.model.named_modules(remove_duplicate=False)):
        if module in replacement:
            watched.model = _put(watched.model, path, replacement[module])

    flags = {name: m.training for name, m in original.named_modules()}
    for name, module in watched.model.named_modules():
        module.training = flags.get(name, watched.model.get_submodule(name.rpartition(".")[0]).training)
    report = _report(usable, thetas, clamped, loud, f"activations: {criterion}")
    watched.model.report = report  # type: ignore[assignment]
    for text in loud:
        warnings.warn(f"prune_activations: {text}", UserWarning, stacklevel=3)
    return watched.model


def _report(
    sites: dict[str, ChannelStatistics], thetas: dict[str, Tensor], clamped: dict[str, int], loud: list[str], title: str
) -> Report:
    rows: list[dict[str, Any]] = []
    sums = {"before": 0.0, "after": 0.0, "off": 0.0}
    values = 0
    for path, s in sites.items():
        theta = thetas[path]
        before, _ = s.zeros_below(torch.zeros_like(s.mean))
        after, off = s.zeros_below(_counting(s, theta))
        rows.append(
            {
                "layer": path,
                "channels": s.channels,
                "values": s.total,
                "zeros_before": before / s.total,
                "sparsity": after / s.total,
                "sparsity_error": off / s.total,
                "theta_min": float(theta.min()),
                "theta_mean": float(theta.mean()),
                "theta_max": float(theta.max()),
                "clamped": clamped[path],
            }
        )
        sums = {"before": sums["before"] + before, "after": sums["after"] + after, "off": sums["off"] + off}
        values += s.total
    notes = list(loud)
    every = sum(clamped.values())
    if every:
        notes.append(f"{every} of the thresholds came out negative and became 0: those channels are plain ReLU")
    if values:
        notes.append(
            "zeros after are counted on the network without thresholds, from a histogram: "
            f"at most {100 * sums['off'] / values:.2g} points off"
        )
    total = {
        "layer": "total",
        "channels": sum(s.channels for s in sites.values()),
        "values": values,
        "zeros_before": sums["before"] / values if values else None,
        "sparsity": sums["after"] / values if values else None,
        "clamped": every,
    }
    return Report(title, COLUMNS, rows, notes, total)


def _counting(statistics: ChannelStatistics, theta: Tensor) -> Tensor:
    """What to count below: a channel that only had one value keeps it, though its threshold is that value."""
    return torch.where(statistics.constant, 0.0, theta.to(torch.float64))


def _prunes_nothing(s: ChannelStatistics, theta: Tensor) -> bool:
    """Whether no positive value can lie below its threshold."""
    return bool((_counting(s, theta) <= s.least_positive).all())


def _thresholds(
    sites: dict[str, ChannelStatistics], criterion: MeanStd | Magnitude
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(theta [C] float32 for each site, how many of them were clamped at 0)."""
    thetas: dict[str, Tensor] = {}
    clamped: dict[str, int] = {}
    common = None
    if isinstance(criterion, Magnitude) and criterion.scope == "global":
        common = _solve_level(list(sites.values()), criterion.sparsity)
    for path, s in sites.items():
        if isinstance(criterion, MeanStd):
            k = criterion.k if criterion.k is not None else _solve_k(s, float(criterion.sparsity or 0))
            theta = s.mean - k * s.std
            theta = torch.where(s.constant, s.maximum, theta)  # mean is that value, but for float64 rounding
        else:
            level = common if common is not None else _solve_level([s], criterion.sparsity)
            theta = torch.full_like(s.mean, level)
        clamped[path] = int((theta < 0).sum())
        thetas[path] = theta.clamp_min(0).to(torch.float32)
    return thetas, clamped


def _solve_k(s: ChannelStatistics, sparsity: float) -> float:
    """The largest k (the fewest pruned) under which the layer's zeros reach ``sparsity``."""
    std = s.std.clamp_min(1e-300)

    def zeros(minus_k: float) -> float:
        return s.zeros_below(_counting(s, (s.mean + minus_k * s.std).clamp_min(0).to(torch.float32)))[0]

    live = ~s.constant
    if not bool(live.any()):
        return 0.0
    low = -float((s.mean / std)[live].max())  # every threshold at or below 0
    high = float(((s.maximum - s.mean) / std)[live].max()) * (1 + 1e-6)  # every threshold at its channel's maximum
    if zeros(low) >= sparsity * s.total:
        return -low
    return -solve(zeros, sparsity * s.total, low, high)


def _solve_level(sites: list[ChannelStatistics], sparsity: float) -> float:
    """The lowest single threshold under which the sites' zeros, taken together, reach ``sparsity``."""

    def zeros(level: float) -> float:
        return sum(s.zeros_below(torch.full_like(s.mean, level))[0] for s in sites)

    wanted = sparsity * sum(s.total for s in sites)
    if zeros(0.0) >= wanted:
        return 0.0
    return solve(zeros, wanted, 0.0, max(float(s.maximum.max()) for s in sites) * (1 + 1e-6))
