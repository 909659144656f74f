"""Views, read and written through."""

from __future__ import annotations

from ..scope import Scope
from . import feature


@feature("statement")
def chunk(s: Scope) -> None:
    v, a, b = s.pick(), s.local(), s.local()
    s.do(f"{a}, {b} = {v.name}.chunk(2, {s.rng.choice(('1', 'dim=1'))})")
    s.put(f"torch.cat([{b}, F.relu({a})], 1)", v)


@feature("statement")
def split(s: Scope) -> None:
    v, a, b = s.pick(), s.local(), s.local()
    sizes = s.rng.choice((str(v.channels // 2), f"[1, {v.channels - 1}]"))
    s.do(f"{a}, {b} = torch.split({v.name}, {sizes}, 1)")
    s.put(f"torch.cat([{b} * 0.5, {a}], 1)", v)


@feature("statement")
def slices(s: Scope) -> None:
    v = s.pick()
    s.put(f"torch.cat([{v.name}[:, 1:], {v.name}[:, :1]], 1)", v)


@feature("statement")
def permute(s: Scope) -> None:
    v, t = s.pick(), s.local()
    fc = s.own(f"nn.Linear({v.channels}, {v.channels})", "fc")
    s.do(f"{t} = {fc}({v.name}.permute(0, 2, 3, 1))")
    s.put(f"{t}.permute(0, 3, 1, 2)" + s.rng.choice(("", ".contiguous()")), v)


@feature("statement")
def reshape(s: Scope) -> None:
    v, n, c, h, w = s.pick(), *(s.local() for _ in range(4))
    s.do(f"{n}, {c}, {h}, {w} = {v.name}.{s.rng.choice(('shape', 'size()'))}")
    s.put(f"{v.name}.reshape({n}, 2, {c} // 2, {h}, {w}).transpose(1, 2).reshape({n}, {c}, {h}, {w})", v)


@feature("statement")
def expand(s: Scope) -> None:
    v = s.pick()
    s.put(f"{v.name} + {v.name}.mean(1, keepdim=True).expand(-1, {v.channels}, -1, -1)", v)


@feature("statement")
def squeeze(s: Scope) -> None:
    v, t = s.pick(), s.local()
    s.do(f"{t} = {v.name}.mean((2, 3), keepdim=True).squeeze()")
    s.put(f"{v.name} * {t}.reshape({v.name}.shape[0], -1, 1, 1)", v)


@feature("statement")
def unbind(s: Scope) -> None:
    v = s.pick()
    s.put(f"torch.stack([t * 0.5 for t in {v.name}.unbind(1)], 1)", v)


@feature("statement")
def written_view(s: Scope) -> None:
    v, a, b = s.fresh(), s.local(), s.local()
    take = s.rng.choice(
        (f"{v.name}.chunk(2, 1)", f"{v.name}[:, :2], {v.name}[:, 2:]", f"{v.name}.split({v.channels // 2}, 1)")
    )
    s.do(f"{a}, {b} = {take}", f"{a}.{s.rng.choice(('mul_(0.5)', 'relu_()', 'add_(1.0)'))}")


@feature("statement")
def written_slice(s: Scope) -> None:
    v, t = s.fresh(), s.local()
    s.do(f"{t} = {v.name}{s.rng.choice(('[:, ::2]', '[:, 1:]', '[..., 1:]', '.select(1, 0)', '.narrow(1, 0, 2)'))}")
    s.do(f"F.relu({t}, inplace=True)")


@feature("statement")
def written_base(s: Scope) -> None:
    v, t = s.fresh(), s.local()
    s.do(f"{t} = {v.name}.{s.rng.choice(('flatten(2)', 'transpose(2, 3)', 'permute(0, 2, 3, 1)', 'detach()'))}")
    s.do(f"{v.name}.{s.rng.choice(('add_(1.0)', 'relu_()', 'mul_(0.5)'))}")
    s.put(f"{v.name} * {t}.mean()", v)


@feature("statement")
def transposed(s: Scope) -> None:
    v = s.pick()
    s.put(f"({v.name}.transpose(2, 3) * 2).mT", v)
