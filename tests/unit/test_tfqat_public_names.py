"""The public names: pinned, each one resolves, and neither the package nor the command line's help loads TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tfqat

NAMES = [
    "ActivationQuantizer",
    "Calibration",
    "Calibrator",
    "Engine",
    "EngineReport",
    "ExportReport",
    "Form",
    "InputQuantizeConfig",
    "ParityReport",
    "PerChannel",
    "PerTensor",
    "Pixels",
    "Placement",
    "QPoint",
    "QuantSpec",
    "QuantizeWrapper",
    "RunResult",
    "Sensitivity",
    "TensorQuantizer",
    "TensorRTScheme",
    "Weight",
    "WeightedQuantizeConfig",
    "__version__",
    "calibrate",
    "compile_engine",
    "correct",
    "equalize",
    "errors",
    "export_onnx",
    "export_saved_model",
    "export_triton",
    "load_engine",
    "load_model",
    "load_recipe",
    "numerics",
    "plan",
    "qat_callbacks",
    "qat_compile",
    "qat_plan",
    "quantize_model",
    "run",
    "sensitivity",
    "strip",
    "verify",
]


def test_exported_names_are_pinned() -> None:
    assert sorted(tfqat.__all__) == NAMES
    assert dir(tfqat) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves_to_the_thing_of_that_name(name: str) -> None:
    value = getattr(tfqat, name)
    assert getattr(value, "__name__", name).rpartition(".")[2] == name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'tfqat' has no attribute 'quantise_model'$"):
        tfqat.quantise_model  # noqa: B018


HEAVY = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "onnx", "onnxruntime", "pydantic")
IMPORTS = f"import sys, tfqat; sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules) or 0)"
# The command line as `tfqat --help` runs it, which leaves by SystemExit or returns.
HELP = f"""
import sys
from tfqat_cli.main import main
sys.argv = ["tfqat", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
sys.exit(" ".join(name for name in {HEAVY[:4]} if name in sys.modules) or 0)
"""


@pytest.mark.parametrize("code", [IMPORTS, HELP], ids=["import tfqat", "tfqat --help"])
def test_starts_without_tensorflow(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_the_commands() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60, check=False)
    for command in ("run", "init", "plan", "verify", "compile", "report", "doctor", "schema"):
        assert f" {command} " in done.stdout
