"""Forwards that decide, loop and call."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def if_size(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do(f"if {v.name}.shape[2] > {8 >> v.halved}:", f"    {w.name} = F.relu({s.conv(v.channels)}({w.name}))")


@feature("statement")
def if_batch(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do(f"if {v.name}.{s.rng.choice(('shape[0]', 'size(0)'))} == 1:", f"    {w.name} = {w.name} * 2")


@feature("statement")
def if_flag(s: Scope) -> None:
    v = s.pick()
    flag = s.plain(s.rng.choice(("True", "False")), "flag")
    w = s.put(v.name, v)
    s.do(f"if {flag}:", f"    {w.name} = {s.conv(v.channels)}({w.name})", "else:", f"    {w.name} = {w.name} - 0.5")


@feature("statement")
def if_value(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do(f"if {s.rng.choice(('float', 'bool'))}({v.name}.abs().sum() > 1e9):", f"    {w.name} = {w.name} * 0.5")


@feature("statement")
def loop(s: Scope) -> None:
    v = s.pick()
    times = s.plain(str(s.rng.choice((1, 2, 3))), "times")
    conv = s.conv(v.channels)
    w = s.put(v.name, v)
    s.do(f"for i in range({times}):", f"    {w.name} = F.relu({conv}({w.name})) * (0.5 + 0.25 * i)")


@feature("statement")
def shape_arithmetic(s: Scope) -> None:
    v = s.pick()
    s.put(f"{v.name} * ({v.name}.shape[2] * {v.name}.shape[3]) ** -0.5 + {v.name}", v)


@feature("statement")
def early_return(s: Scope) -> None:
    v = s.values[0]
    s.do(f"if {v.name}.shape[-1] == 7:", f"    return {v.name} * 0.5")


@feature("statement")
def assertion(s: Scope) -> None:
    v = s.pick()
    s.do(f"assert {v.name}.dim() == 4 and {v.name}.shape[1] == {v.channels}")


@feature("statement")
def helper_method(s: Scope) -> None:
    v, name = s.pick(), s.source.name("part")
    s.methods.append(f"def {name}(self, x, scale=0.5):\n    return F.relu({s.conv(v.channels)}(x)) * scale")
    s.put(f"self.{name}({v.name}{s.rng.choice(('', ', scale=2.0'))})", v)


@feature("statement")
def no_grad(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do("with torch.no_grad():", f"    {w.name} = {s.conv(v.channels)}({v.name}) + 1")


@feature("statement")
def checkpointed(s: Scope) -> None:
    v = s.pick()
    s.source.imports.add("import torch.utils.checkpoint")
    s.put(f"torch.utils.checkpoint.checkpoint({s.conv(v.channels)}, {v.name}, use_reentrant=False)", v)


@feature("statement")
def comprehension(s: Scope) -> None:
    v = s.pick()
    s.put(f"sum(t * (i + 1) for i, t in enumerate([{v.name}, {s.alike(v).name}])) * 0.5", v)


@feature("statement")
def optional_argument(s: Scope) -> None:
    s.source.define(
        "class Mix(nn.Module):\n"
        "    def __init__(self, c):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(c, c, 1)\n"
        "\n"
        "    def forward(self, x, skip=None, *, scale=1.0):\n"
        "        y = self.conv(x) * scale\n"
        "        return y if skip is None else F.relu(y) + skip"
    )
    v = s.pick()
    more = s.rng.choice(("", f", {s.alike(v).name}", f", skip={s.alike(v).name}", ", scale=0.5"))
    s.put(f"{s.own(f'Mix({v.channels})', 'mix')}({v.name}{more})", v)


@feature("statement")
def inherited_forward(s: Scope) -> None:
    s.source.define(
        "class Base(nn.Module):\n"
        "    def __init__(self, c):\n"
        "        super().__init__()\n"
        "        self.conv, self.relu = nn.Conv2d(c, c, 3, padding=1), nn.ReLU()\n"
        "\n"
        "    def forward(self, x):\n"
        "        return self.relu(self.conv(x))\n\n\n"
        "class Derived(Base):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) + x"
    )
    v = s.pick()
    s.put(f"{s.own(f'Derived({v.channels})', 'derived')}({v.name})", v)


@feature("statement")
def returns_dict(s: Scope) -> None:
    s.source.define(
        "class Pair(nn.Module):\n"
        "    def __init__(self, c):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)\n"
        "\n"
        "    def forward(self, x):\n"
        '        return {"a": F.relu(self.a(x)), "b": self.b(x)}'
    )
    v, t = s.pick(), s.local()
    s.do(f"{t} = {s.own(f'Pair({v.channels})', 'pair')}({v.name})")
    s.put(f'{t}["a"] + {t}["b"]', v)
