"""Proves an exported graph: its structure, its int8 codes at every point against Keras's, and its outputs, on real batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import tensorflow as tf

from tfqat.datasets import check_batch, inputs_of
from tfqat.errors import DataError, ExportError
from tfqat.export.onnx import FOLD_BATCHNORM
from tfqat.form import Form
from tfqat.models.dtypes import float32_policy
from tfqat.proof.cause import Explainer, Watch
from tfqat.proof.cut import OpenGraph
from tfqat.proof.differences import CodeDifference, OutputParity
from tfqat.proof.executions import Codes
from tfqat.proof.expected import Expected, expected_of
from tfqat.proof.layouts import layout
from tfqat.proof.limits import FLOOR_FACTOR, LIMITS
from tfqat.proof.parity import ParityReport, PointParity
from tfqat.proof.qdq_graph import load
from tfqat.proof.segments import keras_segments
from tfqat.proof.structure import StructureCheck, check_structure, missing_nodes
from tfqat.quantize import state

# All points of a batch are in memory at once, several times in Keras and twice in ONNX Runtime: at most so many examples, or values.
BATCH, BATCH_VALUES = 50, 30_000_000
_REPETITIONS = ("noise 1", "noise 2", "noise 3")


@float32_policy()
def verify(qmodel: Any, onnx_path: str | Path, dataset: Iterable[Any], *, examples: int = 1000) -> ParityReport:
    """Compare a quantized model with the graph that was exported from it.

    The graph is run by ONNX Runtime literally, every Q and DQ as it is written. Codes are compared
    locally (each segment between points is fed Keras's codes), end to end, and between Keras in float32 and the same Keras graph in
    float64, compiled by XLA, and with every tensor that is quantized multiplied by 1 +- up to 2 ** -23: the noise floor.

    Args:
        qmodel: the calibrated quantized model.
        onnx_path: the exported graph.
        dataset: batches of inputs, or of (inputs, labels, ...).
        examples: how many examples to compare.

    Raises:
        ExportError: the file is no ONNX graph or lacks the model's quantization points.
        DataError: the data set holds no examples, or of another shape.
    """
    path = Path(onnx_path)
    graph, expected = _graph_and_expected(qmodel, path)
    missing = missing_nodes(graph.graph, expected)
    if missing:
        raise ExportError(f"{path} was not exported from this model: it has no node {', '.join(missing[:5])}")
    structure = check_structure(graph, expected)
    form = Form.of(graph.metadata_props)
    comparison = _Comparison(qmodel, path, form)
    seen = sum(comparison.add(batch) for batch in _limited(qmodel, dataset, examples))
    if not seen:
        raise DataError("verify: the data set is empty; expected at least one batch of inputs")
    segments = keras_segments(qmodel)
    points = tuple(replace(point, layers=segments.points[point.id]) for point in comparison.points())
    explainer = Explainer(model=graph, expected=expected, segments=segments, watch=comparison.watch, output_names=qmodel.output_names)
    output_divergence = explainer.outputs()
    return ParityReport(
        examples=seen,
        structure=structure,
        points=points,
        outputs=comparison.output_parity(),
        local_output_difference=comparison.local_output_difference,
        remainder=form.remainder,
        first_divergence=explainer.point(points) or output_divergence,
        output_divergence=output_divergence,
    )


def verify_structure(qmodel: Any, path: Path) -> tuple[StructureCheck, ...]:
    """Check the rules of the exported form on a file.

    Raises:
        ExportError: the file is missing or no ONNX graph.
    """
    return check_structure(*_graph_and_expected(qmodel, path))


def _graph_and_expected(qmodel: Any, path: Path) -> tuple[ir.Model, Expected]:
    model = load(path)
    expected = expected_of(qmodel, fold_batchnorm=model.metadata_props.get(FOLD_BATCHNORM, "true") == "true")
    return model, replace(expected, form=Form.of(model.metadata_props))


class _Comparison:
    """Runs the same batches through Keras (float32, and each noise floor) and ONNX Runtime (whole, cut) and gathers the differences."""

    def __init__(self, qmodel: Any, path: Path, form: Form) -> None:
        self._form = form
        self._keras = Codes.of(qmodel)
        self._keras_outputs = tuple(qmodel.output_names)
        self._keras64 = Codes.in_float64(qmodel)
        self._compiled: Codes | None = Codes.of(qmodel, compiled=True)
        self._seed = tf.Variable(0, dtype=tf.int32)
        self._noisy = Codes.noisy(qmodel, self._seed, LIMITS[form.remainder].rounding)
        self._whole = OpenGraph.observed(path, self._keras.points)
        self._fused = OpenGraph.segmented(path, self._keras.points, literal=False) if form.target == "onnxruntime" else None
        self._cut = OpenGraph.segmented(path, self._keras.points)
        self._input_names = [value.name for value in self._whole.session.get_inputs()]
        self._layouts: dict[str, tuple[int, ...]] = {}
        self._found: dict[str, dict[str, list[CodeDifference]]] = {name: {} for name in self._keras.points}
        self._outputs: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
        self._noise: list[float] = []
        self.local_output_difference = 0.0
        self.watch = Watch(self._keras.points, LIMITS[form.remainder])

    def add(self, inputs: Any) -> int:
        """Compare one batch; returns its number of examples."""
        given = [inputs[name] for name in self._input_names] if isinstance(inputs, Mapping) else tf.nest.flatten(inputs)
        arrays = [np.asarray(value) for value in given]
        codes, outputs, ties = self._keras.with_ties(inputs, LIMITS[self._form.remainder].tie)
        fed = self._form.feed(dict(zip(self._input_names, arrays, strict=True)))
        onnx_outputs, whole = self._whole(fed)
        _check_shapes(self._keras_outputs, outputs, onnx_outputs)
        if not self._layouts:
            self._layouts = {name: layout(codes[name], whole[name]) for name in codes}
        in_layout, ties = self._in_layout(codes), self._in_layout(ties)
        local_outputs, local = self._cut(fed, in_layout)
        if self._fused is not None:
            self._record("fused", local, self._fused(fed, in_layout)[1])
        self._record("local", in_layout, local, ties)
        self.watch.see({name: kinds["local"][-1] for name, kinds in self._found.items()}, codes, local, self._layouts)
        self._record("end_to_end", in_layout, whole)
        self._add_floors(inputs, codes, outputs)
        self._outputs.append((outputs, onnx_outputs))
        apart = [_relative_difference(one, other) for one, other in zip(outputs, local_outputs, strict=True)]
        self.watch.see_outputs(outputs, local_outputs, apart)
        self.local_output_difference = float(np.max([self.local_output_difference, *apart]))  # NaN stays
        return len(arrays[0])

    def _in_layout(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by point, with the axes as the graph has them."""
        return {name: np.ascontiguousarray(array.transpose(self._layouts[name])) for name, array in arrays.items()}

    def points(self) -> tuple[PointParity, ...]:
        """The differences of every point over all batches."""
        merged = {name: {kind: CodeDifference.total(batches) for kind, batches in kinds.items()} for name, kinds in self._found.items()}
        noisiest = max(_REPETITIONS, key=lambda kind: sum(kinds[kind].different for kinds in merged.values()))
        return tuple(
            PointParity(
                id=name,
                local=kinds["local"],
                end_to_end=kinds["end_to_end"],
                noise_floor=kinds.get("float64", CodeDifference()),
                compiled=kinds.get("compiled", CodeDifference()),
                perturbed=kinds[noisiest],
                fused=kinds.get("fused", CodeDifference()),
            )
            for name, kinds in merged.items()
        )

    def output_parity(self) -> OutputParity:
        """The worst of all outputs over all batches."""
        sides = ([np.concatenate(batches) for batches in zip(*side, strict=True)] for side in zip(*self._outputs, strict=True))
        pairs = zip(*sides, self._noise, strict=True)
        # Two entries can move towards each other, each by the noise.
        return OutputParity.worst(OutputParity.between(keras, onnx, 2 * FLOOR_FACTOR * noise) for keras, onnx, noise in pairs)

    def _add_floors(self, inputs: Any, codes: Mapping[str, np.ndarray], outputs: list[np.ndarray]) -> None:
        """Compare Keras with itself: in float64, compiled, and with rounding noise."""
        found = {}
        if (in_float64 := self._run_float64(inputs)) is not None:
            found["float64"] = in_float64
        if (compiled := self._run_compiled(inputs)) is not None:
            found["compiled"] = compiled
        for number, kind in enumerate(_REPETITIONS):
            self._seed.assign(len(self._outputs) * len(_REPETITIONS) + number)
            found[kind] = self._noisy(inputs)
        for kind, (others, _) in found.items():
            self._record(kind, codes, others)
        apart = [
            max(float(np.abs(output - others[index]).max(initial=0.0)) for _, others in found.values())
            for index, output in enumerate(outputs)
        ]
        self._noise = [max(pair) for pair in zip(apart, self._noise or apart, strict=True)]

    def _record(
        self, kind: str, codes: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], ties: Mapping[str, np.ndarray] | None = None
    ) -> None:
        for name, array in codes.items():
            self._found[name].setdefault(kind, []).append(CodeDifference.between(array, others[name], (ties or {}).get(name)))

    def _run_float64(self, inputs: Any) -> tuple[dict[str, np.ndarray], list[np.ndarray]] | None:
        """What float64 computes; None if an operation has no kernel for it, which is then left out of the noise floor."""
        if self._keras64 is None:
            return None
        try:
            return self._keras64(tf.nest.map_structure(lambda value: tf.cast(value, tf.float64), inputs))
        except (TypeError, tf.errors.OpError):
            self._keras64 = None
            return None

    def _run_compiled(self, inputs: Any) -> tuple[dict[str, np.ndarray], list[np.ndarray]] | None:
        """What XLA computes; None if it cannot compile the graph, which is then left out of the noise floor."""
        if self._compiled is None:
            return None
        try:
            return self._compiled(inputs)
        except tf.errors.OpError:
            self._compiled = None
            return None


