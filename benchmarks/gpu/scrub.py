"""A result may be shown to anybody: folders and the host's name are taken out of every text in it."""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from .parts import ROOT


def _names() -> list[tuple[str, str]]:
    """(text, what stands in its place), longest first, so that a folder inside another one is found."""
    names = {
        str(ROOT): ".",
        str(Path(sys.prefix)): "<python>",
        str(Path(sys.base_prefix)): "<python>",
        str(Path.home()): "~",
        tempfile.gettempdir(): "<tmp>",
        socket.gethostname(): "<host>",
    }
    return sorted(((text, to) for text, to in names.items() if len(text) > 1), key=lambda pair: -len(pair[0]))


_FOUND = [(re.compile(rf"{re.escape(text)}(?![\w-])"), to) for text, to in _names()]
#: Whatever else is a file's place: its last two parts are enough to find it.
_PATH = re.compile(r"(?<![\w.~>/])/(?:[\w.+@-]+/)+([\w.+@-]+/[\w.+@-]+)")


def scrubbed(value: Any) -> Any:
    """The same data with such texts replaced."""
    if isinstance(value, str):
        for pattern, to in _FOUND:
            value = pattern.sub(to, value)
        return _PATH.sub(r".../\1", value)
    if isinstance(value, dict):
        return {scrubbed(str(key)): scrubbed(item) for key, item in value.items()}
    return [scrubbed(item) for item in value] if isinstance(value, list | tuple) else value
