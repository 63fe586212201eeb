"""Chooses a point's range by what it does to the layers that read it: the candidate with the least squared error of their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.datasets import inputs_of
from tfqat.errors import DataError
from tfqat.models import graph as model_graph
from tfqat.models.depth import functional_model
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.pieces import Piece, piece
from tfqat.placement.rules.classes import POINTWISE
from tfqat.quantize import state
from tfqat.quantize.quantizers import layer_name

_FUSED = POINTWISE | {"BatchNormalization"}  # what a kernel computes behind its product


def output_errors(qmodel: Any, candidates: Mapping[str, Sequence[float]], batches: Iterable[Any]) -> dict[str, np.ndarray]:
    """The error that each candidate range of a point causes in the layers that read it.

        error = sum over readers of  sum (f(fake_quantize(x, amax)) - f(x))^2 / sum f(x)^2

    with x the point's tensor in the float model and f a layer that reads it, with the BatchNorm and the activation behind it, in float
    but for this point.

    Args:
        qmodel: a quantized model; its quantizers are as they were afterwards.
        candidates: id of an activation point -> ranges.
        batches: of inputs, or of (inputs, labels, ...).

    Returns:
        Point id -> errors, float64 in the order of its candidates.

    Raises:
        DataError: no batches.
    """
    handles = state.handles(qmodel)
    before = {name: (handle.amax.numpy(), bool(handle.enabled)) for name, handle in handles.items()}
    graph, tensors = model_graph.read(qmodel), model_graph.tensors(qmodel)
    blocks = {name: _blocks(graph, tensors, layer_name(handles[name].point)) for name in candidates}
    read = list(dict.fromkeys(ref for found in blocks.values() for block in found for ref in block.reads))
    observer = functional_model(qmodel.inputs, [tensors[ref] for ref in read])
    observe = tf.function(lambda inputs: observer(inputs, training=False), reduce_retracing=True, autograph=False)
    errors: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    signals: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    try:
        state.set_enabled(qmodel, False)
        for batch in batches:
            values = dict(zip(read, tf.nest.flatten(observe(inputs_of(batch))), strict=True))
            for name, ranges in candidates.items():
                found = [_errors(handles[name], block, values, ranges) for block in blocks[name]]
                errors[name].append(np.array([error for error, _ in found]))
                signals[name].append(np.array([signal for _, signal in found]))
    finally:
        for name, (amax, enabled) in before.items():
            handles[name].amax.assign(amax)
            handles[name].enabled.assign(enabled)
    if not all(errors.values()):
        raise DataError("the calibrator best compares outputs of layers, and the data set is empty")
    return {name: _relative(errors[name], signals[name]) for name in candidates}


def _errors(handle: state.Handle, block: Piece, values: Mapping[TensorRef, tf.Tensor], ranges: Sequence[float]) -> tuple[np.ndarray, float]:
    """The squared error of the block's output for each range, and its squared signal."""
    inputs = [values[ref] for ref in block.reads]
    handle.enabled.assign(False)
    wanted = block.compute(inputs)[-1]
    handle.enabled.assign(True)
    found = []
    for amax in ranges:
        handle.amax.assign(amax)
        found.append(float(tf.reduce_sum((block.compute(inputs)[-1] - wanted) ** 2)))
    handle.enabled.assign(False)
    return np.array(found), float(tf.reduce_sum(wanted**2))


def _relative(errors: Sequence[np.ndarray], signals: Sequence[np.ndarray]) -> np.ndarray:
    """Errors of (readers, candidates) by batch, over the signals of the readers: the sum over the readers."""
    signal = np.sum(signals, axis=0)
    return np.asarray(np.sum(np.sum(errors, axis=0) / np.where(signal > 0, signal, 1.0)[:, None], axis=0))


def _blocks(graph: ModelGraph, tensors: Mapping[TensorRef, Any], quantizer: str) -> list[Piece]:
    """For each layer that reads the quantizer: the quantizer, that layer, and what a kernel computes behind it."""
    found = []
    readers = dict.fromkeys(reader.name for reader, _ in graph.consumers(TensorRef(layer=quantizer)))  # one may read it twice
    for reader in readers:
        names = [quantizer, reader]
        while (following := _only_reader(graph, names[-1])) is not None and following.class_name in _FUSED:
            names.append(following.name)
        found.append(piece(graph, tensors, names))
    return found


def _only_reader(graph: ModelGraph, name: str) -> Node | None:
    readers = graph.consumers(TensorRef(layer=name))
    return readers[0][0] if len(readers) == 1 else None
