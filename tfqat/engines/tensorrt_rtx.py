"""TensorRT for RTX: builds engines on any machine, with or without a GPU, for the GPU generations that it is told.

Its bindings are ordinary wheels (`pip install tfqat[rtx]`). Where there is no GPU an engine is built and serialized; only a
machine with the GPU can load and run it. Networks are strongly typed: what the ONNX file leaves in float32 runs in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from tfqat.engines.build import Backend, build_engines
from tfqat.engines.options import BuildOptions
from tfqat.engines.report import EngineReport
from tfqat.errors import EngineError, nearest

RTX = Backend(name="tensorrt_rtx", title="TensorRT for RTX", module="tensorrt_rtx_bindings")
COMPUTE_CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
DEFAULT_COMPUTE_CAPABILITIES = ("SM86", "SM89")
INSTALL = "pip install tfqat[rtx]"


def is_available() -> tuple[bool, str]:
    """Whether the bindings can be imported, and their version, or else why they cannot."""
    try:
        return True, str(importlib.import_module(RTX.module).__version__)
    except (ImportError, OSError) as error:
        return False, f"TensorRT for RTX is not usable ({error}): {INSTALL}"


def build(
    onnx_path: Path | str,
    out: Path | str,
    *,
    compute_capabilities: Sequence[str] = DEFAULT_COMPUTE_CAPABILITIES,
    options: BuildOptions | None = None,
) -> EngineReport:
    """Builds one engine for each GPU generation and reports the precision of every convolution and matrix product.

    Args:
        onnx_path: A Q/DQ model.
        out: `model.plan` makes `model.sm86.plan`, `model.sm89.plan`.
        compute_capabilities: Names such as SM86; `COMPUTE_CAPABILITIES` has all of them.
        options: The batch, the shapes, and everything else; there is no timing cache and no choice of float types.

    Raises:
        EngineError: The bindings are missing, an argument or the model is wrong, or a build fails; no engine is written then.
    """
    available, detail = is_available()
    if not available:
        raise EngineError(detail)
    return build_engines(RTX, Path(onnx_path), Path(out), _targets(compute_capabilities), options or BuildOptions())


def _targets(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not names:
        raise EngineError(f"compute_capabilities must be a list of names such as ['SM86', 'SM89']; got {names!r}")
    targets = tuple(dict.fromkeys(name.upper() for name in names))
    for target in targets:
        if target not in COMPUTE_CAPABILITIES:
            known = ", ".join(COMPUTE_CAPABILITIES)
            raise EngineError(f"unknown compute capability {target!r}; expected one of {known}{nearest(target, COMPUTE_CAPABILITIES)}")
    return targets
