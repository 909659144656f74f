"""Between `pip install -v` and the reader: says how far the compiler is, and everything only where it failed.

    pip install -v ... 2>&1 | python cmake/progress.py build/install.log

pip shows nothing of a build, or with -v every command. Ninja counts: a line for every tenth of the files, and one at
least every 15 seconds while the compiler is silent. The whole output is in the file; its end is printed where a line
of it says that something failed. Exit code 0: pip's own is the shell's to keep (pipefail).
"""

import re
import sys
import threading
import time
from collections import deque
from pathlib import Path

SILENT_S = 15.0
COUNT = re.compile(r"\[(\d+)/(\d+)\] (?:Building|Linking|Generating)")
FAILED = re.compile(r"^\s*(?:FAILED:|ninja: build stopped|ERROR:|error: |× |CMake Error)|: (?:fatal )?error: ")
KEPT = re.compile(r"^(?:Successfully installed|Installing collected packages|Collecting |Downloading |WARNING: )")


def main() -> None:
    log = Path(sys.argv[1])
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    last: deque[str] = deque(maxlen=60)
    state = {"said": begin, "done": 0, "all": 0, "tenth": 0}
    ended = threading.Event()

    def say(text: str) -> None:
        state["said"] = time.monotonic()
        print(f"    [{time.monotonic() - begin:4.0f} s] {text}", flush=True)

    def counted() -> str:
        if state["all"]:
            return f"{state['done']} of {state['all']} files compiled"
        return last[-1].strip()[:80] if last else "pip"

    def alive() -> None:
        while not ended.wait(0.5):
            if time.monotonic() - state["said"] > SILENT_S:
                say(f"{counted()}, still at work")

    threading.Thread(target=alive, daemon=True).start()
    failed = False
    with log.open("w") as whole:
        for line in sys.stdin:
            whole.write(line)
            whole.flush()
            last.append(line)
            failed = failed or bool(FAILED.search(line))
            if count := COUNT.search(line):
                state["done"], state["all"] = int(count[1]), int(count[2])
                tenth = 10 * state["done"] // state["all"]
                if tenth != state["tenth"] or state["done"] == 1:
                    state["tenth"] = tenth
                    say(counted())
            elif KEPT.match(line.lstrip()):
                say(line.strip())
    ended.set()
    if failed:
        print(f"    the end of {log}, which has everything:\n", flush=True)
        sys.stdout.writelines(last)


if __name__ == "__main__":
    main()
