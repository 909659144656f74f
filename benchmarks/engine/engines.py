"""Who takes part: names, what each is given, its Python, its settings. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("SECATEUR_PEERS", ROOT / "build" / "peers"))


@dataclass(frozen=True)
class Engine:
    """One contender.

    adapter: a class of adapters.py; given: "dense" (all weights, the same speed whatever is zero) or "pruned";
    file: "torch" (a pickled module) or "onnx"; group: whose best a ratio is taken over; any_batch: takes another batch
    size without being loaded again; peer: a folder of PEERS whose Python runs it, "" for the one that runs this.
    """

    adapter: str
    title: str
    given: str
    file: str
    group: str
    any_batch: bool = False
    peer: str = ""
    options: tuple[tuple[str, object], ...] = ()

    @property
    def python(self) -> str:
        return str(PEERS / self.peer / "bin" / "python") if self.peer else sys.executable


ENGINES = {
    "compile": Engine("Compiled", "secateur.compile", "pruned", "torch", "ours", True),
    "convert": Engine("Converted", "secateur.convert", "pruned", "torch", "ours", True),
    "eager": Engine("Eager", "torch eager", "dense", "torch", "torch", True),
    "channels-last": Engine("EagerChannelsLast", "torch eager, channels_last", "dense", "torch", "torch", True),
    "inductor": Engine(
        "Inductor", "torch.compile, freezing", "dense", "torch", "torch", options=(("channels_last", True),)
    ),
    "ort": Engine("OnnxRuntime", "ONNX Runtime", "dense", "onnx", "dense engines"),
    "openvino": Engine("OpenVino", "OpenVINO", "dense", "onnx", "dense engines"),
    "deepsparse": Engine("DeepSparse", "DeepSparse", "pruned", "onnx", "sparse engines", peer="deepsparse"),
    # Not in any table: what another setting would give (`--engines ort,ort-blocking`). Where one was faster, it became
    # the setting above: torch.compile in channels_last takes 2 to 15 % less than contiguous.
    "ort-blocking": Engine(
        "OnnxRuntime", "ONNX Runtime, no spinning", "dense", "onnx", "trials", options=(("spinning", False),)
    ),
    "openvino-2streams": Engine(
        "OpenVinoStreams", "OpenVINO, 2 streams of half a batch", "dense", "onnx", "trials", options=(("streams", 2),)
    ),
    "openvino-pruned": Engine("OpenVino", "OpenVINO on the pruned model", "pruned", "onnx", "trials"),
    "inductor-contiguous": Engine("Inductor", "torch.compile, contiguous", "dense", "torch", "trials"),
    "inductor-autotune": Engine(
        "Inductor",
        "torch.compile, max-autotune",
        "dense",
        "torch",
        "trials",
        options=(("channels_last", True), ("mode", "max-autotune")),
    ),
}
#: The dense engines that a user could pick instead of torch: issue 3 calls the faster of them "best dense".
BEST_DENSE = ("ort", "openvino")
DEFAULT = ("compile", "convert", "eager", "channels-last", "inductor", "ort", "openvino", "deepsparse")
