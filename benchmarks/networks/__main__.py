"""``python -m benchmarks.networks``: measure, then render. See README.md beside the folder."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import charts, render
from .contest import Case, Contest, Settings
from .engines import BEST_DENSE, DEFAULT, ENGINES, PEERS, ROOT
from .plans import PLANS, QUICK_ENGINES, QUICK_ROUNDS, QUICK_TURN_S, Plan
from .store import Store

OUT = ROOT / "out" / "bench"


def main() -> int:
    arguments = _parser().parse_args()
    code: int = arguments.run(arguments)
    return code


def _names(text: str) -> list[str]:
    return [part for part in text.replace(",", " ").split() if part]


def _engines(text: str) -> list[str]:
    names = _names(text)
    if unknown := [name for name in names if name not in ENGINES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    return names


def _counts(text: str) -> list[int]:
    """``1,16`` or ``1-17``."""
    found: list[int] = []
    for part in _names(text):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be batch sizes such as 1,16 or 1-17, got {text!r}")
    return found


def _shares(text: str) -> list[float]:
    """Percent: ``0,50,90``."""
    found = [float(part) / 100 for part in _names(text)]
    if not found or min(found) < 0 or max(found) >= 1:
        raise argparse.ArgumentTypeError(f"must be percentages from 0 to below 100, got {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar=" | ".join([*PLANS, "engines", "render", "charts"]))
    for name, plan in PLANS.items():
        command = commands.add_parser(
            name, help=plan.title.replace("%", "%%"), description=plan.title.replace("%", "%%")
        )
        command.add_argument("--networks", type=_names, help=f"torchvision names or layers ({','.join(plan.networks)})")
        command.add_argument("--batch", type=_counts, help=f"({','.join(map(str, plan.batches))})")
        command.add_argument("--zeros", type=_shares, help="percent of each layer's weights, by magnitude")
        command.add_argument("--engines", type=_engines, help=f"({','.join(plan.engines)})")
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--rounds", type=int, default=plan.rounds, help=f"turns of each engine ({plan.rounds})")
        command.add_argument("--turn", type=float, default=plan.turn_s, help=f"seconds of a turn ({plan.turn_s})")
        command.add_argument(
            "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_TURN_S} s, fewer cases and peers"
        )
        command.add_argument("--profile", action="store_true", default=plan.profile, help="layer by layer, in the JSON")
        command.add_argument(
            "--realtime", action="store_true", help="time under SCHED_FIFO: for a machine with other work (Linux, root)"
        )
        command.add_argument("--out", type=Path, default=OUT / f"{name}.json", help=f"({OUT / name}.json)")
        command.add_argument("--resume", action="store_true", help="leave out the cases that --out already holds")
        command.set_defaults(run=lambda a, name=name, plan=plan: _measure(name, plan, a))
    command = commands.add_parser("engines", help="who can take part here")
    command.set_defaults(run=_list)
    command = commands.add_parser("render", help="Markdown from JSON")
    command.add_argument("files", type=Path, nargs="+")
    command.add_argument("--details", action="store_true", help="every engine of every case")
    command.add_argument("--into", type=Path, help="put it between this Markdown file's markers instead")
    command.set_defaults(run=_render)
    command = commands.add_parser("charts", help="PNG and SVG from JSON, beside it")
    command.add_argument("files", type=Path, nargs="+")
    command.set_defaults(run=_charts)
    return parser


def _measure(name: str, plan: Plan, arguments: argparse.Namespace) -> int:
    engines = arguments.engines or list(QUICK_ENGINES if arguments.quick else plan.engines)
    if arguments.quick:
        engines = [engine for engine in engines if engine in plan.engines or arguments.engines]
        arguments.rounds, arguments.turn = QUICK_ROUNDS, QUICK_TURN_S
    cases = plan.cases(arguments.networks, arguments.batch, arguments.zeros, arguments.quick)
    store = Store(arguments.out, name, arguments.resume)
    todo = [case for case in cases if not store.has(case, engines)]
    print(f"{len(todo)} cases of {len(cases)}, {', '.join(engines)}; results go to {arguments.out}", flush=True)
    failed: list[str] = []
    begin = time.perf_counter()
    folder = OUT / "work"
    settings = Settings(
        arguments.threads,
        arguments.rounds,
        arguments.turn,
        plan.fresh,
        arguments.profile,
        arguments.realtime,
        plan.calm,
    )
    with Contest(engines, settings, folder, _say) as contest:
        for number, case in enumerate(todo, 1):
            _say(f"[{number}/{len(todo)}, {time.perf_counter() - begin:.0f} s] {case}")
            result = contest.run(case, _siblings(case, todo))
            store.add(result, contest.versions, arguments.threads)
            failed += [f"{case}: {name}: {row['why']}" for name, row in result["engines"].items()
                       if row["status"] == "failed"]  # fmt: skip
            _say(render.one_line(result))
    print(f"{time.perf_counter() - begin:.0f} s\n")
    print(render.markdown(store.data))
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


def _siblings(case: Case, todo: list[Case]) -> list[Case]:
    return [other for other in todo if other.network == case.network]


def _say(text: str) -> None:
    print(text, flush=True)


def _list(_: argparse.Namespace) -> int:
    with Contest(list(ENGINES), Settings(), OUT / "work", say=lambda text: None) as contest:
        contest.start(Case("resnet18", 1, 0.0))
        for name, engine in ENGINES.items():
            note = f"absent: {contest.absent[name]}" if name in contest.absent else "ready"
            role = "best dense" if name in BEST_DENSE else "" if name in DEFAULT else "a trial"
            print(f"{name:24} {engine.title:38} {role:10} {note}")
        print(f"versions: {contest.versions}; peers are looked for in {PEERS}")
    return 0


def _render(arguments: argparse.Namespace) -> int:
    texts = {data["plan"]: render.markdown(data, arguments.details) for data in map(render.read, arguments.files)}
    if arguments.into is None:
        print("\n\n".join(texts.values()))
    else:
        arguments.into.write_text(render.into(arguments.into.read_text(), texts))
    return 0


def _charts(arguments: argparse.Namespace) -> int:
    for file in arguments.files:
        for path in charts.draw(render.read(file), file.with_suffix("")):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
