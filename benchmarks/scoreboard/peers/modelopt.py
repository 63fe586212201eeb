"""NVIDIA Model Optimizer's ONNX quantization, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx import quantization

from benchmarks.scoreboard.peer import Cannot, Schedule


def quantize(path: Path, batches: list[Any], method: str = "entropy") -> Path:
    """INT8 at TensorRT's places; what stays float stays float32, as with all others."""
    quantized = path.with_name("quantized.onnx")
    quantization.quantize(
        str(path),
        quantize_mode="int8",
        calibration_data={"image": np.concatenate(batches)},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(quantized),
    )
    return quantized


def export(quantized: Path, path: Path) -> None:
    """It is ONNX already."""
    path.write_bytes(quantized.read_bytes())


class _ModelOptimizer:
    packages = ("nvidia-modelopt", "onnx", "onnxruntime", "numpy")
    variants: Mapping[str, str] = {
        method: f"`quantize`, int8, {method} calibration, the remainder float32" for method in ("entropy", "max")
    }
    trains_from = ""
    is_keras = False

    def load(self, folder: Path) -> Any:
        return folder / "float.onnx"

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        if bits != 8:
            raise Cannot("its int4 mode for ONNX takes weights of MatMul and Gemm alone, and leaves activations float")
        return quantize(model, batches, variant)

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        raise Cannot("its quantization-aware training is for PyTorch; ONNX files are quantized after training only")

    def export(self, model: Any, path: Path) -> None:
        export(model, path)


PEER = _ModelOptimizer()
