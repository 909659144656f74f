"""Workers side by side. One that dies, or that no word comes from, is a failure of the module that it named last."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

#: A module takes about a second; a first call loads parts of torch.
SILENT_S = 90.0


class _Worker:
    """A process that tries seeds ``seed, seed + step, ...``, and a thread that hears it."""

    def __init__(self, seed: int, step: int, options: Sequence[str], words: queue.Queue[tuple[_Worker, str]]) -> None:
        self.seed, self.step, self.heard = seed, step, time.monotonic()
        command = [sys.executable, "-m", f"{__package__}", "--work", f"{seed}", f"{step}", *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        threading.Thread(target=self._hear, args=(words,), daemon=True).start()

    def _hear(self, words: queue.Queue[tuple[_Worker, str]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for text in out:
                words.put((self, text))
        words.put((self, ""))

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


def lines(seed: int, jobs: int, seconds: float, options: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """What the workers say of each module, until the time is over."""
    deadline = time.monotonic() + seconds
    words: queue.Queue[tuple[_Worker, str]] = queue.Queue()
    workers = {_Worker(seed + i, jobs, options, words) for i in range(jobs)}
    try:
        while (now := time.monotonic()) < deadline:
            lost: list[tuple[_Worker, str]] = []
            try:
                worker, text = words.get(timeout=min(1.0, deadline - now))
            except queue.Empty:
                lost = [(w, "hangs") for w in workers if time.monotonic() - w.heard > SILENT_S]
            else:
                if worker not in workers:
                    continue  # it was ended
                worker.heard = time.monotonic()
                line = json.loads(text) if text else None
                if line is None:
                    code = worker.process.wait()
                    lost = [(worker, signal.Signals(-code).name if code < 0 else f"exit {code}")]
                elif "begins" in line:
                    worker.seed = line["begins"]
                else:
                    yield line
            for worker, how in lost:
                worker.end()
                workers.remove(worker)
                workers.add(_Worker(worker.seed + worker.step, worker.step, options, words))
                yield _lost(worker.seed, how)
    finally:
        for worker in workers:
            worker.end()


def _lost(seed: int, how: str) -> dict[str, Any]:
    failure = {"kind": f"process: {how}", "detail": f"seed {seed}", "want": "", "got": ""}
    return {"seed": seed, "features": [], "calls": [], "refused": {}, "wholly_torch": False, "failures": [failure]}
