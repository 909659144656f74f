"""What a module's text is written into: the classes, the functions around them, the values that a forward has."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

#: Images have this many channels.
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Value:
    """A variable of a forward that holds maps ``[N, channels, H, W]``; ``halved``: how often H and W were halved."""

    name: str
    channels: int
    halved: int = 0


@dataclass
class Source:
    """A whole script but for its ``forward``s: what features add to it as they are written."""

    rng: random.Random
    imports: set[str] = field(default_factory=set)
    tops: list[str] = field(default_factory=list)  # classes and functions, in their order
    make: list[str] = field(default_factory=list)  # lines of make(), behind `model = Net()`
    paths: list[str] = field(default_factory=list)  # modules that hooks can hang on
    inputs: list[str] = field(default_factory=lambda: ["images"])  # expressions of inputs(n, h, w)
    keywords: dict[str, str] = field(default_factory=dict)
    prunes: bool = False  # make() prunes by itself
    low_precision: bool = False  # bfloat16 somewhere: rounding shows
    count: int = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def define(self, text: str) -> None:
        """A class or function before the classes that use it."""
        if text not in self.tops:
            self.tops.append(text)


class Scope:
    """One class: what its ``__init__`` and its ``forward`` say so far."""

    def __init__(self, source: Source, first: Value, arguments: str = "x") -> None:
        self.source = source
        self.rng = source.rng
        self.arguments = arguments
        self.init: list[str] = []
        self.body: list[str] = []
        self.methods: list[str] = []
        self.base = "nn.Module"
        self.values = [first]
        self.layers: list[str] = []  # attributes that hold a registered module
        self.result: str | None = None

    # ---- writing ----

    def own(self, expression: str, prefix: str = "m") -> str:
        """An attribute with a module of its own; gives ``self.name``."""
        name = self.source.name(prefix)
        self.init.append(f"self.{name} = {expression}")
        self.layers.append(name)
        return f"self.{name}"

    def plain(self, expression: str, prefix: str) -> str:
        """An attribute that is no module."""
        name = self.source.name(prefix)
        self.init.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def buffer(self, expression: str, prefix: str, persistent: bool = True) -> str:
        name = self.source.name(prefix)
        more = "" if persistent else ", persistent=False"
        self.init.append(f'self.register_buffer("{name}", {expression}{more})')
        return f"self.{name}"

    def do(self, *lines: str) -> None:
        self.body.extend(lines)

    def put(self, expression: str, like: Value, channels: int | None = None, halved: int | None = None) -> Value:
        """A new variable with this value."""
        made = Value(
            self.source.name("v"),
            like.channels if channels is None else channels,
            like.halved if halved is None else halved,
        )
        self.do(f"{made.name} = {expression}")
        self.values.append(made)
        return made

    def local(self) -> str:
        """A name for a value of another kind."""
        return self.source.name("t")

    # ---- reading ----

    def pick(self) -> Value:
        """A value to go on from, the last one likelier than others."""
        back = min(int(self.rng.expovariate(0.9)), len(self.values) - 1)
        return self.values[-1 - back]

    def fresh(self) -> Value:
        """A value that a layer has just made: nobody else holds its memory."""
        v = self.pick()
        return self.put(f"{self.conv(v.channels)}({v.name})", v)

    def alike(self, v: Value) -> Value:
        """A value that can be added to ``v``: another one, if there is one."""
        found = [w for w in self.values if (w.channels, w.halved) == (v.channels, v.halved) and w != v]
        return self.rng.choice(found) if found else v

    def conv(self, channels: int, out: int | None = None, kernel: int | None = None, more: str = "") -> str:
        k = kernel if kernel is not None else self.rng.choice((1, 3, 3))
        padding = f", padding={k // 2}" if k > 1 else ""
        return self.own(f"nn.Conv2d({channels}, {out or channels}, {k}{padding}{more})", "conv")

    # ---- the text ----

    def text(self, name: str) -> str:
        lines = [f"class {name}({self.base}):", "    def __init__(self):", "        super().__init__()"]
        lines += ["        " + line for line in self.init]
        lines += ["", f"    def forward(self, {self.arguments}):"]
        lines += ["        " + line for line in self.body]
        lines += [f"        return {self.result}"]
        for method in self.methods:
            lines += ["", *("    " + line for line in method.splitlines())]
        return "\n".join(lines)
