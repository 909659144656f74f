"""Part 5: what the operators, the masks of a network in training, and pruning itself take on this device."""

from __future__ import annotations

import gc
from typing import Any

import torch

from . import machine, networks, zeros
from .clock import Clock, beside_copy
from .operators import MB, Case, cases, contenders, host_calls, name_of
from .record import Record, reason

#: Of copy_'s bytes a second, from this size on.
LEAST_SHARE, FROM = 0.9, 64 * MB
LEAST_OVER_EAGER = 3.0
#: Microseconds of the calling thread; or torch.add's and so many more.
MOST_HOST_US, MOST_OVER_ADD_US = 10.0, 5.0
OURS = ("secateur", "secateur, in place")


def main(record: Record) -> None:
    device = torch.device("cpu" if record.dry else "cuda")
    clock = Clock(device)
    record.add("clocks", {"when": "before", "gpus": machine.gpus()})
    todo = list(cases(record.dry))
    telling = [case for case in todo if case.compiled and case.size == todo[0].size]
    _operators(record, clock, telling)
    _operators(record, clock, [case for case in todo if not case.compiled])
    _host(record, clock)
    # torch.compile at the other sizes takes most of the time and tells least.
    last = [case for case in todo if case.compiled and case not in telling]
    networks.main(record, clock, after=["zeros", *map(str, last)])
    record.waiting(["zeros", *map(str, last)])
    zeros.main(record, clock)
    record.waiting([])
    _operators(record, clock, last)
    record.add("clocks", {"when": "after", "gpus": machine.gpus()})


def _operators(record: Record, clock: Clock, todo: list[Case]) -> None:
    with torch.no_grad():
        for number, case in enumerate(todo):
            if record.left() < (8.0 if case.compiled and not record.dry else 2.0):
                for other in todo[number:]:
                    record.cut(str(other))
                break
            try:
                who, shape = contenders(case, clock.device)
                found = beside_copy(clock.compare(who, seconds=0.05 if record.dry else 0.4, rounds=25))
            except Exception as error:  # out of memory, say: the other cases go on
                record.fail(str(case), reason(error))
                continue
            finally:
                who = {}
                gc.collect()
                if clock.on_gpu and case.size > 256 * MB:
                    torch.cuda.empty_cache()
            row = {"operator": case.operator, "dtype": name_of(case.dtype), "bytes": case.size, "shape": shape,
                   "layout": case.layout, "contenders": found}  # fmt: skip
            record.add("operators", row)
            for name, one in found.items():
                if "failed" in one:
                    record.fail(f"{case}: {name}", one["failed"])
            for goal in goals([(case, row)]):
                record.add("goals", goal)


def _host(record: Record, clock: Clock) -> None:
    """Of a call: under no_grad, and below autograd, as ``secateur.ops`` calls the operators where no gradient is."""
    if record.out_of_time("host time of a call", 3.0):
        return
    calls = host_calls(clock.device)
    loops, batch = (3, 10) if record.dry else (30, 100)
    with torch.no_grad():
        found = clock.host(calls, loops, batch)
        for name, row in found.items():
            record.add("host", {"call": name, "mode": "no_grad", **row})
        with torch._C._AutoDispatchBelowAutograd():
            raw = {name: call for name, call in calls.items() if not name.startswith("secateur.")}
            below = clock.host(raw, loops, batch)
    for name, row in below.items():
        record.add("host", {"call": name, "mode": "below autograd", **row})
    most = max(MOST_HOST_US, below["torch.add"]["median_us"] + MOST_OVER_ADD_US)
    for name in ("torch.ops.secateur.mask_apply_", "torch.ops.secateur.threshold_relu"):
        took = below[name]["median_us"]
        record.add("goals", {"goal": f"host time of {name}, us, below autograd", "at_most": most, "found": took,
                             "reached": took <= most})  # fmt: skip


def goals(rows: list[tuple[Case, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was asked of the operators, case by case, and what was found."""
    found: list[dict[str, Any]] = []

    def put(case: Case, what: str, at_least: float, value: float) -> None:
        found.append({"goal": f"{case}: {what}", "at_least": at_least, "found": value, "reached": value >= at_least})

    for case, row in rows:
        who = {name: one for name, one in row["contenders"].items() if "median_ms" in one}
        ours = {name: who[name] for name in OURS if name in who}
        if not ours or (case.operator.startswith("mask_") and case.operator != "mask_apply"):
            continue
        best = min(one["median_ms"] for one in ours.values())
        if case.size >= FROM and case.row <= 16 << 10:
            for name, one in ours.items():
                put(case, f"{name}, share of copy_", LEAST_SHARE, one.get("share_of_copy", 0.0))
        for name, one in who.items():
            if name.startswith("torch.compile"):
                put(case, "torch.compile's time over ours", 1.0, one["median_ms"] / best)
            if name == "eager: composed" and case.operator == "statistics_threshold" and case.size >= FROM:
                put(case, "eager's time over ours", LEAST_OVER_EAGER, one["median_ms"] / best)
    return found
