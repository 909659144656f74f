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
    file: "torch" (a pickled module), "onnx", or what a tool of quantizers.py made of that; group: whose best a ratio is
    taken over; any_batch: takes another batch size without being loaded again; peer: a folder of PEERS whose Python
    runs it, "" for the one that runs this; pattern: of the zeros that it is given; precision: "fp32" or "int8".
    """

    adapter: str
    title: str
    given: str
    file: str
    group: str
    any_batch: bool = False
    peer: str = ""
    options: tuple[tuple[str, object], ...] = ()
    pattern: str = "1x1"
    precision: str = "fp32"

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
    "secateur-int8": Engine(
        "CompiledInt8", "secateur int8", "pruned", "torch", "ours", True, pattern="1x4", precision="int8"
    ),
    "ort-int8": Engine("OnnxRuntimeInt8", "ONNX Runtime int8", "dense", "ort-int8", "dense int8", precision="int8"),
    "openvino-int8": Engine("OpenVinoInt8", "OpenVINO int8", "dense", "openvino-int8", "dense int8", precision="int8"),
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
INT8 = ("ort", "openvino", "openvino-int8", "ort-int8", "compile", "secateur-int8")
