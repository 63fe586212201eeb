"""The full TensorRT 8.6, 10 or 11: builds an engine for the GPU of this machine. Not run by tfqat's own tests: see below.

The package comes from NVIDIA's index and needs an NVIDIA GPU to build, neither of which tfqat's tests have, so this adapter has
never been run. It is kept thin for that reason: it starts the same worker as TensorRT for RTX, and what differs between the versions
is in `tensorrt_api`, which is tested against the recorded API of each. The precision of each kernel is what the engine inspector says.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path

from tfqat.engines.build import Backend, build_engines
from tfqat.engines.options import BuildOptions
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
    driver = cuda_driver()
    count = ctypes.c_int(0)
    return driver is not None and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def gpu_name() -> str | None:
    """The name of the first GPU, such as `NVIDIA A10`; None if there is none."""
    driver = cuda_driver()
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, len(name), device):
        return None
    return name.value.decode(errors="replace")


def cuda_driver() -> ctypes.CDLL | None:
    """The CUDA driver, started; None if it is not installed or finds no GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def build(onnx_path: Path | str, out: Path | str, *, options: BuildOptions | None = None) -> EngineReport:
    """Builds `out` for the GPU of this machine.

    Args:
        onnx_path: A Q/DQ model.
        out: The engine's path; a name without an engine's suffix gets `.plan`.
        options: The batch, the shapes, and everything else.

    Raises:
        EngineError: TensorRT or the GPU is missing, an argument or the model is wrong, or the build fails.
    """
    available, detail = is_available()
    if not available:
        raise EngineError(detail)
    return build_engines(FULL, Path(onnx_path), Path(out), (None,), options or BuildOptions(), gpu=gpu_name())
