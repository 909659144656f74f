"""Nested results: copied, compared leaf by leaf, searched for a tracer's objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tolerance:
    """How near a value must be. ``share``: of the largest value; ``norm``: of the norm of all, for integers."""

    share: float = 1e-3
    norm: float | None = None


EXACT = Tolerance()
LOW_PRECISION = Tolerance(0.05)
INTEGER = Tolerance(norm=0.5)
_FEW = 8  # of an int8 network, fewer values than these say nothing by their norm


def children(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a container with their names; None of a leaf."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def copied(value: Any) -> Any:
    """The same with tensors of its own; two names of one tensor stay two names of one."""
    return _copied(value, {})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)][0]
    made = value
    if isinstance(value, Tensor):
        made = value.detach().clone()
    elif isinstance(value, Mapping):
        made = type(value)((key, _copied(part, memo)) for key, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        made = type(value)(*(_copied(part, memo) for part in value))
    elif isinstance(value, tuple | list):
        made = type(value)(_copied(part, memo) for part in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = type(value)(**{f.name: _copied(getattr(value, f.name), memo) for f in dataclasses.fields(value)})
    memo[id(value)] = (made, value)
    return made


@dataclass(frozen=True)
class Difference:
    what: str  # "structure", "shape", "dtype", "value"
    where: str
    want: str
    got: str


def difference(want: Any, got: Any, near: Tolerance, where: str = "") -> Difference | None:
    """The first difference, or None."""
    if is_traced(got):
        return Difference("proxy", where, _words(want), f"a {type(got).__name__}")
    parts = children(want)
    if parts is not None:
        if type(want) is not type(got):
            return Difference("structure", where, type(want).__name__, type(got).__name__)
        others = children(got) or []
        if [name for name, _ in parts] != [name for name, _ in others]:
            return Difference("structure", where, str([n for n, _ in parts]), str([n for n, _ in others]))
        for (name, a), (_, b) in zip(parts, others, strict=True):
            if (found := difference(a, b, near, where + name)) is not None:
                return found
        return None
    if isinstance(want, Tensor):
        return _tensor_difference(want, got, near, where)
    if isinstance(want, float) and isinstance(got, float):
        same = want == got or abs(want - got) <= max(near.share, near.norm or 0) * max(abs(want), 1e-3)
    else:
        same = isinstance(got, type(want)) and (want == got or not isinstance(want, bool | int | str | None))
    return None if same else Difference("value", where, repr(want)[:80], repr(got)[:80])


def _tensor_difference(want: Tensor, got: Any, near: Tolerance, where: str) -> Difference | None:
    if not isinstance(got, Tensor):
        return Difference("structure", where, "Tensor", _words(got))
    if want.shape != got.shape:
        return Difference("shape", where, str(list(want.shape)), str(list(got.shape)))
    if want.dtype != got.dtype:
        return Difference("dtype", where, str(want.dtype), str(got.dtype))
    a, b = want.detach().double(), got.detach().double()
    if near.norm is None:
        bound = near.share * float(a.nan_to_num().abs().max()) + 1e-6 if a.numel() else 0.0
        # A zero weight that is skipped gives no NaN where torch's zero times Inf does: that is no difference here.
        same = bool((torch.isclose(a, b, rtol=0, atol=bound, equal_nan=True) | a.isnan()).all())
    else:
        known = a.isfinite() & b.isfinite()  # bytes hold no NaN
        off, size = float((a - b)[known].norm()), float(a[known].norm())
        same = a.numel() < _FEW or (
            bool(b[a.isfinite()].isfinite().all()) and off <= near.norm * size + 0.02 * known.sum() ** 0.5
        )
    if same:
        return None
    return Difference("value", where, _words(want), f"{_words(got)}, {_off(a, b)}")


def _off(a: Tensor, b: Tensor) -> str:
    share = float((a - b).nan_to_num().abs().max() / a.nan_to_num().abs().max().clamp_min(1e-9))
    return f"off by {share:.2g} of the largest value"


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {[round(float(x), 4) for x in value.detach().flatten()[:4]]}"
    return type(value).__name__


def is_traced(value: Any) -> bool:
    """Whether it is an object of a tracer: a Proxy, a Node, an attribute of one."""
    return type(value).__module__ in ("torch.fx.proxy", "torch.fx.node")


def traced_objects(value: Any, where: str = "", depth: int = 6) -> Iterator[str]:
    """Where a tracer's objects lie in a nested value."""
    if is_traced(value):
        yield where
    elif depth:
        for name, part in children(value) or []:
            yield from traced_objects(part, where + name, depth - 1)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules, those in plain lists and dicts too."""
    found: dict[int, nn.Module] = {}

    def visit(value: Any) -> None:
        if isinstance(value, nn.Module):
            if id(value) not in found:
                found[id(value)] = value
                if not isinstance(value, torch.jit.ScriptModule):
                    visit(dict(value._modules))
                    visit({name: part for name, part in vars(value).items() if not name.startswith("_")})
            return
        for _, part in children(value) or []:
            visit(part)

    visit(model)
    return list(found.values())


def is_foreign(module: nn.Module) -> bool:
    """Whether a module is of torch itself."""
    return type(module).__module__.startswith("torch.")
