"""The command. See ``python -m module_fuzzer --help``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from . import plants, pool
from .calls import CALLS
from .contract import Failure
from .counter import Tally
from .findings import failures_of, shrunk, write_finding
from .worker import work
from .writer import write


def main() -> int:
    parser = argparse.ArgumentParser("module_fuzzer", description=__import__(__package__).__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to write and try modules")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first module's; others follow")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz-modules"), help="folder for shrunk scripts")
    parser.add_argument(
        "--shrink",
        type=float,
        default=20,
        help="processor seconds for a kind's first failure; 0: not shrunk",
    )
    parser.add_argument("--show", type=int, metavar="SEED", help="print the module of a seed, and what fails")
    parser.add_argument("--script", type=Path, help="try this script, drawn as for --seed")
    parser.add_argument("--plant", choices=plants.PLANTS, help="with a defect planted on purpose")
    parser.add_argument("--planted", action="store_true", help="each planted defect, or that of --plant: must be found")
    parser.add_argument("--work", nargs=2, type=int, metavar=("SEED", "STEP"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", nargs=2, metavar=("SEED", "FAILURE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with plants.planted(given.plant) if given.plant and not given.planted else contextlib.nullcontext():
        if given.work:
            work(*given.work)
        if given.keep:
            return _keep(given, int(given.keep[0]), Failure(**json.loads(given.keep[1])))
        if given.show is not None:
            return _show(write(given.show).text, given.show)
        if given.script:
            return _show(given.script.read_text(), given.seed)
        if given.planted:
            return _planted(given)
        return _fuzz(given)


def _show(text: str, seed: int) -> int:
    print(text)
    failures = [failure for call in CALLS for failure in failures_of(text, seed, call)]
    for failure in failures:
        print(_words(failure))
    return bool(failures)


def _words(failure: Failure) -> str:
    return f"{failure.kind}\n  where:    {failure.detail}\n  expected: {failure.want}\n  got:      {failure.got}"


def _fuzz(given: argparse.Namespace) -> int:
    tally, begin = Tally(), time.monotonic()
    options = ["--plant", given.plant] if given.plant else []
    given.findings.mkdir(parents=True, exist_ok=True)
    print(f"modules from seed {given.seed} on, {given.jobs} processes, {given.seconds:.0f} s", flush=True)
    files: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(given.jobs) as shrinking:
        for line in pool.lines(given.seed, given.jobs, given.seconds, options):
            tally.add(line)
            for failure in [Failure(**each) for each in line.get("failures", ())]:
                if failure.kind not in files:
                    print(f"seed {line['seed']}: {_words(failure)}", flush=True)
                    files[failure.kind] = shrinking.submit(_kept_apart, given, options, line["seed"], failure)
        print(tally.text(time.monotonic() - begin), flush=True)
        for file in files.values():
            print(f"==> {file.result()}", flush=True)
    return bool(files)


def _kept_apart(given: argparse.Namespace, options: list[str], seed: int, failure: Failure) -> str:
    """The failure's script, shrunk by a process of its own, which it may end."""
    command = [sys.executable, "-W", "ignore", "-m", str(__package__), "--keep", str(seed), json.dumps(vars(failure))]
    command += ["--findings", str(given.findings), "--shrink", str(given.shrink), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"{failure.kind}: not shrunk: {done.stderr[-500:]}"


def _keep(given: argparse.Namespace, seed: int, failure: Failure) -> int:
    text = write(seed).text
    if failure.kind.partition(":")[0] not in CALLS:  # the process died: it is not tried in this one
        path = given.findings / f"seed_{seed}.py"
        path.write_text(text)
    else:
        if given.shrink:
            text = shrunk(text, seed, failure, given.shrink)
        path = write_finding(given.findings, text, seed, failure)
    print(f"{path}\n{path.read_text()}")
    return 0


#: How long each planted defect has.
FOUND_WITHIN_S = 300.0


def _planted(given: argparse.Namespace) -> int:
    """Compared with the package as it is: what fails without the defect does not count as finding it."""
    missed = []
    for name in [given.plant] if given.plant else plants.PLANTS:
        begin = time.monotonic()
        found: tuple[int, str] | None = None
        for line in pool.lines(given.seed, given.jobs, FOUND_WITHIN_S, ["--plant", name]):
            for failure in line.get("failures", ()):
                call = failure["kind"].partition(":")[0]
                if call not in plants.PLANTS[name][0].split():
                    continue
                own = {each.kind for each in failures_of(write(line["seed"]).text, line["seed"], call)}
                if failure["kind"] not in own:
                    found = line["seed"], failure["kind"]
            if found:
                break
        took = time.monotonic() - begin
        print(f"{name:34s} {f'{took:4.0f} s, seed {found[0]}: {found[1]}' if found else 'NOT FOUND'}", flush=True)
        if not found:
            missed.append(name)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
