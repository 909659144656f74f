"""What stands around the forwards: hooks, overridden methods, modes, zeros, scripted parts."""

from __future__ import annotations

from ..scope import Scope, Source
from . import feature

SEEN = "SEEN = []  # what hooks have seen"


@feature("make")
def observing_hook(source: Source) -> None:
    source.define(SEEN)
    for path in source.rng.sample(source.paths, min(2, len(source.paths))):
        source.make.append(f"model.{path}.register_forward_hook(observe)")
    source.define(
        "def observe(module, args, out):\n"
        "    SEEN.append(out.clone() if isinstance(out, torch.Tensor) else type(out).__name__)"
    )


@feature("make")
def holding_hook(source: Source) -> None:
    source.define(SEEN)
    source.define("def hold(module, args, out):\n    SEEN.append(out)")
    source.make.append(f"model.{source.rng.choice(source.paths)}.register_forward_hook(hold)")


@feature("make")
def pre_hook(source: Source) -> None:
    source.define(SEEN)
    source.define(
        "def before(module, args):\n"
        "    SEEN.append(args[0].clone() if isinstance(args[0], torch.Tensor) else len(args[0]))"
    )
    source.make.append(f"model.{source.rng.choice(source.paths)}.register_forward_pre_hook(before)")


@feature("make")
def changing_hook(source: Source) -> None:
    source.define("def change(module, args, out):\n    return out * 0.5 if isinstance(out, torch.Tensor) else None")
    source.make.append(f"model.{source.rng.choice(source.paths)}.register_forward_hook(change)")


@feature("make")
def changing_pre_hook(source: Source) -> None:
    source.define(
        "def shift(module, args):\n"
        "    return (args[0] + 0.25, *args[1:]) if isinstance(args[0], torch.Tensor) else None"
    )
    source.make.append(f"model.{source.rng.choice(source.paths)}.register_forward_pre_hook(shift)")


@feature("make")
def hook_on_whole(source: Source) -> None:
    source.define(SEEN)
    source.define("def whole(module, args, out):\n    SEEN.append(type(out).__name__)")
    source.make.append("model.register_forward_hook(whole)")


@feature("make")
def keeping_hook(source: Source) -> None:
    source.define("def keep(module, args, out):\n    module.out = out")
    source.make.append(f"model.{source.rng.choice(source.paths)}.register_forward_hook(keep)")


@feature("make")
def training(source: Source) -> None:
    source.make.append("model.train()")


@feature("make")
def partly_training(source: Source) -> None:
    source.make += ["model.eval()", f"model.{source.rng.choice(source.paths)}.train()"]


@feature("make")
def frozen(source: Source) -> None:
    source.make.append(f"model.{source.rng.choice(source.paths)}.requires_grad_(False)")


@feature("make")
def pruned(source: Source) -> None:
    source.prunes = True
    source.imports.add("import secateur")
    source.make.append("secateur.prune(model, secateur.Magnitude(0.6))")


@feature("make")
def torch_pruned(source: Source) -> None:
    source.prunes = True
    source.imports.add("import torch.nn.utils.prune")
    name = "l1_unstructured" if source.rng.random() < 0.5 else "random_unstructured"
    source.make[:0] = [  # before channels_last, which it does not take
        "for m in list(model.modules()):",
        "    if type(m) in (nn.Conv2d, nn.Linear):",
        f'        torch.nn.utils.prune.{name}(m, "weight", 0.5)',
    ]


@feature("make")
def zeros_by_hand(source: Source) -> None:
    source.prunes = True
    source.make += [
        "for p in model.parameters():",
        "    if p.dim() > 1:",
        "        p.data.mul_(torch.rand_like(p) > 0.6)",
    ]


@feature("make")
def channels_last_model(source: Source) -> None:
    source.make.append("model = model.to(memory_format=torch.channels_last)")


@feature("make")
def attributes(source: Source) -> None:
    source.make.append('model.names, model.stride, model.cfg = ["a", "b"], torch.tensor([8.0, 16.0]), {"width": 0.5}')


