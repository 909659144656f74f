"""Layers and what stands between them."""

from __future__ import annotations

from ..scope import Scope
from . import feature

ACTIVATIONS = (
    "nn.ReLU()",
    "nn.ReLU6()",
    "nn.SiLU()",
    "nn.Hardswish()",
    "nn.LeakyReLU(0.1)",
    "nn.GELU()",
    "nn.Sigmoid()",
)


@feature("statement")
def conv_bn_relu(s: Scope) -> None:
    v = s.pick()
    conv = s.conv(v.channels, more=", bias=False")
    v = s.put(f"{s.own(f'nn.BatchNorm2d({v.channels})', 'bn')}({conv}({v.name}))", v)
    s.put(f"{s.own('nn.ReLU()', 'relu')}({v.name})", v)


@feature("statement")
def depthwise(s: Scope) -> None:
    v = s.pick()
    s.put(f"F.relu6({s.conv(v.channels, kernel=3, more=f', groups={v.channels}')}({v.name}))", v)


@feature("statement")
def grouped(s: Scope) -> None:
    v = s.pick()
    s.put(f"F.relu({s.conv(v.channels, more=', groups=2')}({v.name}))", v)


@feature("statement")
def odd_conv(s: Scope) -> None:
    v = s.pick()
    more = s.rng.choice(
        (
            "(3, 1), padding=(1, 0)",
            "3, padding=2, dilation=2",
            "3, padding='same'",
            "3, padding=1, padding_mode='circular'",
        )
    )
    s.put(f"torch.tanh({s.own(f'nn.Conv2d({v.channels}, {v.channels}, {more})', 'conv')}({v.name}))", v)


@feature("statement")
def strided(s: Scope) -> None:
    v = s.pick()
    if v.halved:
        return conv_bn_relu(s)
    conv = s.own(f"nn.Conv2d({v.channels}, {v.channels}, 3, stride=2, padding=1)", "conv")
    s.put(f"F.relu({conv}({v.name}))", v, halved=v.halved + 1)


@feature("statement")
def pool(s: Scope) -> None:
    v = s.pick()
    if s.rng.random() < 0.5:
        s.put(f"{s.own(s.rng.choice(('nn.MaxPool2d', 'nn.AvgPool2d')) + '(3, 1, 1)', 'pool')}({v.name})", v)
    else:
        s.put(f"{v.name} + F.adaptive_avg_pool2d({v.name}, 1)", v)


@feature("statement")
def upsample(s: Scope) -> None:
    v = s.pick()
    mode = s.rng.choice(('mode="nearest"', 'mode="bilinear", align_corners=False'))
    s.put(f"F.avg_pool2d(F.interpolate({v.name}, scale_factor=2, {mode}), 2)", v)


@feature("statement")
def activation(s: Scope) -> None:
    v = s.fresh()
    s.put(f"{s.own(s.rng.choice(ACTIVATIONS), 'act')}({v.name})", v)


@feature("statement")
def gate(s: Scope) -> None:
    v = s.pick()
    fc = s.own(f"nn.Linear({v.channels}, {v.channels})", "fc")
    s.put(f"{v.name} * torch.sigmoid({fc}({v.name}.mean((2, 3))))[:, :, None, None]", v)


@feature("statement")
def norms(s: Scope) -> None:
    v = s.pick()
    norm = s.rng.choice((f"nn.GroupNorm(2, {v.channels})", f"nn.BatchNorm2d({v.channels}, affine=False)"))
    s.put(f"{s.own(norm, 'norm')}({v.name})", v)


@feature("statement")
def tokens(s: Scope) -> None:
    v, t = s.pick(), s.local()
    ln, fc = s.own(f"nn.LayerNorm({v.channels})", "ln"), s.own(f"nn.Linear({v.channels}, {v.channels})", "fc")
    s.do(f"{t} = {v.name}.flatten(2).transpose(1, 2)", f"{t} = {t} + F.relu({fc}({ln}({t})))")
    s.put(f"{t}.transpose(1, 2).reshape({v.name}.shape)", v)


@feature("statement")
def pixel_shuffle(s: Scope) -> None:
    v = s.pick()
    s.put(f"F.max_pool2d(F.pixel_shuffle({s.conv(v.channels, 4 * v.channels)}({v.name}), 2), 2)", v)


@feature("statement")
def pad(s: Scope) -> None:
    v = s.pick()
    conv = s.own(f"nn.Conv2d({v.channels}, {v.channels}, 3)", "conv")
    s.put(f"F.relu({conv}(F.pad({v.name}, (1, 1, 1, 1))))", v)


@feature("statement")
def concat(s: Scope) -> None:
    v = s.pick()
    w = s.alike(v)
    wide = s.put(f"torch.cat([{v.name}, {w.name}], 1)", v, channels=2 * v.channels)
    s.values.pop()
    s.put(f"F.relu({s.conv(wide.channels, v.channels)}({wide.name}))", v)


@feature("statement")
def residual(s: Scope) -> None:
    v = s.pick()
    y = s.put(f"{s.conv(v.channels)}({v.name})", v)
    s.put(f"{s.own('nn.ReLU()', 'relu')}({y.name} + {s.alike(v).name})", v)


@feature("statement")
def attention(s: Scope) -> None:
    v, t = s.pick(), s.local()
    s.do(f"{t} = {v.name}.flatten(2)")
    mixed = f"torch.softmax({t} @ {t}.transpose(1, 2) / 16, -1)"
    s.put(f"({mixed} @ {t}).view_as({v.name}) + {v.name}", v)


@feature("statement")
def dropout(s: Scope) -> None:
    v = s.pick()
    if s.rng.random() < 0.5:
        s.put(f"{s.own('nn.Dropout(0.3)', 'drop')}({v.name})", v)
    else:
        s.put(f"F.dropout({v.name}, 0.3, training=self.training)", v)


@feature("statement")
def parameter(s: Scope) -> None:
    v = s.pick()
    name = s.plain(f"nn.Parameter(torch.linspace(0.5, 1.5, {v.channels}).view(-1, 1, 1))", "scale")
    s.put(f"{v.name} * {name}", v)
