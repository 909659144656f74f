"""A case: every engine's worker loads it, is validated against float64, then all are timed in turn.

One process an engine, and only one of them runs: the others are stopped (SIGSTOP), so that no thread pool that spins
between calls takes a core from the engine whose turn it is, and each can keep the settings that are best for it alone.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .engines import ENGINES, ROOT, Engine
from .quantizers import FILES, TOOLS

#: An engine may be this many times as far from float64 as torch's own float32 is: other orders of summation and
#: Winograd's transforms stay within it, a wrong weight does not.
TOLERANCE = 30.0
#: int8 is judged by its ratio of signal to noise: permuted channels in one layer leave 14 dB or less, the output of
#: another image 11 (measured on the networks of `int8`, see :data:`networks.CALM`). What is right has 16 or more, but
#: for MobileNetV2 with random weights, which loses more by rounding alone: OpenVINO's has 14. So an engine that has no
#: other proof needs 12; ours 15, or the same quantized model in torch must say the same, but for values that round the
#: other way, and the output still be closer to float64 than one with its columns in another order is.
LEAST_PEER_SQNR_DB, LEAST_SQNR_DB = 12.0, 15.0
LEAST_OWN_SQNR_DB, LEAST_BESIDE_OWN_DB = 25.0, 5.0
#: No engine takes longer for one step (loading VGG-16 with torch.compile is the longest).
PATIENCE_S = 900.0


@dataclass(frozen=True, order=True)
class Case:
    network: str
    batch: int
    zeros: float

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {100 * self.zeros:g} % zeros"


class Failed(Exception):
    """An engine could not do its part; the message says why."""


class Absent(Failed):
    """It is not installed here."""


class Process:
    """One worker, stopped whenever it has nothing to do."""

    def __init__(self, engine: Engine, threads: int, log: Path) -> None:
        self.engine, self.log = engine, log
        self.loaded: tuple[Any, ...] | None = None
        self.about: dict[str, Any] = {}  # of the last load
        self.versions: dict[str, str] | None = None
        if not Path(engine.python).exists():
            raise Absent(f"{engine.python} does not exist; `make peers` makes it")
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "NM_DISABLE_ANALYTICS": "1",
            "OPENVINO_TELEMETRY": "0",
            "PYTHONWARNINGS": "ignore",
        }
        command = [engine.python, "-m", "benchmarks.networks.worker", engine.adapter, str(threads)]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, json.dumps(dict(engine.options))],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def hello(self) -> None:
        """Wait until it has imported its engine."""
        if self.versions is None:
            self.versions = self._reply()["versions"]
            self._stop()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: the reply says how
        reply = self._reply()
        self._stop()
        return reply

    def _stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(PATIENCE_S) else None
        if line is None:
            raise Failed(f"no answer within {PATIENCE_S:g} s")
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines()
            raise Failed(f"its process ended with code {self.process.wait()}: {said[-1] if said else 'no message'}")
        reply: dict[str, Any] = json.loads(line)
        if "missing" in reply:
            raise Absent(reply["missing"])
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply

    def close(self) -> None:
        self.process.kill()  # also what is stopped
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@dataclass(frozen=True)
class Settings:
    """How cases are run.

    Each engine gets ``rounds`` turns of ``turn_s`` seconds, in random order within a round. fresh: a new process for
    each model, so that its memory can be told; otherwise processes go on. profile: ask our engines for their layers.
    realtime: a turn runs before all other work of the machine, for one that has some. calm: networks that do not
    amplify the rounding of int8 (:data:`networks.CALM`).
    """

    threads: int = 2
    rounds: int = 7
    turn_s: float = 0.4
    fresh: bool = True
    profile: bool = False
    realtime: bool = False
    calm: bool = False


class Contest:
    """Runs cases, one after the other.

    Args:
        engines: names out of :data:`engines.ENGINES`.
        folder: models and logs go here; models are deleted when the next network comes.
        say: what is done is told here.
    """

    def __init__(
        self, engines: Sequence[str], settings: Settings, folder: Path, say: Callable[[str], None] = print
    ) -> None:
        self.engines, self.settings, self.folder, self.say = list(engines), settings, folder, say
        self.processes: dict[str, Process] = {}
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.preparer: Process | None = None
        self.prepared: dict[tuple[str, float, str], dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.processes.values(), *([self.preparer] if self.preparer else [])]:
            process.close()
        shutil.rmtree(self.folder / "models", ignore_errors=True)

    # ---- models ----

    def _models(self, network: str, zeros: float, pattern: str = "1x1") -> Path:
        return self.folder / "models" / f"{network}-{zeros:g}-{pattern}"

    def _prepare(self, cases: Iterable[Case]) -> None:
        """The files of all cases of one network: for each share and pattern of zeros, every batch of every file that
        an engine takes."""
        cases = list(cases)
        wanted: dict[tuple[str, float, str], dict[str, set[int]]] = {}
        for case in cases:
            for name in self.engines:
                engine = ENGINES[name]
                batches = wanted.setdefault(self._key(engine, case), {})
                if name not in self.absent:
                    batches.setdefault(engine.file, set()).add(case.batch)
        todo = {key: batches for key, batches in wanted.items() if key not in self.prepared}
        if not todo:
            return
        if self.preparer is None:
            self.preparer = Process(
                Engine("Preparer", "", "", "", ""), self.settings.threads, self.folder / "prepare.log"
            )
            self.preparer.hello()
        for (network, zeros, pattern), batches in todo.items():
            begin = time.perf_counter()
            about = self.preparer.ask(
                "prepare", network=network, zeros=zeros, pattern=pattern, batch=max(case.batch for case in cases),
                onnx_batches=sorted(batches.get("onnx", ())), folder=str(self._models(network, zeros, pattern)),
                calm=self.settings.calm, int8={tool: sorted(batches[tool]) for tool in TOOLS if tool in batches},
            )  # fmt: skip
            self.prepared[network, zeros, pattern] = about
            self.say(f"  model and float64 outputs at {100 * zeros:g} % zeros"
                     f"{'' if pattern == '1x1' else f' in {pattern}'}: {time.perf_counter() - begin:.1f} s; "
                     f"torch's float32 is off by {about['torch_error']:.1e}")  # fmt: skip

    def _forget(self, network: str) -> None:
        for key in [key for key in self.prepared if key[0] != network]:
            del self.prepared[key]
            shutil.rmtree(self._models(*key), ignore_errors=True)

    # ---- engines ----

    def _key(self, engine: Engine, case: Case) -> tuple[str, float, str]:
        """Which model: network, share of zeros, their pattern."""
        zeros = case.zeros if engine.given == "pruned" else 0.0
        return (case.network, zeros, engine.pattern if zeros else "1x1")

    def start(self, case: Case) -> None:
        """Processes for all who lack one, started together: importing torch takes seconds."""
        for name in self.engines:
            engine, process = ENGINES[name], self.processes.get(name)
            key = (*self._key(engine, case), case.batch)
            if process is not None and self.settings.fresh and process.loaded not in (None, key):
                self._drop(name)
            if name not in self.processes and name not in self.absent:
                try:
                    self.processes[name] = Process(engine, self.settings.threads, self.folder / f"{name}.log")
                except Absent as reason:
                    self._is_absent(name, reason)
        for name in list(self.processes):
            self._hear(name)

    def _hear(self, name: str) -> None:
        try:
            self.processes[name].hello()
            self.versions |= self.processes[name].versions or {}
        except Absent as reason:
            self._drop(name)
            self._is_absent(name, reason)
        except Failed:
            pass  # said again, as its failure, when it is asked to load

    def _is_absent(self, name: str, reason: Absent) -> None:
        self.absent[name] = str(reason)
        self.say(f"  {name}: absent ({reason})")

    def _drop(self, name: str) -> None:
        if process := self.processes.pop(name, None):
            process.close()

    def _load(self, name: str, case: Case) -> dict[str, Any]:
        """Have the engine ready and validated; its row of the results so far."""
        engine, process = ENGINES[name], self.processes[name]
        key = self._key(engine, case)
        models = self._models(*key)
        x, reference = str(models / "x.npy"), str(models / "reference.npy")
        if process.loaded == (*key, case.batch):
            return dict(process.about)
        if process.loaded is not None and process.loaded[:-1] == key and engine.any_batch and not self.settings.fresh:
            about = process.ask("input", x=x, batch=case.batch)
        else:
            file = models / FILES[engine.file].format(batch=case.batch)
            made = self.prepared[key]["int8"].get(file.name, {})
            if "failed" in made:
                raise Failed(f"no int8 model, {made['failed']}")
            about = process.ask("load", model=str(file), x=x, batch=case.batch) | made
        about |= process.ask("check", reference=reference, batch=case.batch)
        if engine.precision == "int8":
            sqnr, own = about["sqnr_db"], about["own_sqnr_db"]
            least = (LEAST_PEER_SQNR_DB if own is None
                     else LEAST_BESIDE_OWN_DB if own >= LEAST_OWN_SQNR_DB
                     else LEAST_SQNR_DB)  # fmt: skip
            if sqnr is None or sqnr < least:
                raise Failed(f"WRONG OUTPUT, SQNR is {sqnr} dB ({own} beside torch's), must be at least {least:g}")
            process.loaded, process.about = (*key, case.batch), about
            return dict(about)
        allowed = TOLERANCE * max(self.prepared[key]["torch_error"], 1e-7)
        if about["error"] is None or about["error"] > allowed:
            raise Failed(f"WRONG OUTPUT, off by {about['error']} of the largest value, allowed is {allowed:.1e}")
        process.loaded, process.about = (*key, case.batch), about
        return dict(about)

    # ---- the contest ----

    def run(self, case: Case, siblings: Iterable[Case] = ()) -> dict[str, Any]:
        """One case; ``siblings`` are the network's other cases, whose files are made in one go. Gives plain data."""
        begin = time.perf_counter()
        self._forget(case.network)
        self.start(case)
        self._prepare([case, *siblings])
        rows: dict[str, dict[str, Any]] = {}
        for name in self.engines:
            if name in self.absent:
                rows[name] = {"status": "absent", "why": self.absent[name]}
                continue
            try:
                rows[name] = {"status": "ok", **self._load(name, case)}
                self.say(f"  {name}: {_told(rows[name])}")
            except Failed as reason:
                self._fail(rows, name, reason)
        before, load = _cpu_times(), _load_average()
        taken: dict[str, list[float]] = {name: [] for name, row in rows.items() if row["status"] == "ok"}
        order, shuffle = list(taken), random.Random(0).shuffle
        for _ in range(self.settings.rounds):
            shuffle(order)
            for name in order:
                if rows[name]["status"] != "ok":
                    continue
                try:
                    taken[name] += self.processes[name].ask(
                        "run", seconds=self.settings.turn_s, first=self.settings.realtime
                    )["seconds"]
                except Failed as reason:
                    self._fail(rows, name, reason)
        for name, seconds in taken.items():
            if rows[name]["status"] == "ok":
                rows[name] |= spread(seconds)
                if self.settings.profile and ENGINES[name].group == "ours":
                    rows[name] |= self.processes[name].ask("profile")
        # What is told of the model is told of the most pruned one.
        told = max(
            (key for key in self.prepared if key[1] in (case.zeros, 0.0)), key=lambda key: (key[1], key[2] == "1x1")
        )
        return {
            "network": case.network, "batch": case.batch, "zeros": case.zeros, **self.prepared[told],
            "engines": rows, "settings": asdict(self.settings), "load_average": load,
            "stolen": _stolen(before, _cpu_times()), "wall_s": time.perf_counter() - begin,
        }  # fmt: skip

    def _fail(self, rows: dict[str, dict[str, Any]], name: str, reason: Failed) -> None:
        rows[name] = {"status": "failed", "why": str(reason)}
        self.say(f"  {name}: FAILED, {reason} (see {self.folder / name}.log)")
        self._drop(name)


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and minimum in milliseconds."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "iqr_ms": 1e3 * (high - low),
        "min_ms": 1e3 * min(seconds),
        "runs": len(seconds),
    }


def _told(row: dict[str, Any]) -> str:
    parts = []
    if "ready_s" in row:
        parts.append(f"ready in {row['ready_s']:.1f} s, {row['run_peak_mb']:.0f} MB")
    if "int8_layers" in row.get("settings", {}):
        parts.append("{int8_layers} of {layers} layers in int8".format(**row["settings"]))
    own = "" if row["own_sqnr_db"] is None else f" ({row['own_sqnr_db']:.1f} beside the same model in torch)"
    return ", ".join([*parts, f"off by {row['error']:.1e}, SQNR {row['sqnr_db']:.1f} dB{own}"])


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_times() -> list[int] | None:
    try:
        return [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None


def _stolen(before: list[int] | None, after: list[int] | None) -> float | None:
    """Share of the machine's time that the hypervisor gave to others during the contest."""
    if before is None or after is None:
        return None
    return (after[7] - before[7]) / max(1, sum(after) - sum(before))
