"""benchmarks/gpu: the JSON after each part, a part that fails, a part that has no time left; its clock, its bound."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from secateur import ops
from secateur.ops import reference

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks is run from the repository's root, not installed

from benchmarks.gpu import bits, clock, cpu, operators, parts, runner, sanitize, scrub, timings  # noqa: E402
from benchmarks.gpu.record import Record  # noqa: E402
from benchmarks.gpu.runner import Runner, summary  # noqa: E402
from benchmarks.networks.contest import Failed  # noqa: E402


def part(name: str, program: str, share: float = 1.0, number: int = 7) -> parts.Part:
    """One whose process runs ``program``, with ``record``, a Record of it, at hand."""

    def command(_name: str, file: Path, seconds: float, dry: bool) -> list[str]:
        begin = "from pathlib import Path; from benchmarks.gpu.record import Record; import os, sys, time, subprocess\n"
        return [sys.executable, "-c", f"{begin}record = Record(Path({str(file)!r}), {seconds}, {dry})\n{program}"]

    return parts.Part(number, name, f"what {name} does", share, share, command)


def told(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return data


def run(folder: Path, *todo: parts.Part, seconds: float = 30.0) -> dict[str, Any]:
    data = Runner(todo, seconds, folder, {"machine": {"cpu": "C"}}).run()
    assert told(folder) == json.loads(json.dumps(scrub.scrubbed(data)))
    return told(folder)


def test_the_file_is_written_after_each_part(tmp_path: Path) -> None:
    look = f"import json; seen = json.load(open({str(tmp_path / 'gpu.json')!r})); record.add('seen', seen['parts'])"
    data = run(tmp_path, part("first", "record.add('rows', {'ms': 1.5})"), part("second", look))
    seen = data["parts"]["second"]["results"]["seen"][0]
    assert seen["first"]["status"] == "passed"
    assert seen["first"]["results"] == {"rows": [{"ms": 1.5}]}
    assert seen["second"] == {"part": 7, "title": "what second does", "status": "running"}
    assert data["machine"] == {"cpu": "C"}
    assert "gpu: first passed" in summary(data)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", ""),
        ("record.fail('a thing', 'it broke')", "it broke"),
        ("os.kill(os.getpid(), 11)", "its process ended by signal 11"),
        ("record.path.unlink(); raise SystemExit(1)", "no record"),
    ],
)
def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path, program: str, why: str) -> None:
    data = run(tmp_path, part("bad", f"record.add('before', 1)\n{program}"), part("good", "record.add('rows', 2)"))
    bad = data["parts"]["bad"]
    assert bad["status"] == "failed"
    assert why in json.dumps(bad)
    assert "record" in why or bad["results"] == {"before": [1]}
    assert data["parts"]["good"]["status"] == "passed"
    assert "good passed" in summary(data)


def test_without_a_build_nothing_else_runs(tmp_path: Path) -> None:
    data = run(tmp_path, part("build", "record.fail('nvcc', 'no')"), part("next", "record.add('rows', 1)"))
    assert data["parts"]["next"] == {
        "part": 7,
        "title": "what next does",
        "status": "skipped",
        "seconds": 0.0,
        "why": "there is no build to run it on",
    }


def test_what_the_build_says_reaches_the_others_and_not_the_file(tmp_path: Path) -> None:
    said = "record.keep('environment', {'SECATEUR_FOUND': 'there'}); record.keep('facts', {'torch': {'cuda': '13'}})"
    data = run(tmp_path, part("build", said), part("next", "record.add('rows', os.environ['SECATEUR_FOUND'])"))
    assert data["parts"]["next"]["results"] == {"rows": ["there"]}
    assert data["torch"] == {"cuda": "13"}
    assert "private" not in data["parts"]["build"]


def test_a_part_that_overruns_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    program = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # one that does not listen
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        "record.add('rows', {'child': child.pid}); record.waiting(['the rest']); time.sleep(99)"
    )
    begin = time.monotonic()
    data = run(tmp_path, part("slow", program, 1.0), part("next", "record.add('rows', 1)", 1.0), seconds=5.0)
    assert time.monotonic() - begin < 15
    slow = data["parts"]["slow"]
    assert slow["status"] == "cut"
    assert slow["why"].startswith("killed when its")
    assert slow["cut"] == ["the rest"]
    for _ in range(100):  # the kernel may need an instant
        if not _alive(slow["results"]["rows"][0]["child"]):
            break
        time.sleep(0.05)
    else:
        pytest.fail("a child of the part is alive")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_time_that_a_part_leaves_over_goes_to_the_next(tmp_path: Path) -> None:
    data = run(
        tmp_path, part("first", "record.add('rows', 1)", 3.0), part("second", "record.add('rows', record.left())")
    )
    rows = data["parts"]
    assert rows["first"]["allotted_s"] == pytest.approx(0.75 * 27, abs=0.5)  # a tenth is kept for the last JSON
    left = 27 - rows["first"]["seconds"]
    assert rows["second"]["allotted_s"] == pytest.approx(left, abs=0.5)


def test_parts_that_no_time_is_left_for_are_named(tmp_path: Path) -> None:
    data = run(tmp_path, part("a", "record.add('rows', 1)"), part("b", "record.add('rows', 1)"), seconds=0.5)
    assert {row["status"] for row in data["parts"].values()} == {"cut"}
    assert "were left" in data["parts"]["b"]["why"]


def test_a_run_that_is_stopped_has_its_file(tmp_path: Path) -> None:
    timer = threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        data = run(tmp_path, part("slow", "record.add('rows', 1); time.sleep(60)"), part("next", "pass"), seconds=60)
    finally:
        timer.cancel()
    assert data["parts"]["slow"]["why"] == "the run was stopped"
    assert data["parts"]["slow"]["results"] == {"rows": [1]}
    assert data["parts"]["next"]["status"] == "cut"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_folder_and_no_host_is_told() -> None:
    said = {f"{ROOT}/csrc/x.cu": [f"{Path.home()}/a", f"{sys.prefix}/bin/python", "/etc/some/long/file.txt", 3, None]}
    text = json.dumps(scrub.scrubbed(said))
    for secret in (str(ROOT), str(Path.home()), sys.prefix, "/etc/some"):
        assert secret not in text
    assert "./csrc/x.cu" in text
    assert ".../long/file.txt" in text
    if len(socket.gethostname()) > 1:
        assert socket.gethostname() not in json.dumps(scrub.scrubbed(f"on {socket.gethostname()}: x"))
    assert scrub.scrubbed("12.5 GB/s and 3/4, mask_apply / copy_") == "12.5 GB/s and 3/4, mask_apply / copy_"


def test_parts_are_chosen_by_name_and_number_in_order_of_worth() -> None:
    assert [p.number for p in parts.chosen([])] == [1, 2, 5, 4, 6, 3]
    assert [p.name for p in parts.chosen(["3", "timings"])] == ["build", "timings", "sanitize"]
    with pytest.raises(SystemExit, match=r"no part is nine; there are 1 build, 2 tests, 3 sanitize"):
        parts.chosen(["nine"])


# ---- the parts' own judgement ----


def test_the_clock_names_what_is_wrong_or_breaks_and_times_the_rest() -> None:
    x = torch.randn(1000)

    def broken() -> None:
        raise RuntimeError("no such kernel")

    found = clock.Clock(torch.device("cpu")).compare(
        {
            "copy_": clock.Contender(x.clone, 8000),
            "half": clock.Contender(x.clone, 4000, check=lambda y: torch.equal(y, x)),
            "wrong": clock.Contender(lambda: x + 1, check=lambda y: torch.equal(y, x)),
            "broken": clock.Contender(broken),
        },
        seconds=0.0,
    )
    assert found["wrong"] == {"failed": "WRONG RESULT"}
    assert found["broken"] == {"failed": "RuntimeError: no such kernel"}
    assert found["half"]["runs"] == 3
    rows = clock.beside_copy(found)
    copy, half = rows["copy_"], rows["half"]
    assert half["gb_s"] == pytest.approx(4000 / half["median_ms"] / 1e6)
    assert half["share_of_copy"] == pytest.approx(0.5 * copy["median_ms"] / half["median_ms"])


def test_events_stand_around_the_call_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's branch of the clock, with events that write down when they are recorded."""
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def elapsed_time(self, other: object) -> float:
            return 2.5  # milliseconds

    class Buffer:
        def sum(self) -> None:
            order.append("flush")

    ours = clock.Clock(torch.device("cpu"))
    ours.on_gpu, ours._buffer = True, Buffer()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    one = clock.Contender(lambda: order.append("call"), 5000, prepare=lambda: order.append("prepare"))
    found = ours.compare({"one": one}, seconds=9.0, rounds=2, warm=0)
    assert order == ["prepare", "call", "wait"] + ["prepare", "flush", "event", "call", "event", "wait"] * 2
    assert found["one"] == {
        "median_ms": 2.5,
        "iqr_ms": 0.0,
        "min_ms": 2.5,
        "runs": 2,
        "moved_bytes": 5000,
        "gb_s": 0.002,
    }