def _check_shapes(names: Iterable[str], wanted: Iterable[np.ndarray], found: Iterable[np.ndarray]) -> None:
    """Make sure that outputs have the model's shapes: numpy would compare (1, n, ...) with (n, ...)."""
    for name, one, other in zip(names, wanted, found, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"output {name!r} has the shape {one.shape} in the model and {other.shape} in the graph: export it again")


def _relative_difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """The largest difference as a share of the largest magnitude in `wanted`."""
    largest = float(np.abs(wanted).max(initial=0.0))
    return float(np.abs(wanted - found).max(initial=0.0)) / (largest or 1.0)


def _limited(qmodel: Any, dataset: Iterable[Any], examples: int) -> Iterable[Any]:
    """The inputs of the first `examples` examples, in batches of at most BATCH, fewer where the model's points hold many values.

    All batches but the last have the same size, if the model's is free and the examples' shapes agree: XLA compiles anew for each size.
    """
    left, held = examples, None
    values = sum(
        int(np.prod(tensor.shape[1:])) if None not in tensor.shape[1:] else 0 for tensor in state.activation_inputs(qmodel).values()
    )
    largest = min(BATCH, max(1, BATCH_VALUES // max(values, 1)))
    is_free = all(tensor.shape[0] is None for tensor in qmodel.inputs)
    for batch in dataset:
        inputs = inputs_of(batch)
        check_batch(qmodel, inputs, where="verify")
        inputs = _part(inputs, 0, left)
        left -= _size(inputs)
        if held is not None and is_free and _shapes(held) == _shapes(inputs):
            inputs = tf.nest.map_structure(lambda one, other: np.concatenate([one, other]), held, inputs)
        elif held is not None:
            yield held
        whole = _size(inputs) // largest * largest
        for start in range(0, whole, largest):
            yield _part(inputs, start, start + largest)
        held = _part(inputs, whole, None) if whole < _size(inputs) else None
        if left <= 0:
            break
    if held is not None:
        yield held


def _part(inputs: Any, start: int, stop: int | None) -> Any:
    return tf.nest.map_structure(lambda value: value[start:stop], inputs)


def _size(inputs: Any) -> int:
    return int(tf.nest.flatten(inputs)[0].shape[0])


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    """Of one example."""
    return [tuple(value.shape[1:]) for value in tf.nest.flatten(inputs)]
