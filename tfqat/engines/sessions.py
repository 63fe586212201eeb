"""An ONNX graph in ONNX Runtime, by the provider that was asked for or the best one that starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfqat.engines import onnxruntime as ort_runtime
from tfqat.engines.bench import RUNTIMES, available
from tfqat.engines.tensors import Feed, Tensor
from tfqat.errors import EngineError
from tfqat.form import Form

AUTO = ("tensorrt", "tensorrt_rtx", "cuda", "cpu")
"""What `auto` tries for an ONNX graph, in this order."""


class SessionRunner:
    """An ONNX graph in ONNX Runtime; sessions are safe to call from several threads at once."""

    def __init__(self, session: Any, runtime: str) -> None:
        self.runtime = runtime
        self.form = Form.of(session.get_modelmeta().custom_metadata_map)
        self.inputs, self.outputs = (tuple(map(_tensor, found)) for found in (session.get_inputs(), session.get_outputs()))
        self._session: Any = session

    def run(self, feed: Feed) -> list[np.ndarray[Any, Any]]:
        """The outputs, in their order."""
        session = self._session  # another thread may close this one meanwhile
        if session is None:
            raise EngineError("the engine is closed")
        return ort_runtime.execute(session, feed)

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def open_session(path: Path, runtime: str, *, literal: bool, threads: int | None) -> SessionRunner:
    """A graph, ready to run; the arguments are those of `load_engine`.

    Raises:
        EngineError: the file cannot be loaded, or ONNX Runtime or the provider is not there.
    """
    usable, detail = ort_runtime.is_available()
    if not usable:
        raise EngineError(detail)
    if literal and runtime not in ("auto", "cpu"):
        raise EngineError(f"literal is for the CPU; got the runtime {runtime!r}")
    here = available()
    if runtime != "auto" and runtime not in here:
        raise EngineError(
            f"ONNX Runtime has no {RUNTIMES[runtime]} here; it has {', '.join(here)}. The package onnxruntime-gpu has cuda and tensorrt"
        )
    wanted = "cpu" if literal else runtime
    for name in [one for one in AUTO if one in here] if wanted == "auto" else [wanted]:
        session = ort_runtime.session(path, literal=literal, provider=RUNTIMES[name], threads=threads)
        if session.get_providers()[0] == RUNTIMES[name]:  # it falls back to the CPU without an error
            return SessionRunner(session, name)
    raise EngineError(
        f"ONNX Runtime has {RUNTIMES[wanted]}, but cannot start it and would fall back to the CPU: the GPU, or CUDA's or TensorRT's "
        "libraries, are missing"
    )


def _tensor(given: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else None for size in given.shape)
    if given.type not in ort_runtime.DTYPES:
        raise EngineError(f"tensor {given.name!r} has the type {given.type}; expected one of {', '.join(ort_runtime.DTYPES)}")
    return Tensor(name=given.name, dtype=ort_runtime.DTYPES[given.type], shape=shape)
