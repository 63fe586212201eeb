"""The full TensorRT 10 or 11: builds an engine for the GPU of this machine. Not run by tfqat's own tests: see below.

The package comes from NVIDIA's index and needs an NVIDIA GPU to build, neither of which tfqat's tests have, so this adapter has
never been run. It is kept thin for that reason: it starts the same worker as TensorRT for RTX, which uses only what both packages
document (strongly typed network, ONNX parser, optimization profile, serialized network). The precision of each kernel is reported
if this TensorRT logs its kernels in the same form, and is left out of the report if it does not.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tfqat.engines.build import DEFAULT_BATCH, DEFAULT_TIMEOUT_S, Backend, build_engines
from tfqat.engines.report import EngineReport
from tfqat.errors import EngineError

FULL = Backend(name="tensorrt", title="TensorRT", module="tensorrt")
INSTALL = "pip install tfqat[tensorrt], from NVIDIA's package index"


def is_available() -> tuple[bool, str]:
    """Whether TensorRT can be imported and sees a GPU, and its version, or else what is missing."""
    try:
        version = str(importlib.import_module(FULL.module).__version__)
    except (ImportError, OSError) as error:
        return False, f"TensorRT is not installed ({error}): {INSTALL}"
    return (True, version) if gpu_visible() else (False, f"TensorRT {version} is installed, but no NVIDIA GPU is visible to build with")


def gpu_visible() -> bool:
    """Whether the CUDA driver is installed and finds a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def build(
    onnx_path: Path | str, out: Path | str, *, batch: Sequence[int] = DEFAULT_BATCH, timeout_s: float = DEFAULT_TIMEOUT_S
) -> EngineReport:
    """Builds `out` for the GPU of this machine.

    Args:
        onnx_path: A Q/DQ model.
        out: The engine's path; a name without an engine's suffix gets `.plan`.
        batch: The smallest, optimal and largest batch, for inputs whose first axis is dynamic.
        timeout_s: In seconds.

    Raises:
        EngineError: TensorRT or the GPU is missing, an argument or the model is wrong, or the build fails.
    """
    available, detail = is_available()
    if not available:
        raise EngineError(detail)
    return build_engines(FULL, Path(onnx_path), Path(out), (None,), batch=batch, timeout_s=timeout_s)
