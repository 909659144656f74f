"""What a network gives."""

from __future__ import annotations

from ..scope import Scope, Value
from . import feature


def _logits(s: Scope, v: Value) -> str:
    fc = s.own(f"nn.Linear({v.channels}, 5)", "fc")
    pooled = s.rng.choice((f"{v.name}.mean((2, 3))", f"F.adaptive_avg_pool2d({v.name}, 1).flatten(1)"))
    return f"{fc}({pooled})"


@feature("outputs")
def map_output(s: Scope) -> None:
    s.result = s.values[-1].name


@feature("outputs")
def logits(s: Scope) -> None:
    s.result = _logits(s, s.values[-1])


@feature("outputs")
def squeezed_logits(s: Scope) -> None:
    v, t = s.values[-1], s.local()
    fc, pool = s.own(f"nn.Linear({v.channels}, 5)", "fc"), s.own("nn.AdaptiveAvgPool2d(1)", "pool")
    s.do(f"{t} = {pool}({v.name}).squeeze()")
    s.result = f"{fc}({t})"


@feature("outputs")
def tuple_output(s: Scope) -> None:
    s.result = f"({_logits(s, s.values[-1])}, {s.pick().name}, {s.pick().name})"


@feature("outputs")
def list_output(s: Scope) -> None:
    s.result = f"[{s.values[-1].name}, {s.pick().name}.mean((2, 3))]"


@feature("outputs")
def dict_output(s: Scope) -> None:
    s.result = f'{{"out": {_logits(s, s.values[-1])}, "features": {s.pick().name}}}'


@feature("outputs")
def ordered_dict_output(s: Scope) -> None:
    s.source.imports.add("from collections import OrderedDict")
    s.result = f"OrderedDict(out={_logits(s, s.values[-1])}, aux={s.pick().name} * 2)"


@feature("outputs")
def dataclass_output(s: Scope) -> None:
    s.source.imports.add("from dataclasses import dataclass")
    s.source.define("@dataclass\nclass Out:\n    logits: torch.Tensor\n    features: torch.Tensor = None")
    s.result = f"Out({_logits(s, s.values[-1])}{s.rng.choice(('', f', features={s.pick().name}'))})"


@feature("outputs")
def namedtuple_output(s: Scope) -> None:
    s.source.imports.add("from collections import namedtuple")
    s.source.define('Out = namedtuple("Out", ["logits", "features"])')
    s.result = f"Out({_logits(s, s.values[-1])}, {s.pick().name})"


@feature("outputs")
def nested_output(s: Scope) -> None:
    s.result = (
        f'{{"maps": [{s.values[-1].name}, ({s.pick().name}, None)], "size": {s.pick().name}.shape[2], "name": "net"}}'
    )


@feature("outputs")
def input_given_back(s: Scope) -> None:
    s.result = f"({_logits(s, s.values[-1])}, x)"


@feature("outputs")
def same_value_twice(s: Scope) -> None:
    v = s.values[-1]
    s.result = f"({v.name}, {v.name}.flatten(1), {v.name})"
