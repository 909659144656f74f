"""A pytest plugin: each test's outcome as a line of JSON as soon as it is there, so that a run that is killed has said
what passed and what it was at. ``pytest -p benchmarks.gpu.outcomes`` with SECATEUR_OUTCOMES=FILE."""

from __future__ import annotations

import json
import os
from typing import Any

#: Under xdist each process has the plugin: workers know what was collected, the one that steers them hears the rest.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


def _say(**entry: Any) -> None:
    with open(os.environ["SECATEUR_OUTCOMES"], "a") as file:
        file.write(json.dumps(entry) + "\n")


_state = {"failed": False}


def pytest_runtest_setup(item: Any) -> None:
    """A kernel that has faulted takes its process's GPU context along: all tests after it would fail. xdist begins
    another process for one that ends, and calls the test that it ended in crashed."""
    if WORKER and _state["failed"] and os.environ.get("SECATEUR_REQUIRE_GPU") == "1":
        _state["failed"] = False
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(70)


def pytest_collection_finish(session: Any) -> None:
    if WORKER in ("", "gw0") and session.items:
        _say(collected=[item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    if not WORKER:
        _say(begun=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    _state["failed"] = _state["failed"] or report.failed
    if WORKER:
        return
    if report.when == "call" or report.outcome != "passed":  # set-up and tear-down speak where they fail or skip
        said = ""
        if report.outcome == "skipped":
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message if crash else str(report.longrepr)
        _say(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), said=said[:600])
