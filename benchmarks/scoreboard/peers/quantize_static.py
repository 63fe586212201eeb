"""ONNX Runtime's `quantize_static`, on the float network's ONNX, prepared by `quant_pre_process` as its guide says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.scoreboard.peer import Cannot, Schedule


def quantize(path: Path, batches: list[Any], **settings: Any) -> Path:
    """Q/DQ with what is set; what is not, is as ONNX Runtime has it."""
    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("quantized.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(quantized), Batches(batches), quant_format=QuantFormat.QDQ, **settings)
    return quantized


def export(quantized: Path, path: Path) -> None:
    """It is ONNX already."""
    path.write_bytes(quantized.read_bytes())


class Batches(CalibrationDataReader):
    """What `quantize_static` reads its data from."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None behind the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


_PER_CHANNEL = {"per_channel": True, "weight_type": QuantType.QInt8}
# TensorRT takes no int32 biases.
_FOR_TENSORRT = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "symmetric": {**_PER_CHANNEL, "activation_type": QuantType.QInt8, "extra_options": _FOR_TENSORRT},
    "uint8": {**_PER_CHANNEL, "activation_type": QuantType.QUInt8},
    "percentile": {
        **_PER_CHANNEL,
        "activation_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.Percentile,
        "extra_options": _FOR_TENSORRT,
    },
}


class _OnnxRuntime:
    packages = ("onnxruntime", "onnx")
    variants: Mapping[str, str] = {
        "default": "nothing set: asymmetric int8, min-max, weights per tensor",
        "symmetric": "symmetric int8, min-max, weights per channel, float biases: what TensorRT takes",
        "uint8": "asymmetric uint8, min-max, weights per channel",
        "percentile": "as symmetric, percentile 99.999",
    }
    trains_from = ""
    is_keras = False

    def load(self, folder: Path) -> Any:
        return folder / "float.onnx"

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        settings = dict(_SETTINGS[variant])
        if bits == 4:
            settings["weight_type"] = QuantType.QInt4
        elif bits != 8:
            raise Cannot(f"quantize_static has no weights of {bits} bits")
        return quantize(model, batches, **settings)

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        raise Cannot("ONNX Runtime trains no quantized models")

    def export(self, model: Any, path: Path) -> None:
        export(model, path)


PEER = _OnnxRuntime()
