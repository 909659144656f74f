"""What a forward leaves behind, and what it finds of the call before."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def kept_feature(s: Scope) -> None:
    v = s.pick()
    name = s.plain("None", "last")
    s.do(f"{name} = {v.name}")


@feature("statement")
def kept_then_written(s: Scope) -> None:
    v = s.fresh()
    name = s.plain("None", "last")
    s.do(f"{name} = {v.name}", f"{s.own('nn.ReLU(inplace=True)', 'relu')}({v.name})")


@feature("statement")
def side_loss(s: Scope) -> None:
    v = s.pick()
    name = s.plain("0.0", "loss")
    s.do(f"{name} = {v.name}.pow(2).mean()")


@feature("statement")
def kept_shape(s: Scope) -> None:
    v = s.pick()
    name = s.plain("(0, 0)", "shape")
    s.do(f"{name} = tuple({v.name}.shape[2:])")


@feature("statement")
def kept_in_dict(s: Scope) -> None:
    v = s.pick()
    name = s.plain("{}", "kept")
    s.do(f'{name}["f"] = {v.name} * 0.5')


@feature("statement")
def kept_in_list(s: Scope) -> None:
    v = s.pick()
    name = s.plain("[]", "seen")
    s.do(f"{name}.append({v.name}.mean())")


@feature("statement")
def kept_on_child(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    w = s.put(f"{conv}({v.name})", v)
    s.do(f"{conv}.last = {w.name}")


@feature("statement")
def replaced_attribute(s: Scope) -> None:
    v = s.pick()
    name = s.plain("torch.ones(1, 1, 1, 1)", "given")
    w = s.put(f"{v.name} + 0.1 * {name}.mean()", v)
    s.do(f"{name} = {w.name}[:1, :1] * 0.1")


@feature("statement")
def counter(s: Scope) -> None:
    v = s.pick()
    name = s.plain("0", "calls")
    s.do(f"{name} += 1")
    s.put(f"{v.name} * (1 + 0.125 * ({name} % 3))", v)


@feature("statement")
def counter_buffer(s: Scope) -> None:
    v = s.pick()
    name = s.buffer("torch.zeros((), dtype=torch.long)", "count", s.rng.random() < 0.5)
    s.do(f"{name} += 1")
    s.put(f"{v.name} + 0.125 * ({name} % 3)", v)


@feature("statement")
def running_mean(s: Scope) -> None:
    v = s.pick()
    name = s.buffer(f"torch.zeros({v.channels})", "mean")
    s.do(f"{name}.mul_(0.5).add_({v.name}.detach().sum((0, 2, 3)) * 0.01)")
    s.put(f"{v.name} - {name}.view(1, -1, 1, 1)", v)


@feature("statement")
def set_buffer(s: Scope) -> None:
    v = s.pick()
    name = s.buffer("torch.zeros(1)", "buf")
    w = s.put(f"{v.name} + 0.1 * {name}.mean()", v)
    s.do(f"{name} = {w.name}.detach()[:1] * 0.1")


@feature("statement")
def cache(s: Scope) -> None:
    v = s.pick()
    name = s.plain("None", "cache")
    made = s.rng.choice(
        (
            f"torch.ones_like({v.name}[:1, :1]).cumsum(2)",
            f"torch.arange({v.name}.shape[3]).float() * 0.1",
            f"torch.full((1, {v.channels}, 1, 1), 0.5)",
        )
    )
    s.do(f"if {name} is None:", f"    {name} = {made}")
    s.put(f"{v.name} + {name} * 0.25", v)


@feature("statement")
def cache_with_test(s: Scope) -> None:
    v = s.pick()
    name = s.plain("None", "grid")
    s.do(
        f"if {name} is None or {name}.shape[-2:] != {v.name}.shape[-2:]:",
        f"    {name} = torch.ones_like({v.name}[:1, :1]).cumsum(3) * 0.1",
    )
    s.put(f"{v.name} + {name}", v)


@feature("statement")
def cache_in_list(s: Scope) -> None:
    v = s.pick()
    name = s.plain("[torch.empty(0)] * 2", "grids")
    s.do(
        f"if {name}[0].shape[-1:] != {v.name}.shape[-1:]:",
        f"    {name}[0] = torch.arange({v.name}.shape[-1]).float() * 0.1",
    )
    s.put(f"{v.name} + {name}[0]", v)


@feature("statement")
def stream(s: Scope) -> None:
    v = s.pick()
    name = s.plain("None", "past")
    w = s.put(f"{v.name} if {name} is None else {v.name} + 0.1 * torch.tanh({name}.mean())", v)
    s.do(f"{name} = {w.name}[:, :, -1:].detach() * 0.5")


@feature("statement")
def clamped_parameter(s: Scope) -> None:
    v = s.pick()
    name = s.plain(f"nn.Parameter(torch.linspace(-1, 2, {v.channels}).view(-1, 1, 1))", "w")
    if s.rng.random() < 0.5:
        s.do(f"{name}.data.clamp_(0, 1)")
    else:
        s.do("with torch.no_grad():", f"    {name}.clamp_(0, 1)")
    s.put(f"{v.name} * {name}", v)


@feature("statement")
def clamped_weight(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    s.do(f"{conv}.weight.data.clamp_(-0.2, 0.2)")
    s.put(f"{conv}({v.name})", v)
