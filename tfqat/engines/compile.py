"""Which TensorRT compiles a model here: the one asked for, or the best that is usable, or none, with the reason in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tfqat.engines import tensorrt, tensorrt_rtx
from tfqat.engines.build import read_source
from tfqat.engines.options import DEFAULT_BATCH, DEFAULT_TIMEOUT_S, BuildOptions
from tfqat.engines.report import EngineReport
from tfqat.errors import EngineError, nearest

BACKENDS = ("auto", "tensorrt", "tensorrt_rtx")
NOT_RUN = f"no engine was built: neither TensorRT nor TensorRT for RTX is usable here; `{tensorrt_rtx.INSTALL}` needs no GPU"


def compile_engine(
    onnx_path: Path | str,
    out: Path | str | None = None,
    backend: str = "auto",
    *,
    compute_capabilities: Sequence[str] = tensorrt_rtx.DEFAULT_COMPUTE_CAPABILITIES,
    batch: Sequence[int] = DEFAULT_BATCH,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
    strict: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    timing_cache: Path | str | None = None,
    fp16: bool = False,
) -> EngineReport:
    """Compiles a Q/DQ ONNX model into TensorRT engines.

    Args:
        onnx_path: The model.
        out: The name of the engine, `model.plan` beside the model by default. TensorRT for RTX puts the GPU generation before
            the suffix: `model.sm86.plan`.
        backend: `tensorrt`, `tensorrt_rtx`, or `auto`: TensorRT if it is installed and sees a GPU, else TensorRT for RTX.
        compute_capabilities: The GPU generations that TensorRT for RTX builds for; TensorRT builds for the GPU of this machine.
        batch: The smallest, optimal and largest batch of the dynamic first axis.
        shapes: Input -> smallest, optimal and largest shape, batch included, for inputs with other dynamic axes.
        strict: Whether it is an error that a product that the graph quantizes does not run Int8 x Int8; no engine is left then.
        timeout_s: The most seconds for each engine.
        timing_cache: A file with the timings of earlier builds, read if it is there and written again. TensorRT for RTX has none.
        fp16: Whether TensorRT 8 may run what is float in half precision; the others take the types from the graph.

    Returns:
        The report; its status is `not_run` if the backend is `auto`, none is usable, and the build is not strict.

    Raises:
        EngineError: The model is missing or not valid, the backend asked for is unknown or missing, a build fails, or a strict one
            does not run in INT8 what the graph quantizes.
    """
    source = Path(onnx_path)
    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}{nearest(backend, BACKENDS)}")
    target = Path(out) if out is not None else source.with_suffix(".plan")
    cache = Path(timing_cache) if timing_cache is not None else None
    options = BuildOptions(batch=batch, shapes=shapes or {}, strict=strict, timeout_s=timeout_s, timing_cache=cache, fp16=fp16)
    if backend == "tensorrt" or (backend == "auto" and tensorrt.is_available()[0]):
        return tensorrt.build(source, target, options=options)
    if backend == "tensorrt_rtx" or tensorrt_rtx.is_available()[0]:
        return tensorrt_rtx.build(source, target, compute_capabilities=compute_capabilities, options=options)
    read_source(source, options)
    if strict:
        raise EngineError(f"strict: {NOT_RUN}")
    return EngineReport(backend="none", version="", status="not_run", message=NOT_RUN)


def usable_backends() -> dict[str, str]:
    """What runs or compiles models here, with its version or what is missing; `tfqat doctor` prints it."""
    from tfqat.engines import onnxruntime

    found = {"tensorrt": tensorrt.is_available(), "tensorrt_rtx": tensorrt_rtx.is_available(), "onnxruntime": onnxruntime.is_available()}
    return {name: detail for name, (_, detail) in found.items()}
