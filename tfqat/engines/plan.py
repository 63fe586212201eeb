"""Runs a plan of TensorRT or TensorRT for RTX, or says why it cannot be run here. Tested against the recorded API; never run on a GPU."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfqat import files
from tfqat.engines import tensorrt, tensorrt_rtx
from tfqat.engines.cuda import Device
from tfqat.engines.metadata import metadata_path, read_metadata
from tfqat.engines.tensors import Feed, Tensor
from tfqat.errors import EngineError
from tfqat.form import Form

RUNTIMES = {"tensorrt": tensorrt.FULL, "tensorrt_rtx": tensorrt_rtx.RTX}
_INSTALL = {"tensorrt": tensorrt.INSTALL, "tensorrt_rtx": tensorrt_rtx.INSTALL}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8", "INT64": "int64"}
"""TensorRT's types by the names of its DataType, as NumPy calls them."""


class PlanRunner:
    """An engine on the GPU, with one context: calls from several threads wait for each other.

    Attributes:
        runtime, form: what runs it, and the form of the graph that it was built from.
        inputs, outputs: what it takes and gives.
    """

    def __init__(self, path: Path, runtime: str, trt: Any, device: Any, metadata: Mapping[str, Any]) -> None:
        self.runtime = runtime
        self.form = Form.of(metadata.get("onnx", {}).get("metadata", {}))
        self._path, self._device, self._lock = path, device, threading.Lock()
        self._buffers: dict[str, tuple[int, int]] = {}
        with device.active():
            self._engine = _deserialized(path, trt, metadata)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"{path}: TensorRT cannot make an execution context; there may not be enough memory on the GPU")
            found = [_tensor(self._engine, self._engine.get_tensor_name(number)) for number in range(self._engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        self.inputs = tuple(one for one in found if self._engine.get_tensor_mode(one.name) == mode)
        self.outputs = tuple(one for one in found if self._engine.get_tensor_mode(one.name) != mode)

    def run(self, feed: Feed) -> list[np.ndarray[Any, Any]]:
        """The outputs, in the order of `outputs`.

        Raises:
            EngineError: TensorRT or the driver refuses it.
        """
        with self._lock:
            if self._context is None:
                raise EngineError(f"{self._path}: the engine is closed")
            return self._run(feed)

    def _run(self, feed: Feed) -> list[np.ndarray[Any, Any]]:
        with self._device.active():
            for name, value in feed.items():
                if not self._context.set_input_shape(name, tuple(value.shape)):
                    raise EngineError(f"{self._path}: TensorRT refuses the shape {list(value.shape)} for the input {name!r}")
                self._device.upload(self._bound(name, value.nbytes), value)
            outputs = [np.empty(self._shape(one.name), one.dtype) for one in self.outputs]
            places = [self._bound(one.name, value.nbytes) for one, value in zip(self.outputs, outputs, strict=True)]
            if not self._context.execute_async_v3(self._device.stream):
                raise EngineError(f"{self._path}: TensorRT cannot run the engine")
            for place, value in zip(places, outputs, strict=True):
                self._device.download(place, value)
            self._device.synchronize()
        return outputs

    def close(self) -> None:
        """Give the memory of the GPU back."""
        with self._lock:
            if self._context is None:
                return
            with self._device.active():
                for address, _ in self._buffers.values():
                    self._device.free(address)
                self._buffers, self._context, self._engine = {}, None, None
            self._device.close()

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{self._path}: the shape of the output {name!r} depends on the data, {list(shape)}; such outputs are not taken"
            )
        return shape

    def _bound(self, name: str, size: int) -> int:
        """Where a tensor lies on the GPU; memory is kept from call to call, and grows."""
        address, room = self._buffers.get(name, (0, -1))
        if room < size:
            if room >= 0:
                self._device.free(address)
                del self._buffers[name]
            address, room = self._device.allocate(size), size
            self._buffers[name] = address, room
        self._context.set_tensor_address(name, address)
        return address


def open_plan(path: Path, runtime: str) -> PlanRunner:
    """A plan, ready to run.

    Args:
        path: the engine; what `tfqat compile` wrote beside it says what it was built with and for.
        runtime: `tensorrt`, `tensorrt_rtx`, or `auto`: what it was built with, and TensorRT if that is not known.

    Raises:
        EngineError: the file, the runtime or the GPU is missing, or the engine was built for another version or GPU.
    """
    if not path.is_file():
        raise EngineError(f"{path} is not a file; expected an engine, such as the model.plan that `tfqat compile` writes")
    metadata = read_metadata(path) or {}
    _check_digest(path, metadata)
    built = metadata.get("backend")
    chosen = (built or "tensorrt") if runtime == "auto" else runtime
    if built and chosen != built:
        raise EngineError(f"{path} was built by {_title(built)}, and runs in nothing else; got the runtime {runtime!r}: leave it out")
    if chosen not in RUNTIMES:
        raise EngineError(f"{path} is a plan of TensorRT and runs in {' or '.join(RUNTIMES)} alone; got the runtime {chosen!r}")
    try:
        trt = importlib.import_module(RUNTIMES[chosen].module)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{path} needs {_title(chosen)}, which is not installed ({error}): {_INSTALL[chosen]}{_onnx(metadata)}"
        ) from error
    if not tensorrt.gpu_visible():
        raise EngineError(
            f"{path} was built for {_built_for(metadata)} and needs an NVIDIA GPU to run; none is visible here{_onnx(metadata)}"
        )
    device = Device()
    try:
        return PlanRunner(path, chosen, trt, device, metadata)
    except BaseException:
        device.close()
        raise


