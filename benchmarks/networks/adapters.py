"""One class an engine: load, set the input, call, give the output. Imported by the workers, whose Pythons differ.

Every engine runs with its best settings: alone on the machine while it is its turn, it may spin as it likes.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np


class Adapter:
    """threads: of every engine. settings: what was set beyond the default, for the record. missing: ImportError."""

    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        self.threads, self.options = threads, options
        self.settings: dict[str, Any] = {}
        self.versions: dict[str, str] = {}

    def load(self, path: Path, x: np.ndarray) -> None:
        """Make the model at ``path`` ready for batches like ``x``."""
        raise NotImplementedError

    def input(self, x: np.ndarray) -> None:
        """What the next calls run on."""
        raise NotImplementedError

    def call(self) -> Any:
        """What is timed; the result goes to :meth:`output`."""
        raise NotImplementedError

    def output(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def profile(self) -> Any:
        """Layer by layer, as plain data; None where the engine does not say."""
        return None

    def same_in_torch(self) -> np.ndarray | None:
        """What torch makes of the same quantized model and input; None where nobody can tell."""
        return None


class _Torch(Adapter):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.versions["torch"] = torch.__version__
        self.model: Any = None
        self.x: Any = None

    def load(self, path: Path, x: np.ndarray) -> None:
        self.input(x)
        source = self.torch.load(path, weights_only=False)
        with self.torch.inference_mode():
            self.model = self.form(source, self.x)

    def form(self, model: Any, x: Any) -> Any:
        """What runs in place of the plain model, which is dropped afterwards."""
        return model

    def input(self, x: np.ndarray) -> None:
        self.x = self.torch.from_numpy(x)

    def call(self) -> Any:
        with self.torch.inference_mode():
            return self.model(self.x)

    def output(self, result: Any) -> np.ndarray:
        return result.numpy()


class Eager(_Torch):
    pass


class EagerChannelsLast(_Torch):
    def form(self, model: Any, x: Any) -> Any:
        self.settings["memory_format"] = "channels_last, input too"
        return model.to(memory_format=self.torch.channels_last)

    def input(self, x: np.ndarray) -> None:
        super().input(x)
        if self.x.dim() == 4:
            self.x = self.x.contiguous(memory_format=self.torch.channels_last)


class Inductor(_Torch):
    def load(self, path: Path, x: np.ndarray) -> None:
        import torch._dynamo
        import torch._inductor.config as config

        torch._dynamo.reset()
        config.freezing = True
        self.settings |= {"freezing": True, **self.options}
        self.input(x)
        model = self.torch.load(path, weights_only=False)
        if self.options.get("channels_last"):
            model = model.to(memory_format=self.torch.channels_last)
        self.model = self.torch.compile(model, fullgraph=True, dynamic=False, mode=self.options.get("mode"))

    def input(self, x: np.ndarray) -> None:
        super().input(x)
        if self.options.get("channels_last"):
            self.x = self.x.contiguous(memory_format=self.torch.channels_last)

    def call(self) -> Any:
        with self.torch.no_grad():  # freezing wants exactly this
            return self.model(self.x)


class _Secateur(_Torch):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import secateur
        from secateur import cpu

        self.secateur = secateur
        self.settings["instruction_set"] = cpu.current_isa()


class Converted(_Secateur):
    def form(self, model: Any, x: Any) -> Any:
        return self.secateur.convert(model, x)

    def profile(self) -> Any:
        return self.model.report.to_dict()


class Compiled(_Secateur):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        if not hasattr(self.secateur, "compile"):
            raise ImportError("this version has no secateur.compile")

    def form(self, model: Any, x: Any) -> Any:
        return self.secateur.compile(model, x)

    def profile(self) -> Any:
        return self.secateur.profile(self.model, self.x).to_dict()


class CompiledInt8(Compiled):
    """Quantized by ourselves, on the images that the peers' tools get; loading takes that long, too."""

    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        if not hasattr(self.secateur, "quantize"):
            raise ImportError("this version has no secateur.quantize")

    def load(self, path: Path, x: np.ndarray) -> None:
        self.calibration = np.load(path.parent / "calibration.npy")
        super().load(path, x)

    def form(self, model: Any, x: Any) -> Any:
        begin = time.perf_counter()
        quantized = self.secateur.quantize(model, [self.torch.from_numpy(self.calibration)])
        self.settings["quantize_s"] = time.perf_counter() - begin
        self.quantized = quantized
        return super().form(quantized, x)

    def same_in_torch(self) -> np.ndarray:
        with self.torch.inference_mode():
            return self.output(self.quantized(self.x))


