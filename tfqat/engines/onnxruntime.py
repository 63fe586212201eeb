"""ONNX Runtime on the CPU: a model run literally, as its Q/DQ are written, or with the fused int8 kernels that a user deploys.

The two differ on x86 CPUs without VNNI: the fused kernels add pairs of products in 16 bits, which saturates. Parity is proven on
the literal session; what the fused one returns is a figure of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfqat.errors import EngineError

if TYPE_CHECKING:
    import numpy as np

PROVIDERS = ("CPUExecutionProvider",)
_BROKEN_PROPAGATION = ("output_dtype", "y_zero_point")
"""What is in the message where ONNX Runtime (1.32) puts a Q behind a Reshape or Transpose in opset 21 and later, with an output type that
it then refuses beside the zero point (onnxruntime issue 25526). Without that step it loads the graph, and fuses the rest."""

DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
DTYPES |= {"tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


def is_available() -> tuple[bool, str]:
    """Whether ONNX Runtime can be imported, and its version and providers, or else why it cannot."""
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        return False, f"ONNX Runtime is not usable ({error}): pip install onnxruntime"
    return True, f"{ort.__version__} ({', '.join(ort.get_available_providers())})"


def session(model: Path | str | bytes, *, literal: bool, provider: str = "CPUExecutionProvider", threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        model: A path, or a serialized ModelProto.
        literal: Every node is run as it is written (graph optimization off); otherwise ONNX Runtime fuses DQ, operation and Q
            into its int8 kernels, which is what it does for a user by default.
        provider: The execution provider; what it cannot run falls to the CPU.
        threads: Of an operation; None: ONNX Runtime's default, all cores.

    Raises:
        EngineError: The model is missing, or ONNX Runtime cannot load it.
    """
    import onnxruntime as ort

    if not isinstance(model, bytes) and not Path(model).is_file():
        raise EngineError(f"{model} is not a file; expected an ONNX model")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if literal else levels.ORT_ENABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    providers = list(dict.fromkeys([provider, *PROVIDERS]))
    try:
        try:
            return ort.InferenceSession(source, options, providers=providers)
        except Exception as error:
            if not all(part in str(error) for part in _BROKEN_PROPAGATION):
                raise
            return ort.InferenceSession(source, options, providers=providers, disabled_optimizers=["QDQPropagationTransformer"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        name = "the model" if isinstance(model, bytes) else str(model)
        raise EngineError(f"ONNX Runtime cannot load {name}: {' '.join(str(error).split())}") from error


def run_batches(session: Any, batches: Iterable[Any]) -> np.ndarray[Any, Any] | tuple[np.ndarray[Any, Any], ...]:
    """Runs batches and joins the outputs along the first axis.

    Args:
        session: What `session` returns.
        batches: For a model with one input an array each; for several a tuple in the order of the inputs, or a mapping by name.

    Returns:
        The output; a tuple of all outputs if the model has several.

    Raises:
        EngineError: There is no batch, or one does not fit the model's inputs.
    """
    import numpy as np

    results = [run(session, batch) for batch in batches]
    if not results:
        raise EngineError("there is no batch to run: the data is empty")
    outputs = tuple(np.concatenate(parts, axis=0) for parts in zip(*results, strict=True))
    return outputs[0] if len(outputs) == 1 else outputs


def latency_ms(paths: Mapping[str, Path], *, repeats: int = 50, warmup: int = 5, batch: int = 1) -> dict[str, float]:
    """The median time of one run of each model, in milliseconds.

    The models run with ONNX Runtime's default kernels, as a user would deploy them. They take turns, so that a slower or faster
    spell of the machine falls on all of them. Inputs are standard normal
    noise with a fixed seed; `batch` stands for the dynamic first axis.
    """
    import numpy as np

    sessions = {name: session(path, literal=False) for name, path in paths.items()}
    feeds = {name: noise(one, batch, np.random.default_rng(0)) for name, one in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(warmup + repeats):
        for name, one in sessions.items():
            started = time.perf_counter()
            one.run(None, feeds[name])
            if turn >= warmup:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the CPU multiplies int8 without 16-bit sums (AVX-512 VNNI or AVX-VNNI); None if its flags cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else bool({"avx512_vnni", "avx_vnni"}.intersection(flags))


def run(session: Any, batch: Any) -> list[Any]:
    """The outputs for a batch: one array, or a tuple of one for each input."""
    inputs = session.get_inputs()
    values = batch if isinstance(batch, tuple) else (batch,)
    if isinstance(batch, Mapping):
        values = tuple(batch.get(one.name) for one in inputs)
    if len(values) != len(inputs) or any(value is None for value in values):
        raise EngineError(f"a batch does not fit the inputs {[one.name for one in inputs]}: it has {len(values)} arrays or other names")
    feed = {one.name: _array(value, one.type) for one, value in zip(inputs, values, strict=True)}
    try:
        return _run(session, feed, inputs[0].shape[0] if inputs and inputs[0].shape else None)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        raise EngineError(f"ONNX Runtime cannot run a batch: {' '.join(str(error).split())}") from error


def execute(session: Any, feed: Mapping[str, Any]) -> list[Any]:
    """The outputs for inputs by name, as they are.

    Raises:
        EngineError: ONNX Runtime cannot run them.
    """
    try:
        return list(session.run(None, dict(feed)))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        raise EngineError(f"ONNX Runtime cannot run a batch: {' '.join(str(error).split())}") from error


def _run(session: Any, feed: Mapping[str, Any], size: Any) -> list[Any]:
    """The outputs; a model of a fixed batch size runs on as many parts as it takes, the last one filled up with zeros."""
    import numpy as np

    examples = len(next(iter(feed.values()))) if feed else 0
    if not isinstance(size, int) or examples == size or not examples:
        return list(session.run(None, feed))
    parts = []
    for start in range(0, examples, size):
        part = {name: value[start : start + size] for name, value in feed.items()}
        missing = size - len(next(iter(part.values())))
        filled = {name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)]) for name, value in part.items()}
        parts.append([output[: size - missing] for output in session.run(None, filled)])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _array(value: Any, onnx_type: str) -> Any:
    import numpy as np

    return np.asarray(value, dtype=DTYPES.get(onnx_type))


def noise(session: Any, batch: int, rng: Any) -> dict[str, Any]:
    """An input for each of the session's inputs; a dynamic axis other than the first is an EngineError."""
    feed = {}
    for one in session.get_inputs():
        sizes = [batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(one.shape)]
        if not all(isinstance(size, int) for size in sizes):
            raise EngineError(f"input {one.name!r} has shape {one.shape}; only its first axis may be dynamic")
        feed[one.name] = _array(rng.integers(0, 256, sizes) if one.type == "tensor(uint8)" else rng.standard_normal(sizes), one.type)
    return feed
