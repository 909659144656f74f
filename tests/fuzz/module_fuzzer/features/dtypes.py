"""Parts in another dtype, another memory format, under autocast."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def double_part(s: Scope) -> None:
    v = s.pick()
    s.put(
        f"({v.name}.double().softmax(1) * 2).{s.rng.choice(('float()', f'to({v.name}.dtype)', f'type_as({v.name})'))}",
        v,
    )


@feature("statement")
def double_layer(s: Scope) -> None:
    v = s.pick()
    s.put(
        f"F.relu({s.own(f'nn.Conv2d({v.channels}, {v.channels}, 1).double()', 'conv')}({v.name}.double())).float()", v
    )


@feature("statement")
def bfloat16_part(s: Scope) -> None:
    v = s.pick()
    s.source.low_precision = True
    s.put(f"{v.name}.bfloat16().relu().float() + {v.name}", v)


@feature("statement")
def autocast(s: Scope) -> None:
    v = s.pick()
    s.source.low_precision = True
    w = s.put(v.name, v)
    s.do('with torch.autocast("cpu", torch.bfloat16):', f"    {w.name} = {s.conv(v.channels)}({v.name})")
    s.put(f"{w.name}.float()", v)


@feature("statement")
def no_autocast(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do('with torch.autocast("cpu", enabled=False):', f"    {w.name} = {s.conv(v.channels)}({v.name}.float())")


@feature("statement")
def channels_last_part(s: Scope) -> None:
    v = s.pick()
    w = s.put(f"{v.name}.contiguous(memory_format=torch.channels_last)", v)
    s.put(f"F.relu({s.conv(v.channels)}({w.name}))", v)


@feature("statement")
def index(s: Scope) -> None:
    v = s.pick()
    s.put(f"{v.name}[:, torch.arange({v.channels}).flip(0)]", v)


@feature("statement")
def embedding(s: Scope) -> None:
    v = s.pick()
    table = s.own(f"nn.Embedding(20, {v.channels})", "table")
    s.put(f"{v.name} + 0.5 * {table}(torch.arange({v.name}.shape[3])).t()[None, :, None]", v)


@feature("statement")
def new_tensor(s: Scope) -> None:
    v = s.pick()
    made = s.rng.choice(
        (
            f"{v.name}.new_full((1, {v.channels}, 1, 1), 0.5)",
            f"torch.linspace(0, 1, {v.name}.size(3), device={v.name}.device, dtype={v.name}.dtype)",
            f"torch.ones({v.name}.shape[0], 1, 1, 1)",
        )
    )
    s.put(f"{v.name} + {made}", v)


@feature("statement")
def where(s: Scope) -> None:
    v = s.pick()
    s.put(f"torch.where({v.name} > 0, {v.name}, 0.25 * {s.alike(v).name})", v)
