"""Writes a module: a script with ``make()``, which gives the model, and ``inputs(n, h, w)``, what it is called with."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .features import FEATURES, of
from .scope import IMAGE_CHANNELS, Scope, Source, Value

IMPORTS = ("import torch", "import torch.nn.functional as F", "from torch import nn")


@dataclass(frozen=True)
class Written:
    """A script, and what it was written with."""

    seed: int
    text: str
    features: frozenset[str]


def write(seed: int) -> Written:
    """The module of this seed, always the same."""
    rng = random.Random(seed)
    source = Source(rng)
    used: set[str] = set()

    def use(name: str, where: Scope | Source) -> None:
        FEATURES[name].write(where)
        used.add(name)

    channels = rng.choice((4, 4, 6, 8))
    statements = rng.sample(of("statement"), rng.randint(4, 8))
    classes = rng.sample(of("class"), rng.choice((0, 1, 1, 2)))
    inputs = rng.choice(of("inputs")) if rng.random() < 0.7 else "one_input"
    net = Scope(source, Value("x", IMAGE_CHANNELS))
    use(inputs, net)
    if inputs != "written_input" and rng.random() < 0.15:
        use("written_input", net)
    stem = net.put(f"{net.conv(IMAGE_CHANNELS, channels, 3)}({net.values[-1].name})", Value("x", channels))
    net.values = [stem]  # images have other channels

    texts: list[str] = []
    blocks = rng.randint(1, 2) if len(statements) > 3 else 1
    share = -(-len(statements) // (blocks + 1))
    for number in range(blocks):
        mine = statements[number * share : (number + 1) * share]
        block = Scope(source, Value("x", channels))
        for name in mine:
            use(name, block)
        if classes and rng.random() < 0.6:
            use(classes.pop(), block)
        block.result = _joined(block)
        name = f"Block{number}"
        if number and rng.random() < 0.4:  # the block before inside this one
            inner = block.own(f"Block{number - 1}()", "inner")
            block.result = f"{inner}({block.result})"
        texts.append(block.text(name))
        halved = _halved(block)
        at = net.own(f"{name}()", "block")
        source.paths += [at[5:], *(f"{at[5:]}.{layer}" for layer in block.layers if _takes_hooks(layer))]
        v = net.pick()
        net.put(f"{at}({v.name})", v, halved=v.halved + halved)
        if halved == 0 and rng.random() < 0.2:
            v = net.values[-1]
            net.put(f"{at}({v.name})", v)  # the same block again
            used.add("block_twice")
    for name in statements[blocks * share :]:
        use(name, net)
    for name in classes:
        use(name, net)
    use("one_activation" if rng.random() < 0.3 else "conv_bn_relu", net)
    use(rng.choice(of("outputs")), net)
    source.paths += filter(_takes_hooks, net.layers)
    for name in rng.sample(of("make"), rng.choice((0, 1, 2, 3))):
        if not (source.prunes and name in ("pruned", "torch_pruned", "zeros_by_hand")):
            use(name, source)
    texts.append(net.text("Net"))
    return Written(seed, _script(source, texts, seed), frozenset(used))


def _takes_hooks(layer: str) -> bool:
    return not layer.startswith(("script", "traced"))


def _halved(block: Scope) -> int:
    assert block.result is not None
    return max(v.halved for v in block.values if v.name in block.result.replace("(", " ").replace(")", " ").split())


def _joined(scope: Scope) -> str:
    """The last value with some of those before it, so that writes into them show."""
    last = scope.values[-1]
    others = [v for v in scope.values[:-1] if (v.channels, v.halved) == (last.channels, last.halved)]
    if not others or scope.rng.random() < 0.3:
        return last.name
    return f"{last.name} + {scope.rng.choice(others).name} * 0.5"


def _script(source: Source, texts: list[str], seed: int) -> str:
    inputs = ", ".join(source.inputs) + ("," if len(source.inputs) == 1 else "")
    make = [
        "def make():",
        f"    torch.manual_seed({seed % 1000})",
        "    model = Net()",
        "    for m in model.modules():",
        "        if isinstance(m, nn.BatchNorm2d):",
        "            m.running_mean.normal_(0, 0.3)",
        "            m.running_var.uniform_(0.5, 1.5)",
        "    model.eval()",
        *("    " + line for line in source.make),
        "    return model",
    ]
    given = [
        "def inputs(n, h, w):",
        "    numbers = torch.Generator().manual_seed(n * 100 + h * 10 + w)",
        f"    images = torch.randn(n, {IMAGE_CHANNELS}, h, w, generator=numbers)",
        f"    return ({inputs})",
    ]
    imports = [*IMPORTS, *sorted(source.imports)]
    notes = ["LOW_PRECISION = True"] if source.low_precision else []
    return (
        "\n\n\n".join(["\n".join([*imports, *notes]), *source.tops, *texts, "\n".join(make), "\n".join(given)]) + "\n"
    )
