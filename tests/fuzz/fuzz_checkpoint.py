"""Atheris over the files of secateur.save: whatever a file holds, it is loaded, or refused by a secateur.Error.

    python tests/fuzz/fuzz_checkpoint.py -max_total_time=60 CORPUS     (libFuzzer's options; `make fuzz` runs it)

For every input: no other exception than Error and OSError; a model that is refused a file stays as it was, to the bit;
no more memory than twice what the checked header says that the tensors take, and the pieces in which they are read.
The first files of a corpus are made here, by secateur.save; mutations know the format (container_mutations.py).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import container_mutations
import secateur
import torch
from secateur import Error, Magnitude
from secateur.checkpoint import content
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Pieces of 2^17 numbers of 8 bytes, some at a time (checkpoint/decode.py), Python's own objects for names and shapes.
PIECES = 16 * 2**20
HERE = Path(__file__).parent


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.relu = secateur.nn.ThresholdReLU(torch.full((6,), 0.25))
        self.fc = nn.Linear(9, 5)
        self.tied = self.fc
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("scale", torch.tensor(2.5))
        self.register_buffer("nothing", torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).flatten(1)[:, :9])


def models() -> list[nn.Module]:
    """One of each kind of content; all small, so that a mutation meets what matters."""
    torch.manual_seed(0)
    made: list[nn.Module] = [Net()]
    for sparsity, options in ((0.5, {}), (0.9, {"pattern": "1x4"}), (0.97, {})):
        made.append(Net())
        secateur.prune(made[-1], Magnitude(sparsity=sparsity), **options)
    made.append(secateur.strip(copy.deepcopy(made[1])))
    half = copy.deepcopy(made[2])
    made.append(secateur.strip(half).half())
    few = Net()  # eight values, some of them -0.0
    with torch.no_grad():
        few.conv.weight.copy_(torch.randint(-3, 4, few.conv.weight.shape) * 0.5)
        few.conv.weight[0, 0] = -0.0
    made.append(few)
    made.append(in_integers())
    made.append(secateur.convert(copy.deepcopy(made[4])))
    return made


def in_integers() -> nn.Module:
    weight = (torch.randint(-127, 128, (6, 4, 2, 2)) * (torch.rand(6, 4, 2, 2) > 0.8)).to(torch.int8)
    scale = torch.linspace(0.1, 0.5, 6)
    return nn.Sequential(
        secateur.nn.Quantize(0.02, 3, torch.arange(4, dtype=torch.uint8)),
        secateur.nn.QuantizedConv2d(weight, scale, None, 0.02, 3),
        nn.Flatten(),
        secateur.nn.QuantizedLinear(weight.flatten(1)[:, :9], scale, scale, 0.5),
    )


def write_seeds(folder: Path) -> list[nn.Module]:
    known = models()
    for i, model in enumerate(known):
        secateur.save(model, folder / f"model{i}")
        secateur.save(model, folder / f"shared{i}", share=True)
    kept = HERE.parent / "checkpoint" / "data" / "version1.safetensors"
    if kept.exists():
        (folder / "version1").write_bytes(kept.read_bytes())
    return known


class Allocations(TorchDispatchMode):
    """Bytes of new memory that torch's operators gave out."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, Tensor) and t.device.type == "cpu" and t.untyped_storage().data_ptr() not in given:
                self.total += t.untyped_storage().nbytes()
        return result


