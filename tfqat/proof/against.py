"""Compares two Q/DQ graphs: what they hold, and what they compute from the same inputs when ONNX Runtime runs them as written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.datasets import inputs_of
from tfqat.engines import onnxruntime as runtime
from tfqat.errors import DataError, ExportError
from tfqat.proof import feeds
from tfqat.proof.comparison import FirstDifference, GraphComparison
from tfqat.proof.differences import CodeDifference, OutputParity
from tfqat.proof.held import Held
from tfqat.proof.layouts import layout
from tfqat.proof.limits import FLOAT32
from tfqat.proof.qdq_graph import GraphInput, QdqGraph

# Two times the codes of a batch are in memory at once: at most so many examples, or values of one graph's points.
BATCH, BATCH_VALUES = 50, 30_000_000


def compare_files(first: str | Path, second: str | Path, *, data: str | Path | None = None, examples: int = 1000) -> GraphComparison:
    """Compare two graphs on the examples of a .npz file, or else on standard normal noise with a fixed seed.

    Raises:
        TfqatError: see `compare_graphs`; DataError: the file lacks an input, or noise does not fit one.
    """
    inputs = _given_to_both(QdqGraph.open(first), QdqGraph.open(second))
    if data is None:
        count = min(examples, feeds.NOISE_EXAMPLES)
        batches, source = [feeds.noise(inputs, examples=count)], f"standard normal noise, seed {feeds.SEED}"
    else:
        batches, source = [feeds.from_npz(Path(data), inputs)], str(data)
    return compare_graphs(first, second, batches, examples=examples, data=source)


def compare_graphs(
    first: str | Path, second: str | Path, batches: Iterable[Any], *, examples: int = 1000, data: str = "the batches given"
) -> GraphComparison:
    """Compare two graphs of one model.

    Both are run by ONNX Runtime as written, on the same inputs; each takes them in its own form (`tfqat.form`). Codes are
    compared as code minus zero point, so that a graph with uint8 codes on the same grid agrees.

    Args:
        first: the graph whose order and names the result has.
        second: the other.
        batches: of inputs in Keras's layout, or of (inputs, labels, ...): arrays by the first graph's names, or in its order.
        examples: how many to compare.
        data: what the result says the batches are.

    Raises:
        ExportError: a file is missing or no Q/DQ graph, or the graphs have other inputs or outputs, or no point in common.
        DataError: there is no batch, or it lacks an input or has another shape.
    """
    one, other = QdqGraph.open(first), QdqGraph.open(second)
    renamed = _inputs_of_second(one, other)
    common = [name for name in one.points if name in other.points]
    if not common:
        raise ExportError(f"{one.path} and {other.path} have no quantization point in common: they are not graphs of one model")
    _check_outputs(one, other)
    runs = _Runs(one, other, common, renamed)
    for batch in _limited(one, batches, examples):
        runs.add(batch)
    if not runs.examples:
        raise DataError("the data to compare the graphs on is empty; expected at least one batch of inputs")
    held, points, apart = Held.between(one, other), runs.points(), runs.output_differences()
    return GraphComparison(
        first=str(one.path),
        second=str(other.path),
        data=data,
        examples=runs.examples,
        only_in_first=held.only_in_first,
        only_in_second=held.only_in_second,
        scales=held.scales,
        weights=held.weights,
        constants=held.constants,
        points=points,
        outputs=runs.outputs(),
        output_difference=float(np.max(apart)),  # NaN stays
        first_difference=_first_difference(held, points, apart),
    )


def _given_to_both(one: QdqGraph, other: QdqGraph) -> dict[str, GraphInput]:
    """The inputs of the first graph; what either takes as pixels is to be made of pixels."""
    renamed = _inputs_of_second(one, other)
    return {name: replace(given, pixels=given.pixels or other.inputs[renamed[name]].pixels) for name, given in one.inputs.items()}


class _Runs:
    """Runs batches through both graphs and gathers the differences."""

    def __init__(self, one: QdqGraph, other: QdqGraph, common: list[str], renamed: Mapping[str, str]) -> None:
        self._one, self._other, self._renamed = one, other, renamed
        self._sessions = one.session(), other.session()
        self._layouts: dict[str, tuple[int, ...]] = {}
        self._differences: dict[str, list[CodeDifference]] = {name: [] for name in common}
        self._outputs: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
        self.examples = 0

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        ours, codes = _run(self._one, self._sessions[0], batch)
        theirs, others = _run(self._other, self._sessions[1], {self._renamed[name]: value for name, value in batch.items()})
        for name, differences in self._differences.items():
            here = codes.pop(name).astype(np.int16) - self._one.points[name].zero_point
            there = others.pop(name).astype(np.int16) - self._other.points[name].zero_point
            if name not in self._layouts:
                self._layouts[name] = layout(here, there)
            differences.append(CodeDifference.between(here.transpose(self._layouts[name]), there))
        self._outputs.append((ours, theirs))
        self.examples += len(next(iter(batch.values())))

    def points(self) -> dict[str, CodeDifference]:
        return {name: CodeDifference.total(differences) for name, differences in self._differences.items()}

    def outputs(self) -> OutputParity:
        return OutputParity.worst(
            OutputParity.between(a, b, 2 * FLOAT32.output_difference * float(np.abs(a).max())) for a, b in self._pairs()
        )

    def output_differences(self) -> list[float]:
        """The largest difference of each output, as a share of the largest one."""
        return [float(np.abs(a - b).max()) / (float(np.abs(a).max()) or 1.0) for a, b in self._pairs()]

    def _pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        sides = ([np.concatenate(parts) for parts in zip(*side, strict=True)] for side in zip(*self._outputs, strict=True))
        return list(zip(*sides, strict=True))


def _run(graph: QdqGraph, session: Any, batch: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The outputs, and the codes by point."""
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, runtime.execute(session, graph.form.feed(batch)), strict=True))
    codes = {name.removeprefix("codes/"): values[name] for name in names if name.startswith("codes/")}
    return [values[name] for name in names if not name.startswith("codes/")], codes


