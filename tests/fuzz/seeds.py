"""Seeds of the C++ fuzzers, one a line in base64: hundreds of files of some bytes each would be no better to read.

python tests/fuzz/seeds.py unpack seeds/layer.txt FOLDER      into files, for libFuzzer
python tests/fuzz/seeds.py pack FOLDER seeds/layer.txt        from a corpus, made small by `fuzz_layer -merge=1`
"""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path


def unpack(lines: Path, folder: Path) -> None:
    for line in lines.read_text("ascii").split():
        data = base64.b64decode(line)
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)  # libFuzzer's own names


def pack(folder: Path, lines: Path) -> None:
    seeds = sorted((file.read_bytes() for file in folder.iterdir()), key=lambda data: (len(data), data))
    lines.write_text("".join(base64.b64encode(data).decode() + "\n" for data in seeds if data), "ascii")


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