@pytest.mark.parametrize("case", list(operators.cases(dry=True)), ids=str)
def test_contenders_compute_what_the_operator_does(case: operators.Case) -> None:
    if case.compiled:
        case = operators.Case(case.operator, case.dtype, case.size)  # (--dry compiles)
    who, shape = operators.contenders(case, torch.device("cpu"))
    with torch.no_grad():
        for name, one in who.items():
            if one.prepare is not None:
                one.prepare()
            result = one.run()
            assert one.check is None or one.check(result), name
    assert {"copy_", "secateur"} <= set(who)
    elements = int(torch.Size(shape).numel())
    assert who["copy_"].moved == 2 * elements * case.dtype.itemsize
    ours = who["secateur"].moved
    bits_ = elements // 8
    rows = 4 * shape[0] if case.operator == "statistics_threshold" else 0
    assert ours == (elements if case.operator in ("mask_pack", "mask_unpack") else who["copy_"].moved) + bits_ + rows


def test_cases_cover_64_kb_to_1_gb_in_each_type_in_order_of_worth() -> None:
    todo = list(operators.cases(dry=False))
    assert todo[0].size == 64 << 20
    assert {c.size for c in todo} == {64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30}
    for operator in ("mask_apply", "threshold_relu", "statistics_threshold"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert len({c.size for c in todo if (c.operator, c.dtype, c.compiled) == (operator, dtype, True)}) == 6
    assert len(todo) == len(set(todo))


def test_goals_are_judged() -> None:
    def row(ours: float, compiled: float, eager: float) -> dict[str, Any]:
        times = {"copy_": 1.0, "secateur": ours, "torch.compile: composed": compiled, "eager: composed": eager}
        who = {name: {"median_ms": ms, "gb_s": 1 / ms} for name, ms in times.items()}
        return {"contenders": clock.beside_copy(who)}

    large = operators.Case("statistics_threshold", torch.float32, 64 << 20)
    found = timings.goals([(large, row(1.25, 1.0, 2.5)), (operators.Case("mask_pack", torch.bool, 1), row(1, 1, 1))])
    assert [(goal["found"], goal["reached"]) for goal in found] == [(0.8, False), (0.8, False), (2.0, False)]
    assert all(goal["reached"] for goal in timings.goals([(large, row(1.1, 1.2, 4.0))]))
    long = operators.Case("statistics_threshold", torch.float32, 64 << 20, row=1 << 20)
    assert not any("share" in goal["goal"] for goal in timings.goals([(long, row(5.0, 9.0, 50.0))]))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [3, 2000, 70_000])
