"""Idle threads that sleep: set before the OpenMP library is loaded, which means before torch is.

Between two parallel loops the threads of OpenMP spin, so that they start at once. Beside other work they spin on the
core that somebody needs, the other thread of the same loop first of all: training in small batches then takes 6 to 15
times as long. With ``OMP_WAIT_POLICY=PASSIVE`` they sleep. The library reads it once, when it is loaded, and this
package has imported torch by the time that a command runs; so the command is started once more with it. ``import
secateur`` changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Whoever has set one of these has chosen.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def with_passive_threads(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment to start again with; None: the waiting has been chosen already."""
    if any(name in environment for name in _CHOICES):
        return None
    return {**environment, "OMP_WAIT_POLICY": "PASSIVE"}


def start_again_with_passive_threads() -> None:
    """Replace this process by the same command with sleeping threads. Returns where that is not needed or not possible.

    The process keeps its number, its files and its working directory. Nothing must have been begun yet.
    """
    environment = with_passive_threads(os.environ)
    if environment is None or not sys.executable or os.name != "posix":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:  # the interpreter was moved, or may not be started: the demo is right without it, only slower
        print("secateur: OMP_WAIT_POLICY=PASSIVE could not be set: slower beside other work", file=sys.stderr)