class OnnxRuntime(Adapter):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import onnxruntime

        self.ort = onnxruntime
        self.versions["onnxruntime"] = onnxruntime.__version__

    def load(self, path: Path, x: np.ndarray) -> None:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        spinning = self.options.get("spinning", True)
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self.settings |= {"graph_optimization": "all", "execution": "sequential", "allow_spinning": spinning}
        self.open(path, options)
        self.input(x)

    def open(self, path: Path, options: Any) -> None:
        self.session = self.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def input(self, x: np.ndarray) -> None:
        self.feed = {"x": x}

    def call(self) -> Any:
        return self.session.run(None, self.feed)

    def output(self, result: Any) -> np.ndarray:
        return result[0]


class OnnxRuntimeInt8(OnnxRuntime):
    """Says how many layers run on integers, from the graph that it runs in the end."""

    def open(self, path: Path, options: Any) -> None:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            super().open(path, options)
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        kinds = Counter(node.op_type for node in graph.node)
        integer = sum(kinds[kind] for kind in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"))
        real = sum(kinds[kind] for kind in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
        self.settings |= {"int8_layers": integer, "layers": integer + real, "operators": dict(kinds)}


class OpenVino(Adapter):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import openvino

        self.ov = openvino
        self.core = openvino.Core()
        self.versions["openvino"] = openvino.__version__

    def compiled(self, model: Any, streams: int) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": "f32",  # the default may be bf16 where the CPU has it
        }
        self.settings |= settings
        return self.core.compile_model(model, "CPU", settings)

    def load(self, path: Path, x: np.ndarray) -> None:
        self.model = self.compiled(self.core.read_model(str(path)), 1)  # kept: a request does not keep it
        self.request = self.model.create_infer_request()
        self.input(x)

    def input(self, x: np.ndarray) -> None:
        self.x = x  # kept: the tensor points into it
        self.request.set_input_tensor(self.ov.Tensor(x, shared_memory=True))

    def call(self) -> Any:
        self.request.infer()

    def output(self, result: Any) -> np.ndarray:
        return self.request.get_output_tensor().data.copy()


class OpenVinoInt8(OpenVino):
    """Says how many layers run on integers, from its execution graph."""

    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        if importlib.util.find_spec("nncf") is None:
            raise ImportError("nncf, which makes its int8 models, is not installed; `make peers` installs it")

    def load(self, path: Path, x: np.ndarray) -> None:
        super().load(path, x)
        layers: Counter[str] = Counter()
        for node in self.model.get_runtime_model().get_ordered_ops():
            about = {key: str(node.rt_info[key].value) for key in ("layerType", "runtimePrecision", "primitiveType")}
            if about["layerType"] in ("Convolution", "FullyConnected", "MatMul", "GroupConvolution"):
                # The precision is that of the input; the primitive says what it computes in.
                layers[f"{about['runtimePrecision']} {about['primitiveType']}"] += 1
        integer = sum(count for kind, count in layers.items() if kind.startswith(("u8 ", "i8 ")))
        self.settings |= {"int8_layers": integer, "layers": layers.total(), "kernels": dict(layers)}


class OpenVinoStreams(OpenVino):
    """The batch in as many parts as there are streams, at the same time."""

    def load(self, path: Path, x: np.ndarray) -> None:
        streams = int(self.options["streams"])
        model = self.core.read_model(str(path))
        model.reshape([len(x) // streams, *x.shape[1:]])
        self.model = self.compiled(model, streams)
        self.requests = [self.model.create_infer_request() for _ in range(streams)]
        self.input(x)

    def input(self, x: np.ndarray) -> None:
        self.x = x
        for request, part in zip(self.requests, np.split(x, len(self.requests)), strict=True):
            request.set_input_tensor(self.ov.Tensor(part, shared_memory=True))

    def call(self) -> Any:
        for request in self.requests:
            request.start_async()
        for request in self.requests:
            request.wait()

    def output(self, result: Any) -> np.ndarray:
        return np.concatenate([request.get_output_tensor().data for request in self.requests])


class DeepSparse(Adapter):
    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import deepsparse

        self.deepsparse = deepsparse
        self.versions["deepsparse"] = deepsparse.__version__

    def load(self, path: Path, x: np.ndarray) -> None:
        self.settings |= {"num_cores": self.threads, "scheduler": "single_stream"}
        self.engine = self.deepsparse.Engine(
            str(path), batch_size=len(x), num_cores=self.threads, scheduler=self.deepsparse.Scheduler.single_stream
        )
        self.input(x)

    def input(self, x: np.ndarray) -> None:
        self.feed = [x]

    def call(self) -> Any:
        return self.engine.run(self.feed, val_inp=False)

    def output(self, result: Any) -> np.ndarray:
        return result[0]


class Preparer(Adapter):
    """No contender: the process that makes the models, so that the one that steers stays small and idle."""

    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        super().__init__(threads, options)
        import torch

        torch.set_num_threads(threads)
        self.versions["torch"] = torch.__version__

    def prepare(self, **arguments: Any) -> dict[str, Any]:
        from .networks import prepare

        return prepare(**{**arguments, "folder": Path(arguments["folder"])})