def test_the_bound_of_theta_holds_between_two_orders_of_summation(
    dtype: torch.dtype, columns: int, signed: bool
) -> None:
    """torch sums in an order of its own. The bound is no licence: it stays near the last place of a theta."""
    weight = torch.randn(6, columns, dtype=dtype) + torch.tensor([0, 0.1, 3, 100, -5, 1e4], dtype=dtype).unsqueeze(1)
    theta = ops.statistics_threshold(weight, -0.7, signed)[2].double()
    other = reference.statistics_threshold(weight, -0.7, signed)[2].double()
    allowed = bits.bound(weight, -0.7, signed)
    assert bool(((theta - other).abs() <= allowed).all())
    # Where mean >> std it is the first sample that is summed from, so a row's own size is what errors scale with.
    assert bool((allowed <= (1e-6 if dtype == torch.float32 else 1e-9) * weight.abs().amax(1).double()).all())
    assert not bool(((theta * (1 + 1e-4) - other).abs() <= allowed).all())


def test_compute_sanitizers_words_are_understood(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", 9)
    record.add("nothing", float("nan"))
    assert json.loads(record.path.read_text())["results"] == {"nothing": [None]}
    sanitize.judge(record, "memcheck", 0, "152 calls compared\n========= ERROR SUMMARY: 0 errors\n")
    race = "========= Error: Race reported between Write access at 1\n"
    summary = "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    sanitize.judge(record, "racecheck", 9, f"152 calls compared\n{race}{summary}")
    sanitize.judge(record, "initcheck", 1, "========= Error: Device not supported. Please refer to the documentation\n")
    assert [row["tool"] for row in record.data["results"]["tools"]] == ["memcheck"]
    assert [row["what"] for row in record.data["failed"]] == ["racecheck"]
    assert "Race reported" in record.data["failed"][0]["why"]
    assert [row["what"] for row in record.data["skipped"]] == ["initcheck"]
    assert "Device not supported" in record.data["skipped"][0]["why"]


def test_points_of_the_cpu_are_those_that_were_asked_for() -> None:
    todo = list(cpu.points(16, dry=False))
    for engines in (cpu.FLOAT, cpu.INTEGER):
        found = {(p.threads, p.batch) for p in todo if p.engines == engines}
        assert found == {(t, b) for t in (1, 2, 4, 8, 16) for b in (1, 16)}
    assert len(todo) == 20
    assert {p.threads for p in cpu.points(4, dry=False)} == {1, 2, 4}


def test_without_a_model_for_the_peer_ours_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter of the peer's that breaks must not cost our own figures."""

    def run(_point: object, _network: str, _preparer: object, absent: dict[str, str]) -> dict[str, Any]:
        if "ort" not in absent:
            raise Failed("OnnxExporterError: no")
        return {"compile": {"status": "ok"}}

    monkeypatch.setattr(cpu, "_run", run)
    absent: dict[str, str] = {}
    whom: Any = None
    assert cpu._run_even_alone(cpu.Point(1, 1, cpu.FLOAT), "x", whom, absent) == {"compile": {"status": "ok"}}
    assert absent == {"ort": "no model was made for it: OnnxExporterError: no"}
    absent.clear()
    with pytest.raises(Failed):
        cpu._run_even_alone(cpu.Point(1, 1, cpu.FLOAT[:1]), "x", whom, absent)


def test_traffic_is_found_where_a_profile_counts_it() -> None:
    assert cpu.traffic({"rows": [{"layer": "a", "ms": 1.0}], "total": {"ms": 1.0}, "notes": ["nothing"]}) == {}
    profile = {
        "rows": [{"cross_thread_bytes": 3}, {"cross_thread_bytes": 4}],
        "total": {},
        "notes": ["traffic: 7 bytes"],
    }
    assert cpu.traffic(profile) == {"cross_thread_bytes": 7, "notes": ["traffic: 7 bytes"]}


@pytest.mark.slow
def test_dry(tmp_path: Path) -> None:
    """The command as it is, on two of its parts."""
    done = subprocess.run(
        [ROOT / "benchmarks/gpu/run", "--dry", "--only", "bits", "sanitize", "--out", tmp_path],
        capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("gpu --dry: build passed")
    data = told(tmp_path)
    assert data["parts"]["bits"]["status"] == "passed"
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.log"}
