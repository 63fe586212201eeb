"""tfqat: INT8 models for TensorRT from Keras models. Public names are imported at their first use, so that `import tfqat` is quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "tfqat.quantize.load",
    "plan": "tfqat.placement.planner",
    "Placement": "tfqat.placement.plan",
    "QPoint": "tfqat.placement.plan",
    "QuantSpec": "tfqat.spec",
    "PerTensor": "tfqat.spec",
    "PerChannel": "tfqat.spec",
    "Calibrator": "tfqat.spec",
    "Weight": "tfqat.placement.rules",
    "quantize_model": "tfqat.quantize.apply",
    "strip": "tfqat.quantize.apply",
    "TensorRTScheme": "tfqat.quantize.scheme",
    "WeightedQuantizeConfig": "tfqat.quantize.configs",
    "InputQuantizeConfig": "tfqat.quantize.configs",
    "TensorQuantizer": "tfqat.quantize.quantizers",
    "ActivationQuantizer": "tfqat.quantize.quantizers",
    "QuantizeWrapper": "tfqat.quantize.wrapper",
    "calibrate": "tfqat.calibration.calibrate",
    "Calibration": "tfqat.calibration.result",
    "correct": "tfqat.calibration.sequential",
    "equalize": "tfqat.calibration.equalize",
    "qat_plan": "tfqat.recipe.modifiers",
    "qat_compile": "tfqat.training.compile",
    "qat_callbacks": "tfqat.training.callbacks",
    "export_onnx": "tfqat.export.onnx",
    "ExportReport": "tfqat.export.onnx",
    "export_saved_model": "tfqat.export.saved_model",
    "Form": "tfqat.form",
    "Pixels": "tfqat.form",
    "verify": "tfqat.proof.verify",
    "ParityReport": "tfqat.proof.parity",
    "compile_engine": "tfqat.engines.compile",
    "EngineReport": "tfqat.engines.report",
    "load_engine": "tfqat.engines.serve",
    "Engine": "tfqat.engines.serve",
    "export_triton": "tfqat.engines.triton",
    "load_recipe": "tfqat.recipe.load",
    "sensitivity": "tfqat.analysis.sensitivity",
    "Sensitivity": "tfqat.analysis.result",
    "run": "tfqat.pipeline",
    "RunResult": "tfqat.pipeline",
}
_MODULES = {"errors", "numerics"}

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"tfqat.{name}")
    raise AttributeError(f"module 'tfqat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
