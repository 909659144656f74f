"""Writes into a value that is read again: every value stays in reach of what comes later."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def relu_inplace(s: Scope) -> None:
    v = s.fresh()
    s.put(f"{s.own('nn.ReLU(inplace=True)', 'relu')}({v.name})", v)


@feature("statement")
def preactivation(s: Scope) -> None:
    v = s.pick()
    v = s.put(f"{v.name} * 0.8", v)
    y = s.put(f"{s.conv(v.channels)}({s.own('nn.ReLU(inplace=True)', 'relu')}({v.name}))", v)
    s.put(f"{y.name} + {v.name}", v)


@feature("statement")
def relu_nobody_takes(s: Scope) -> None:
    v = s.fresh()
    s.do(f"{s.own('nn.ReLU(inplace=True)', 'relu')}({v.name})")


@feature("statement")
def functional_nobody_takes(s: Scope) -> None:
    v = s.fresh()
    s.do(
        s.rng.choice(
            (
                f"F.relu_({v.name})",
                f"F.relu({v.name}, inplace=True)",
                f"{v.name}.relu_()",
                f"torch.relu_({v.name})",
                f"F.silu({v.name}, inplace=True)",
                f"F.leaky_relu_({v.name}, 0.1)",
            )
        )
    )


@feature("statement")
def functional_inplace(s: Scope) -> None:
    v = s.fresh()
    s.put(s.rng.choice((f"F.relu({v.name}, inplace=True)", f"F.hardtanh({v.name}, -1.0, 1.0, True)")), v)


@feature("statement")
def iadd(s: Scope) -> None:
    v = s.fresh()
    s.do(f"{v.name} {s.rng.choice(('+=', '-=', '*='))} {s.alike(v).name}")


@feature("statement")
def clamp_(s: Scope) -> None:
    v = s.fresh()
    s.do(f"{v.name}.{s.rng.choice(('clamp_(max=1)', 'clamp_(-0.5, 0.5)', 'clamp_min_(-0.2)'))}")


@feature("statement")
def mul_(s: Scope) -> None:
    v = s.fresh()
    s.do(f"{v.name}.{s.rng.choice(('mul_(0.5)', 'add_(1.0)', 'sub_(0.25)', 'neg_()', 'div_(2.0)', 'sigmoid_()'))}")


@feature("statement")
def mul_taken(s: Scope) -> None:
    v = s.fresh()
    s.put(f"{v.name}.{s.rng.choice(('mul_(0.5)', 'add_(0.5)', 'tanh_()'))}", v)


@feature("statement")
def setitem(s: Scope) -> None:
    v = s.fresh()
    s.do(
        s.rng.choice(
            (
                f"{v.name}[:, 0] = 0.5",
                f"{v.name}[:, ::2] *= 2",
                f"{v.name}[..., 0] = {v.name}[..., 1]",
                f"{v.name}[:, 1:3] = {v.name}[:, :2].relu()",
            )
        )
    )


@feature("statement")
def masked_fill(s: Scope) -> None:
    v = s.fresh()
    s.do(f"{v.name}.masked_fill_(torch.arange({v.name}.shape[-1]) == 1, 0.25)")


@feature("statement")
def copy_(s: Scope) -> None:
    v = s.pick()
    w = s.put(f"torch.empty_like({v.name})", v)
    s.do(f"{w.name}.copy_({v.name})", f"{w.name}.mul_(0.5)")


@feature("statement")
def kept_before_write(s: Scope) -> None:
    v, t = s.fresh(), s.local()
    s.do(f"{t} = [{v.name}]", f"{s.own('nn.ReLU(True)', 'relu')}({v.name})")
    s.put(f"{t}[0] * 1.5", v)
