"""What a network takes. ``images`` is the tensor that ``inputs(n, h, w)`` of the script has made."""

from __future__ import annotations

from ..scope import IMAGE_CHANNELS, Scope
from . import feature


@feature("inputs")
def one_input(s: Scope) -> None:
    pass


@feature("inputs")
def two_inputs(s: Scope) -> None:
    s.arguments = "x, other"
    s.source.inputs = ["images", "images.flip(0) * 0.5"]
    s.put("x + other.mean(1, keepdim=True)", s.values[0])


@feature("inputs")
def optional_input(s: Scope) -> None:
    s.arguments = "x, mask=None, scale=1.0"
    if s.rng.random() < 0.5:
        s.source.inputs = ["images", "images[:, :1].sigmoid()"]
    v = s.put("x * scale", s.values[0])
    s.do("if mask is not None:", f"    {v.name} = {v.name} * mask")


@feature("inputs")
def flag_input(s: Scope) -> None:
    s.arguments = "x, flip=False"
    if s.rng.random() < 0.5:
        s.source.inputs = ["images", "True"]
    s.put("x.flip(3) if flip else x", s.values[0])


@feature("inputs")
def list_input(s: Scope) -> None:
    s.arguments = "xs"
    s.source.inputs = ["[images, images * 0.5]"]
    s.do("x = torch.stack(xs).sum(0)")


@feature("inputs")
def image_list(s: Scope) -> None:
    s.arguments = "images"
    s.source.inputs = ["list(images)"]
    s.do("x = torch.stack([image * 0.5 for image in images])")


@feature("inputs")
def dict_input(s: Scope) -> None:
    s.arguments = "batch"
    s.source.inputs = ['{"image": images, "scale": 0.5}']
    s.do('x = batch["image"] * batch["scale"]')


@feature("inputs")
def variadic_input(s: Scope) -> None:
    s.arguments = "*xs"
    s.source.inputs = ["images", "images * 0.5"]
    s.do("x = xs[0] + xs[1]")


@feature("inputs")
def keyword_only_input(s: Scope) -> None:
    s.arguments = "x, *, bias=0.25"
    s.put("x + bias", s.values[0])


@feature("inputs")
def index_input(s: Scope) -> None:
    s.arguments = "x, label"
    s.source.inputs = ["images", "torch.arange(n) % 5"]
    table = s.own(f"nn.Embedding(5, {IMAGE_CHANNELS})", "table")
    s.put(f"x + {table}(label)[:, :, None, None]", s.values[0])


@feature("inputs")
def double_input(s: Scope) -> None:
    s.source.inputs = ["images.double()"]
    s.do("x = x.float()")


@feature("inputs")
def byte_input(s: Scope) -> None:
    s.source.inputs = ["(images * 40 + 128).clamp(0, 255).byte()"]
    s.do("x = (x.float() - 128) / 40")


@feature("inputs")
def channels_last_input(s: Scope) -> None:
    s.source.inputs = ["images.to(memory_format=torch.channels_last)"]


@feature("inputs")
def written_input(s: Scope) -> None:
    s.do(s.rng.choice(("x.mul_(0.5)", "x += 0.25", "x[:, 0] = 0.5", "F.relu(x, inplace=True)")))