def stated(path: str) -> int:
    """What the tensors take by the header, once that has been checked; without one, nothing."""
    with contextlib.suppress(Error), content.opened_content(Path(path)) as found:
        return sum(t.dtype.itemsize * _product(t.shape) for t in {id(t): t for t in found.tensors.values()}.values())
    return 0


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def snapshot(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {k: (v.dtype, tuple(v.shape), v.detach().numpy().tobytes()) for k, v in model.state_dict().items()}


class Target:
    def __init__(self, known: list[nn.Module]) -> None:
        self.known = known
        self.before = [snapshot(model) for model in known]
        self.keys = [set(model.state_dict()) for model in known]
        self.runs = 0
        self.loaded = 0
        self.fd = os.memfd_create("checkpoint")
        self.path = f"/proc/self/fd/{self.fd}"

    def __call__(self, data: bytes) -> None:
        self.runs += 1
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        size = stated(self.path)
        # Python's and numpy's memory is followed at a cost: for some inputs only.
        follow = zlib.crc32(data) % 16 == 0
        which = self.runs % 3
        if which == 0:
            self.within(3 * size, size, follow, lambda: secateur.to_dense_state_dict(self.path))
        elif which == 1:
            self.within(2 * size, size, follow, lambda: content.read(self.path))
        else:
            self.load(data)

    def within(self, most: int, size: int, follow: bool, body: Callable[[], Any]) -> None:
        """Real weights of integers are four times as large as these, so `to_dense_state_dict` may take more of torch
        than what the header states; what it returns is what counts then."""
        if follow:
            tracemalloc.start()
        found: Any = None
        try:
            with Allocations() as torch_s, contextlib.suppress(Error, OSError):
                found = body()
            if isinstance(found, dict):
                size = max(size, sum(t.untyped_storage().nbytes() for t in {id(t): t for t in found.values()}.values()))
                most = 3 * size
            if torch_s.total > most + PIECES:
                raise MemoryError(f"torch gave {torch_s.total} bytes, the file states {size}")
            if follow and (peak := tracemalloc.get_traced_memory()[1]) > 2 * size + PIECES:
                raise MemoryError(f"{peak} bytes at once, the file states {size}")
        finally:
            if follow:
                tracemalloc.stop()

    def load(self, data: bytes) -> None:
        """Into the model whose names it holds, or else into any."""
        i = zlib.crc32(data) % len(self.known)
        with contextlib.suppress(Error), content.opened_content(Path(self.path)) as found:
            for j, keys in enumerate(self.keys):
                if found.tensors.keys() <= keys:
                    i = j
        model = self.known[i]
        try:
            secateur.load(self.path, model)
        except (Error, OSError):
            if snapshot(model) != self.before[i]:
                raise AssertionError("a model that was refused its file is not as it was") from None
            return
        self.loaded += 1
        self.known[i] = self.fresh[i]()

    fresh: list[Callable[[], nn.Module]]


def instrument() -> int:
    """The loader's functions, one by one: an import hook would be the easier way, but finds nothing in a package that
    is installed editable. How many there were."""
    found: set[Any] = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith("secateur.checkpoint"):
            continue
        for value in vars(module).values():
            for f in [value, *(vars(value).values() if isinstance(value, type) else ())]:
                f = f.fget if isinstance(f, property) else inspect.unwrap(f) if callable(f) else f
                if inspect.isfunction(f) and f.__module__ == name:
                    found.add(f)
    for f in found:
        atheris.instrument_func(f)
    return len(found)


def mutator(data: bytes, max_size: int, seed: int) -> bytes:
    made = container_mutations.mutated(bytes(data), seed) if seed % 8 else None
    if made is None or len(made) > max_size:
        made = atheris.Mutate(bytes(data), max_size)
    made = bytes(made)
    if seed % 16 != 1:  # some keep a digest that is wrong
        with contextlib.suppress(TypeError, ValueError, AttributeError, RecursionError):
            made = container_mutations.signed(made)
    return made[:max_size]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    corpus = [Path(a) for a in sys.argv[1:] if not a.startswith("-") and Path(a).is_dir()]
    if not corpus:
        sys.exit("fuzz_checkpoint: name a folder for the corpus")
    known = write_seeds(corpus[0])
    print("fuzz_checkpoint:", instrument(), "functions of the loader")
    target = Target(known)
    pristine = [copy.deepcopy(model) for model in known]
    target.fresh = [lambda model=model: copy.deepcopy(model) for model in pristine]  # type: ignore[misc]
    atheris.Setup(sys.argv, target, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
