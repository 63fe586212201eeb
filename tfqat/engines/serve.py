"""One way to run an exported model, an ONNX graph or a plan: `load_engine(path).predict(x)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from tfqat.engines.bench import RUNTIMES
from tfqat.engines.build import PLAN_SUFFIXES
from tfqat.engines.plan import open_plan
from tfqat.engines.sessions import open_session
from tfqat.engines.tensors import Feed, Tensor, feed_of, is_batched
from tfqat.errors import EngineError, nearest
from tfqat.form import Form

DEFAULT_BATCH_SIZE = 32


class Runner(Protocol):
    """What runs one batch."""

    runtime: str
    form: Form
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, feed: Feed) -> list[np.ndarray[Any, Any]]:
        """The outputs, in their order."""

    def close(self) -> None:
        """Give back what it holds."""


def load_engine(
    path: Path | str, *, runtime: str = "auto", batch_size: int | None = None, literal: bool = False, threads: int | None = None
) -> Engine:
    """A model, ready to predict. TensorFlow is not imported.

    Args:
        path: an ONNX graph, or a plan (`.plan`, `.engine`, `.trt`) of TensorRT or TensorRT for RTX.
        runtime: for a graph the execution provider of ONNX Runtime: `cpu`, `cuda`, `tensorrt`, `tensorrt_rtx`; for a plan what it was
            built with. `auto`: for a graph the first of tensorrt, tensorrt_rtx, cuda and cpu that is usable; for a plan its own.
        batch_size: the most examples of one run; default: the batch that the model fixes, the optimal one of a plan, else 32.
        literal: run a graph's Q/DQ as they are written, on the CPU, as `tfqat verify` does: slow, and exact where the fused kernels of
            a CPU without VNNI saturate.
        threads: of ONNX Runtime within an operation; default: all cores.

    Raises:
        EngineError: the file is missing or cannot be loaded, the runtime or the GPU is not there, a plan was built for another GPU or
            version, or the batch size is not one that the model takes.
    """
    path = Path(path)
    if runtime != "auto" and runtime not in RUNTIMES:
        raise EngineError(f"unknown runtime {runtime!r}; expected auto, {', '.join(RUNTIMES)}{nearest(runtime, RUNTIMES)}")
    if path.suffix in PLAN_SUFFIXES:
        if literal or threads is not None:
            raise EngineError(f"literal and threads are for ONNX Runtime; {path} is a plan: leave them out")
        return Engine(open_plan(path, runtime), batch_size)
    if path.suffix != ".onnx":
        raise EngineError(f"{path} is neither an ONNX graph (.onnx) nor a plan ({', '.join(PLAN_SUFFIXES)})")
    return Engine(open_session(path, runtime, literal=literal, threads=threads), batch_size)


class Engine:
    """A loaded model. Calls from several threads are safe; as a context manager it closes itself.

    Attributes:
        runtime: what runs it.
        inputs, outputs: name, type and shape of each; a free axis is None.
        form: what the graph says of its layout and pixels.
        batch_size: the most examples of one run.
    """

    def __init__(self, runner: Runner, batch_size: int | None = None) -> None:
        self.runtime, self.form = runner.runtime, runner.form
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self._runner: Runner | None = runner
        self._batched = is_batched(self.inputs)
        self._least, optimal, most = _batches(self.inputs)
        if batch_size is not None and (batch_size < 1 or not self._least <= batch_size <= (most or batch_size)):
            raise EngineError(f"batch_size must be {_range(self._least, most)} for this model; got {batch_size}")
        self.batch_size = batch_size or optimal

    def predict(self, x: Any) -> Any:
        """The outputs for any number of examples, run in parts of at most `batch_size`.

        Args:
            x: an array for a model of one input; a tuple in the order of `inputs`; or a mapping by name. Images in the graph's own
                layout. Floats of another width are converted, and whole numbers of another width where the values fit.

        Returns:
            The array of the one output, or a mapping by name if there are several.

        Raises:
            EngineError: the input does not fit (it names the input, what came and what was expected), or the run fails.
        """
        feed = feed_of(self.inputs, x, self.form)
        runner = self._open()
        results = [self._run(runner, part, count) for part, count in self._parts(feed)]
        joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*results, strict=True)]
        return joined[0] if len(joined) == 1 else {one.name: value for one, value in zip(self.outputs, joined, strict=True)}

    def warmup(self, n: int = 1, x: Any = None) -> None:
        """Run n times, so that the first `predict` is as fast as the others: runtimes allocate and choose kernels at the first runs.

        Args:
            n: how often.
            x: what to run on; default: a batch of zeros of the size that `predict` runs most.

        Raises:
            EngineError: an axis other than the first is free, and there is no x.
        """
        given = self._zeros() if x is None else x
        for _ in range(n):
            self.predict(given)

    def close(self) -> None:
        """Give back memory; the engine cannot predict any more. Twice is the same as once."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> Runner:
        if self._runner is None:
            raise EngineError("the engine is closed: load it again")
        return self._runner

    def _parts(self, feed: Feed) -> Iterator[tuple[Feed, int | None]]:
        """Parts to run with how many of their examples are asked for; None: the model has no batch."""
        if not self._batched:
            yield feed, None
            return
        examples = len(next(iter(feed.values())))
        for start in range(0, max(examples, 1), self.batch_size):
            part = {name: value[start : start + self.batch_size] for name, value in feed.items()}
            count = min(self.batch_size, examples - start)
            yield {name: _filled(value, max(count, self._least)) for name, value in part.items()}, count

    def _run(self, runner: Runner, part: Feed, count: int | None) -> list[np.ndarray[Any, Any]]:
        outputs = runner.run(part)
        if count is None:
            return outputs
        size = len(next(iter(part.values())))
        for one, value in zip(self.outputs, outputs, strict=True):
            if value.ndim == 0 or len(value) != size:
                raise EngineError(
                    f"output {one.name!r} has the shape {list(value.shape)} for a batch of {size}: its first axis is not the batch, so "
                    "predictions cannot be joined"
                )
        return [value[:count] for value in outputs]

    def _zeros(self) -> Mapping[str, np.ndarray[Any, Any]]:
        return {one.name: np.zeros(self._sizes(one), one.dtype) for one in self.inputs}

    def _sizes(self, given: Tensor) -> tuple[int, ...]:
        sizes = list(given.profile[1] if given.profile else given.shape)
        if self._batched:
            sizes[0] = self.batch_size
        if None in sizes:
            raise EngineError(f"input {given} has a free axis: give warmup an example, such as warmup(3, x)")
        return tuple(size for size in sizes if size is not None)


def _batches(inputs: tuple[Tensor, ...]) -> tuple[int, int, int | None]:
    """The smallest batch, the one to run by default, and the largest; None: no bound."""
    if not is_batched(inputs):
        return 1, 1, 1
    if (fixed := inputs[0].shape[0]) is not None:
        return fixed, fixed, fixed
    bounds = [one.profile for one in inputs if one.profile is not None]
    if not bounds:
        return 1, DEFAULT_BATCH_SIZE, None
    return max(low[0] for low, _, _ in bounds), min(best[0] for _, best, _ in bounds), min(high[0] for _, _, high in bounds)


def _range(least: int, most: int | None) -> str:
    return f"{least}" if least == most else f"{least} to {most}" if most else f"at least {least}"


def _filled(value: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """With zeros behind it, so that it has this size."""
    missing = size - len(value)
    return value if missing <= 0 else np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
