"""The built libraries must use torch's stable ABI only, and nothing newer than the torch that the package asks for.

python .ci/abi.py [LIBRARY...]        (default: those of the installed secateur)
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def installed() -> list[Path]:
    from secateur._base.library import LIBRARY_DIR

    return sorted(LIBRARY_DIR.glob("*.so"))


floor = re.search(r'"torch>=([\d.]+)"', Path("pyproject.toml").read_text())
assert floor, "pyproject.toml: no torch>= among the dependencies"
allowed = tuple(int(part) for part in floor[1].split("."))

bad = False
for library in [Path(arg) for arg in sys.argv[1:]] or installed():
    run = subprocess.run(
        ["torch-abi-audit", "--json", "--check", "torch", str(library)], capture_output=True, text=True
    )
    if run.returncode not in (0, 1):
        sys.exit(f"torch-abi-audit failed: {run.stderr}")
    report = json.loads(run.stdout)
    parts = report["bundled_libs"] + report["extensions"]
    bad |= not parts
    for torch in (part["torch"] for part in parts):
        needs = tuple(int(n) for n in (torch["min_torch_version"] or "0").split("."))[: len(allowed)]
        symbols = [*torch["unstable_symbols"], *torch["unknown_shim_symbols"]]
        ok = run.returncode == 0 and torch["stable"] and not symbols and needs <= allowed
        bad |= not ok
        verdict = "ok" if ok else "FAILED"
        print(f"{library.name}: stable {torch['stable']}, needs torch {torch['min_torch_version']}: {verdict}")
        for symbol in symbols:
            print(f"  not in the stable ABI: {symbol}")
sys.exit(bad)