def _first_difference(held: Held, points: Mapping[str, CodeDifference], apart: list[float]) -> FirstDifference | None:
    """The first point beyond ties, or the first one at all; without any the first output."""
    different = [name for name, one in points.items() if one.diverges()] or [name for name, one in points.items() if one.different]
    if different:
        name = different[0]
        return FirstDifference(point=name, equal=points[name].equal, max_difference=points[name].max_difference, cause=held.at_point(name))
    for number, difference in enumerate(apart):
        if not difference <= FLOAT32.output_difference:
            name = str(held.first.model.graph.outputs[number].name)
            return FirstDifference(point=name, equal=0.0, max_difference=difference, cause=held.at_output(number))
    return None


def _inputs_of_second(one: QdqGraph, other: QdqGraph) -> dict[str, str]:
    """The second graph's name of each input of the first: the same, or its only one.

    Raises:
        ExportError: the inputs have other names, sizes or types.
    """
    if set(one.inputs) == set(other.inputs):
        renamed = {name: name for name in one.inputs}
    elif len(one.inputs) == len(other.inputs) == 1:
        renamed = dict(zip(one.inputs, other.inputs, strict=True))
    else:
        raise ExportError(f"{one.path} takes {', '.join(one.inputs)}, and {other.path} {', '.join(other.inputs)}: expected the same inputs")
    for name, theirs in renamed.items():
        mine, given = one.inputs[name], other.inputs[theirs]
        if not _compatible(mine.sizes, given.sizes) or mine.dtype != given.dtype:
            raise ExportError(
                f"input {name!r} of {one.path} is {mine.dtype} of the sizes {mine.sizes}, in {other.path} {given.dtype} of {given.sizes} "
                "(channels last; None is free): expected graphs of one model"
            )
    return renamed


def _check_outputs(one: QdqGraph, other: QdqGraph) -> None:
    counts = [len(graph.model.graph.outputs) for graph in (one, other)]
    if counts[0] != counts[1]:
        raise ExportError(f"{one.path} has {counts[0]} outputs, and {other.path} {counts[1]}: expected graphs of one model")


def _compatible(first: tuple[int | None, ...], second: tuple[int | None, ...]) -> bool:
    return len(first) == len(second) and all(None in pair or pair[0] == pair[1] for pair in zip(first, second, strict=True))


def _limited(graph: QdqGraph, batches: Iterable[Any], examples: int) -> Iterator[dict[str, np.ndarray]]:
    """The first `examples` examples by input name, in batches of at most BATCH, fewer where the points hold many values."""
    left, largest = examples, 0
    for batch in batches:
        arrays = _by_name(graph, inputs_of(batch))
        size = min(left, len(next(iter(arrays.values()))))
        if not largest and size:
            _, codes = _run(graph, graph.session(), {name: value[:1] for name, value in arrays.items()})
            largest = min(BATCH, max(1, BATCH_VALUES // sum(array.size for array in codes.values())))
        for start in range(0, size, largest or 1):
            yield {name: value[start : min(start + largest, size)] for name, value in arrays.items()}
        left -= size
        if left <= 0:
            return


def _by_name(graph: QdqGraph, inputs: Any) -> dict[str, np.ndarray]:
    """A batch by the names of a graph's inputs.

    Raises:
        DataError: it lacks an input or has another shape.
    """
    names = list(graph.inputs)
    if not isinstance(inputs, Mapping):
        values = tf.nest.flatten(inputs)
        inputs = dict(zip(names, values, strict=False)) if len(values) == len(names) else {}
    missing = [name for name in names if name not in inputs]
    if missing:
        raise DataError(f"a batch lacks the input {missing[0]!r} of {graph.path}; expected an array for each of {', '.join(names)}")
    arrays = {name: np.asarray(inputs[name], graph.inputs[name].dtype) for name in names}
    for name, array in arrays.items():
        if not _compatible(graph.inputs[name].sizes, (None, *array.shape[1:]) if array.ndim else ()):
            raise DataError(
                f"a batch of shape {array.shape}, but input {name!r} of {graph.path} takes {graph.inputs[name].sizes} "
                "(channels last; None is free)"
            )
    return arrays
