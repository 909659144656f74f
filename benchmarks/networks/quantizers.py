"""The peers' own tools for int8: from an fp32 ONNX file and a few images to a file of static int8, nothing tuned.

Both run where the models are made (`Preparer`), one file a batch size, calibrated on the same images as ours. A tool's
defaults are kept but where this says otherwise: they are what its user would get.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: What an ``Engine.file`` is called; those of :data:`TOOLS` are made out of the ONNX file of the same batch.
FILES = {
    "torch": "model.pt",
    "onnx": "model-{batch}.onnx",
    "openvino-int8": "model-{batch}-openvino-int8.xml",
    "ort-int8": "model-{batch}-ort-int8.onnx",
}


def batches_of(images: np.ndarray, batch: int) -> list[np.ndarray]:
    """All images ``[n, ...]`` in batches of exactly ``batch``, for the shapes are static; the last one begins anew."""
    count = -(-len(images) // batch)
    return [images[np.arange(i * batch, (i + 1) * batch) % len(images)] for i in range(count)]


def openvino(source: Path, target: Path, images: np.ndarray, batch: int) -> None:
    """NNCF's post-training quantization, as OpenVINO's manual has it (preset: performance, symmetric)."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(str(source))
    calibration = batches_of(images, batch)
    parameters = nncf.AdvancedQuantizationParameters(batchwise_statistics=batch > 1)
    quantized = nncf.quantize(
        model, nncf.Dataset(calibration), subset_size=len(calibration), advanced_parameters=parameters
    )
    ov.save_model(quantized, str(target), compress_to_fp16=False)


def onnx_runtime(source: Path, target: Path, images: np.ndarray, batch: int) -> None:
    """``quantize_static`` after its pre-processing: QDQ, u8 activations, s8 weights with a scale for each channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(batches_of(images, batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x}

    ready = target.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(ready))
    quantize_static(
        str(ready), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    ready.unlink()


TOOLS: dict[str, Callable[[Path, Path, np.ndarray, int], Any]] = {"openvino-int8": openvino, "ort-int8": onnx_runtime}