def _title(backend: str) -> str:
    return RUNTIMES[backend].title if backend in RUNTIMES else backend


def _built_for(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("gpu") or metadata.get("target") or "a GPU")


def _onnx(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("onnx", {}).get("file")
    return f"; the graph that it was built from, {name}, runs in ONNX Runtime" if name else "; its ONNX graph runs in ONNX Runtime"


def _check_digest(path: Path, metadata: Mapping[str, Any]) -> None:
    expected = metadata.get("engine", {}).get("sha256")
    if expected is not None:
        found = files.sha256(path)
        if found != expected:
            raise EngineError(
                f"{path} is damaged, or {metadata_path(path).name} beside it is of another engine: their checksums differ; compile it "
                "again, or delete that file to go without"
            )


def _deserialized(path: Path, trt: Any, metadata: Mapping[str, Any]) -> Any:
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{path} cannot be loaded: {_reason(trt, metadata)}{_said(logger.messages)}")
    return engine


def _reason(trt: Any, metadata: Mapping[str, Any]) -> str:
    """What of the machine is not what the engine was built for; a plan is bound to both."""
    if not metadata:
        return (
            "a plan runs with the version of TensorRT and on the kind of GPU that it was built with, and no metadata beside it says which"
        )
    version, here, gpu = str(metadata.get("version")), str(trt.__version__), tensorrt.gpu_name()
    if version != here:
        builder = _title(str(metadata.get("backend")))
        return f"it was built by {builder} {version}, and {here} is installed: compile it again, or install {version}"
    return f"it was built for {_built_for(metadata)}, and the GPU here is {gpu or 'unknown'}: compile it again on this machine"


def _said(messages: list[str]) -> str:
    return f" (TensorRT: {messages[-1]})" if messages else ""


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.messages.append(message)

    return Logger()


def _tensor(engine: Any, name: str) -> Tensor:
    if engine.is_shape_inference_io(name):
        raise EngineError(f"tensor {name!r} holds a shape, on the host; engines with such inputs or outputs are not taken")
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise EngineError(f"tensor {name!r} has TensorRT's type {kind}, which NumPy lacks; expected one of {', '.join(_DTYPES)}")
    sizes = tuple(engine.get_tensor_shape(name))
    shape = tuple(size if size >= 0 else None for size in sizes)
    bounds = None
    if None in shape and engine.get_tensor_mode(name).name == "INPUT":
        small, optimal, large = engine.get_tensor_profile_shape(name, 0)
        bounds = (tuple(small), tuple(optimal), tuple(large))
    return Tensor(name=name, dtype=_DTYPES[kind], shape=shape, profile=bounds)
