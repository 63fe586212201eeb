"""Times ONNX graphs side by side on the runtimes of this machine: they take turns, so that a slow spell falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import EngineError

RUNTIMES: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
"""ONNX Runtime's execution providers by the names that users give."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One model on one runtime with one batch size.

    Attributes:
        model, runtime, batch: what ran.
        median_ms, p95_ms: milliseconds of a run of the whole batch.
        throughput: examples per second, by the median.
        ratio: the median over the rounds of this model's time / the reference's in the same round; None for the reference itself.
        ratio_spread: its first and third quartile.
    """

    model: str
    runtime: str
    batch: int
    median_ms: float
    p95_ms: float
    throughput: float
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def bench(
    model: Path, against: Path | None = None, *, batches: Sequence[int] = (1, 8, 32), rounds: int = 50, warmup: int = 5
) -> tuple[Timing, ...]:
    """Time a graph, and another one beside it, with the default kernels of every runtime that this machine has.

    Args:
        model: an ONNX graph.
        against: the reference of the ratios.
        batches: batch sizes; a graph of a fixed one is timed with that alone.
        rounds: timed runs of each.
        warmup: runs before, which do not count.

    Raises:
        EngineError: a file is missing or cannot be run; an axis other than the first is free; two graphs of other fixed batch sizes.
    """
    if rounds < 2 or min(batches, default=0) < 1:
        raise EngineError(f"bench needs at least 2 rounds and batch sizes from 1; got {rounds} rounds and {list(batches)}")
    paths = {_name(model, against): model} | ({} if against is None else {_name(against, model): against})
    found: list[Timing] = []
    for name, provider in available().items():
        sessions = {key: runtime.session(path, literal=False, provider=provider) for key, path in paths.items()}
        for batch in _sizes(sessions, batches):
            times = _times(sessions, batch, rounds, warmup)
            reference = times[_name(against, model)] if against is not None else None
            found += [_timing(key, name, batch, times[key], reference) for key in times]
    return tuple(found)


def available() -> dict[str, str]:
    """The runtimes of this machine: name -> execution provider."""
    import onnxruntime as ort

    here = set(ort.get_available_providers())
    return {name: provider for name, provider in RUNTIMES.items() if provider in here}


def _name(path: Path, other: Path | None) -> str:
    """The file's name, with its folder where another file is called so too."""
    return f"{path.parent.name}/{path.name}" if other is not None and other.name == path.name else path.name


def _sizes(sessions: Mapping[str, Any], batches: Sequence[int]) -> list[int]:
    fixed = {size for one in sessions.values() for given in one.get_inputs() if given.shape and isinstance(size := given.shape[0], int)}
    if len(fixed) > 1:
        raise EngineError(f"the graphs have the fixed batch sizes {sorted(fixed)}, and cannot be compared: export them with the same one")
    return sorted(fixed) or list(batches)


def _times(sessions: Mapping[str, Any], batch: int, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by model; every round begins with another one."""
    import numpy as np

    feeds = {key: runtime.noise(one, batch, np.random.default_rng(0)) for key, one in sessions.items()}
    times: dict[str, list[float]] = {key: [] for key in sessions}
    order = list(sessions)
    for turn in range(warmup + rounds):
        for key in order if turn % 2 else reversed(order):
            started = time.perf_counter()
            runtime.execute(sessions[key], feeds[key])
            if turn >= warmup:
                times[key].append((time.perf_counter() - started) * 1e3)
    return times


def _timing(model: str, name: str, batch: int, times: Sequence[float], reference: Sequence[float] | None) -> Timing:
    median = statistics.median(times)
    ratios = [one / other for one, other in zip(times, reference, strict=True)] if reference is not None and times is not reference else []
    quartiles = statistics.quantiles(ratios, n=4) if ratios else None
    return Timing(
        model=model,
        runtime=name,
        batch=batch,
        median_ms=median,
        p95_ms=statistics.quantiles(times, n=20, method="inclusive")[-1],
        throughput=1e3 * batch / median,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_spread=(quartiles[0], quartiles[2]) if quartiles else None,
    )
