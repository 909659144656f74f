"""Modules and weights that stand at several places, and modules in Python's own containers."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def called_twice(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    s.put(f"F.relu({conv}(torch.tanh({conv}({v.name}))))", v)


@feature("statement")
def one_activation(s: Scope) -> None:
    v = s.pick()
    relu = s.own(s.rng.choice(("nn.ReLU()", "nn.ReLU(inplace=True)")), "relu")
    v = s.put(f"{relu}({s.conv(v.channels)}({v.name}))", v)
    s.put(f"{relu}({s.conv(v.channels)}({v.name}))", v)


@feature("statement")
def two_names(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    other = s.own(conv, "other")
    s.put(f"F.relu({other}(torch.tanh({conv}({v.name}))))", v)


@feature("statement")
def tied(s: Scope) -> None:
    v = s.pick()
    a, b = s.conv(v.channels, kernel=3), s.conv(v.channels, kernel=3)
    s.init.append(f"{b}.weight = {a}.weight")
    s.put(f"{b}(F.relu({a}({v.name})))", v)


@feature("statement")
def tied_by_function(s: Scope) -> None:
    v, t = s.pick(), s.local()
    fc = s.own(f"nn.Linear({v.channels}, {v.channels})", "fc")
    s.do(f"{t} = F.relu({fc}({v.name}.mean((2, 3))))", f"{t} = F.linear({t}, {fc}.weight.t())")
    s.put(f"{v.name} + {t}[:, :, None, None]", v)


@feature("statement")
def weight_read(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    s.put(f"{conv}({v.name}) * {conv}.{s.rng.choice(('weight.abs().mean()', 'bias.mean().exp()'))}", v)


@feature("statement")
def functional_conv(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels, kernel=3)
    s.put(f"F.conv2d({v.name}, {conv}.weight, {conv}.bias, padding=1) + {conv}({v.name})", v)


@feature("statement")
def plain_list(s: Scope) -> None:
    v, n = s.pick(), s.source.name("steps")
    s.init += [f"self.{n} = []", "for i in range(2):"]
    s.init += [f"    conv, act = nn.Conv2d({v.channels}, {v.channels}, 3, padding=1), nn.ReLU()"]
    s.init += [f'    setattr(self, f"{n}_conv{{i}}", conv)', f"    self.{n}.append((conv, act))"]
    w = s.put(f"{v.name}", v)
    s.do(f"for conv, act in self.{n}:", f"    {w.name} = act(conv({w.name}))")


@feature("statement")
def plain_dict(s: Scope) -> None:
    v = s.pick()
    made = s.plain(f'{{"c": nn.Conv2d({v.channels}, {v.channels}, 1), "r": nn.ReLU()}}', "parts")
    s.put(f'{made}["r"]({made}["c"]({v.name}))', v)


@feature("statement")
def plain_tuple(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels)
    made = s.plain(f"({conv}, F.relu, nn.ReLU(inplace=True))", "pair")
    s.put(f"{made}[2]({made}[1]({made}[0]({v.name})) - 0.1)", v)


@feature("statement")
def module_list(s: Scope) -> None:
    v = s.pick()
    made = s.own(f"nn.ModuleList([nn.Conv2d({v.channels}, {v.channels}, 1), nn.ReLU()])", "blocks")
    w = s.put(v.name, v)
    s.do(f"for m in {made}:", f"    {w.name} = m({w.name})")


@feature("statement")
def module_dict(s: Scope) -> None:
    v = s.pick()
    made = s.own(
        f'nn.ModuleDict({{"a": nn.Conv2d({v.channels}, {v.channels}, 3, padding=1), "b": nn.SiLU()}})', "parts"
    )
    s.put(f'{made}["b"]({made}["a"]({v.name}))', v)


@feature("statement")
def sequential_slice(s: Scope) -> None:
    v, c = s.pick(), s.pick().channels
    c = v.channels
    made = s.own(f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c}), nn.ReLU(inplace=True))", "seq")
    w = s.put(f"{made}[:2]({v.name})", v)
    s.put(f"{made}[2]({w.name})", v)


@feature("statement")
def list_edited(s: Scope) -> None:
    s.source.define(
        "class Detect(nn.Module):\n"
        "    def __init__(self, a, b):\n"
        "        super().__init__()\n"
        "        self.m = nn.ModuleList([nn.Conv2d(a, a, 1), nn.Conv2d(b, b, 1)])\n"
        "\n"
        "    def forward(self, x):\n"
        "        for i in range(2):\n"
        "            x[i] = self.m[i](x[i])\n"
        "        return x"
    )
    v = s.pick()
    w, t = s.alike(v), s.local()
    s.do(f"{t} = [{v.name}, {w.name}]")
    detect = s.own(f"Detect({v.channels}, {w.channels})", "detect")
    if s.rng.random() < 0.5:
        s.do(f"{detect}({t})")
        s.put(f"F.relu({t}[0]) + {t}[1]", v)
    else:
        s.put(f"torch.add(*{detect}({t}))", v)


@feature("statement")
def passed_module(s: Scope) -> None:
    s.source.define("def run(module, x, act=None):\n    y = module(x)\n    return y if act is None else act(y)")
    v = s.pick()
    s.put(f"run({s.conv(v.channels)}, {v.name}, act={s.own('nn.ReLU()', 'relu')})", v)