@feature("make")
def weight_norm(source: Source) -> None:
    source.imports.add("import torch.nn.utils.parametrizations")
    convs = [path for path in source.paths if path.rsplit(".", 1)[-1].startswith("conv")]
    source.make.append(f"torch.nn.utils.parametrizations.weight_norm(model.{source.rng.choice(convs)})")


# ---- classes ----


@feature("class")
def train_returns_nothing(s: Scope) -> None:
    s.methods.append("def train(self, mode=True):\n    super().train(mode)")


@feature("class")
def train_freezes(s: Scope) -> None:
    s.methods.append(
        "def train(self, mode=True):\n"
        "    super().train(mode)\n"
        "    for m in self.modules():\n"
        "        if isinstance(m, nn.BatchNorm2d):\n"
        "            m.eval()\n"
        "    return self"
    )


@feature("class")
def own_load_state_dict(s: Scope) -> None:
    s.methods.append(
        "def load_state_dict(self, state_dict, strict=True):\n    return super().load_state_dict(state_dict, strict)"
    )


@feature("class")
def own_getattr(s: Scope) -> None:
    s.methods.append(
        "def __getattr__(self, name):\n"
        "    try:\n"
        "        return super().__getattr__(name)\n"
        "    except AttributeError:\n"
        '        if name == "width":\n'
        "            return 0.5\n"
        "        raise"
    )
    v = s.pick()
    s.put(f"{v.name} * self.width", v)


@feature("class")
def own_call(s: Scope) -> None:
    s.methods.append("def __call__(self, *args, **kwargs):\n    return super().__call__(*args, **kwargs)")


@feature("class")
def own_call_counts(s: Scope) -> None:
    name = s.plain("0", "called")
    s.methods.append(
        f"def __call__(self, *args, **kwargs):\n    {name} += 1\n    return super().__call__(*args, **kwargs)"
    )


@feature("class")
def properties(s: Scope) -> None:
    s.methods.append("@property\ndef factor(self):\n    return 0.5 if self.training else 0.75")
    v = s.pick()
    s.put(f"{v.name} * self.factor", v)


@feature("class")
def length(s: Scope) -> None:
    s.methods.append("def __len__(self):\n    return 0")


@feature("class")
def forward_of_instance(s: Scope) -> None:
    s.methods.append("def forward_(self, *args, **kwargs):\n    return type(self).forward(self, *args, **kwargs)")
    s.init.append("self.forward = self.forward_")


@feature("class")
def training_branch(s: Scope) -> None:
    v = s.pick()
    w = s.put(v.name, v)
    s.do("if self.training:", f"    {w.name} = {w.name} + 1.0")


# ---- TorchScript ----


@feature("statement")
def scripted(s: Scope) -> None:
    s.source.define("class Swish(nn.Module):\n    def forward(self, x):\n        return x * torch.sigmoid(x)")
    v = s.pick()
    s.put(f"{s.own('torch.jit.script(Swish())', 'script')}({v.name})", v)


@feature("statement")
def scripted_layer(s: Scope) -> None:
    s.source.define(
        "class Block(nn.Module):\n"
        "    def __init__(self, c: int):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(c, c, 3, padding=1)\n"
        "\n"
        "    def forward(self, x):\n"
        "        if bool(x.mean() > 1000.0):\n"
        "            x = x * 0.5\n"
        "        return torch.relu(self.conv(x))"
    )
    v = s.pick()
    s.put(f"{s.own(f'torch.jit.script(Block({v.channels}))', 'script')}({v.name})", v)


@feature("statement")
def traced_part(s: Scope) -> None:
    v = s.pick()
    part = f"nn.Sequential(nn.Conv2d({v.channels}, {v.channels}, 1), nn.ReLU())"
    s.put(f"{s.own(f'torch.jit.trace({part}.eval(), torch.rand(1, {v.channels}, 4, 4))', 'traced')}({v.name})", v)
