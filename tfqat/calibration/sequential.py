"""Corrects a calibrated model layer by layer, in order: the rounding of each weight, and the mean error that is left.

The activations of some batches go through the quantized model, as corrected so far. At each product (1) its weight is rounded for
the inputs that it gets there (`rounding`), then (2) its bias gives back what is missing in the mean:

    b_c  <-  b_c + mean over examples and positions of (W x - Q x)_c

with W the float weight, Q the quantized one, and x the layer's input in the quantized model. The correction goes to the bias, or, times
the gain of the BatchNorm that follows, to the beta of that. Source of (2): Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.2.

What layers before it have done to x is left out on purpose. Giving back the whole difference to the float model's output fits the
correction to the few examples at hand: docs/adr/0010 has the figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat import numerics
from tfqat.calibration.rounding import obstacle, round_compensated, rows_of, second_moments, weight_of
from tfqat.datasets import check_batch, inputs_of
from tfqat.errors import DataError
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.pieces import Pieces, Values, cut
from tfqat.placement.rules.classes import WEIGHTS
from tfqat.quantize import state
from tfqat.quantize.quantizers import layer_name

MEMORY = 2**30
"""Bytes that the activations between two layers may take, of all examples together; one batch is held twice."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What was corrected.

    Attributes:
        shifts: layer -> what was added to its bias, float32 of shape (channels,).
        rounded: layer -> the share of its codes that differ from rounding to the nearest.
        left: layer -> why something of it was not corrected.
        examples: that it was done with.
    """

    shifts: Mapping[str, np.ndarray]
    rounded: Mapping[str, float]
    left: Mapping[str, str]
    examples: int


def correct(
    qmodel: Any, dataset: Iterable[Any], *, rounding: bool = True, bias: bool = True, advance: Callable[[], None] = lambda: None
) -> Correction:
    """Correct a calibrated model in place.

    Args:
        qmodel: a calibrated quantized model that has not been trained since; weights, biases and beta of BatchNorms change.
        dataset: batches of inputs, or of (inputs, labels, ...). As many are used as fit into MEMORY, at least one.
        rounding: round weights so that their errors cancel.
        bias: correct the mean.
        advance: called after each product.

    Raises:
        NotCalibratedError: a quantizer has no range.
        DataError: no data, or a batch of another shape than the model takes.
    """
    state.ranges(qmodel)
    walk = _Walk.of(qmodel, rounding=rounding, bias=bias)
    with _before_activation(walk.products):
        lives = _held(qmodel, walk.pieces, dataset)
        examples = sum(int(next(iter(live.values())).shape[0]) for live in lives)
        for number in range(len(walk.pieces.chain)):
            lives = walk.advance(number, lives)
            if number in walk.ends:
                advance()
    return Correction(shifts=walk.shifts, rounded=walk.rounded, left=walk.left, examples=examples)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A quantized product: its weight, what it reads, the node whose output is compared, and the variable that shifts that output."""

    layer: str
    inner: Any
    handle: state.Handle
    reads: TensorRef
    output: str
    bias: Any
    activation: Any


@dataclass(frozen=True, kw_only=True)
class _Walk:
    qmodel: Any
    pieces: Pieces
    products: Sequence[_Product]
    ends: Mapping[int, _Product]
    rounding: bool
    bias: bool
    left: dict[str, str]
    shifts: dict[str, np.ndarray] = field(default_factory=dict)
    rounded: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, qmodel: Any, *, rounding: bool, bias: bool) -> _Walk:
        graph = model_graph.read(qmodel)
        products, left = _products(qmodel, graph, bias=bias)
        late = {layer_name(handle.point) for handle in state.handles(qmodel).values() if handle.point.kind == "activation"}
        # A product before its BatchNorm, or another branch would get between the two.
        late |= {product.layer for product in products if product.output != product.layer}
        stops = {product.output for product in products} | {product.reads.layer for product in products}
        pieces = cut(qmodel, ends=stops, late=late)
        ends = {pieces.of(product.output): product for product in products}
        return cls(qmodel=qmodel, pieces=pieces, products=products, ends=ends, rounding=rounding, bias=bias, left=left)

    def advance(self, number: int, lives: list[Values]) -> list[Values]:
        """The activations behind piece `number`, the product at its end corrected; `lives` is used up, as both do not fit into memory."""
        product = self.ends.get(number)
        if product is None:
            return self._behind(number, lives)
        ref, shifts = TensorRef(layer=product.output), self.bias and product.bias is not None
        wanted: np.ndarray | None = None
        if shifts:
            product.handle.enabled.assign(False)  # before the weight is another one
            wanted = _mean(self.pieces.run(live, number, number + 1)[ref] for live in lives)
            product.handle.enabled.assign(True)
        if self.rounding:
            self._round(product, [live[product.reads] for live in lives])
        after = self._behind(number, lives)
        shift = np.zeros((), np.float32)
        if wanted is not None:
            shift = np.asarray(wanted - _mean(live[ref] for live in after), np.float32)
            product.bias.assign_add(shift)
            self.shifts[product.layer] = shift
        for index, live in enumerate(after):
            after[index] = {**live, ref: product.activation(live[ref] + shift)}
        return after

    def _behind(self, number: int, lives: list[Values]) -> list[Values]:
        return [self.pieces.run(lives.pop(0), number, number + 1) for _ in range(len(lives))]

    def _round(self, product: _Product, inputs: Sequence[tf.Tensor]) -> None:
        reason = obstacle(product.inner)
        if reason:
            self.left[product.layer] = "; ".join(filter(None, [self.left.get(product.layer), f"rounded to the nearest: {reason}"]))
            return
        handle = product.handle
        moments = sum(second_moments(x, product.inner) for x in inputs)
        weight, scale = handle.weight.numpy(), numerics.scale_from_amax(handle.amax, handle.point.spec).numpy()
        rows = rows_of(weight, product.inner)
        scales = scale if scale.ndim == 0 else rows_of(scale.reshape((1,) * (weight.ndim - scale.ndim) + scale.shape), product.inner)[:, 0]
        values = weight_of(round_compensated(rows, scales, np.asarray(moments), handle.point.spec), weight.shape)
        before, _ = state.weight_codes(handle)
        handle.weight.assign(values)
        self.rounded[product.layer] = float(np.mean(state.weight_codes(handle)[0] != before))


def _products(qmodel: Any, graph: ModelGraph, *, bias: bool) -> tuple[list[_Product], dict[str, str]]:
    """The products that can be corrected, and why others cannot, or not their bias."""
    layers = {layer.name: layer for layer in qmodel.layers}
    found: list[_Product] = []
    left: dict[str, str] = {}
    for handle in state.handles(qmodel).values():
        if handle.weight is None:
            continue
        name, inner = handle.point.source, layers[handle.point.source].layer
        calls = graph.calls(name)
        if len(calls) != 1 or type(inner).__name__ not in WEIGHTS:
            left[name] = "it is called several times" if len(calls) != 1 else f"tfqat does not know the bias of a {type(inner).__name__}"
            continue
        output, variable = _bias(graph, layers, calls[0], inner)
        if bias and variable is None:
            left[name] = "it has no bias, and no BatchNorm with one follows"
        activation = inner.activation if output == name else tf.identity
        found.append(
            _Product(layer=name, inner=inner, handle=handle, reads=calls[0].inputs[0], output=output, bias=variable, activation=activation)
        )
    return found, left


def _bias(graph: ModelGraph, layers: Mapping[str, Any], node: Node, inner: Any) -> tuple[str, Any]:
    """The node whose output the bias shifts, and the variable; None for the variable if there is none."""
    readers = graph.consumers(TensorRef(layer=node.name))
    follower = readers[0][0] if len(readers) == 1 else None
    if follower is not None and follower.class_name == "BatchNormalization" and not follower.trains:
        norm = layers[follower.layer]
        axes = [norm.axis] if isinstance(norm.axis, int) else list(norm.axis)
        last = axes in ([-1], [norm.input_spec.ndim - 1])
        if norm.center and last and len(graph.calls(follower.layer)) == 1 and _is_linear(inner):
            return follower.name, norm.beta
    return node.name, inner.bias if inner.use_bias else None


def _is_linear(inner: Any) -> bool:
    return getattr(inner.activation, "__name__", "linear") == "linear"


@contextlib.contextmanager
def _before_activation(products: Sequence[_Product]) -> Iterator[None]:
    """Within the block the products compute without the activation that is part of them."""
    changed = [product for product in products if product.output == product.layer]
    try:
        for product in changed:
            product.inner.activation = tf_keras.activations.linear
        yield
    finally:
        for product in products:
            product.handle.enabled.assign(True)
        for product in changed:
            product.inner.activation = product.activation


def _held(qmodel: Any, pieces: Pieces, dataset: Iterable[Any]) -> list[Values]:
    """The inputs of as many batches as fit into memory, counted on the first one."""
    batches = (_checked(qmodel, inputs_of(batch), number) for number, batch in enumerate(dataset))
    found = next(batches, None)
    if found is None:
        raise DataError("correction: the data set is empty; expected at least one batch of inputs, or of (inputs, labels)")
    first = pieces.start(found)
    live, most = first, 1
    for number in range(len(pieces.chain)):
        live = pieces.run(live, number, number + 1)
        most = max(most, sum(value.shape.num_elements() * value.dtype.size for value in live.values()))
    count = max(1, MEMORY // most)
    return [first, *(pieces.start(batch) for _, batch in zip(range(count - 1), batches, strict=False))]


def _checked(qmodel: Any, inputs: Any, number: int) -> Any:
    check_batch(qmodel, inputs, where=f"correction: batch {number}")
    return inputs


def _mean(values: Iterable[tf.Tensor]) -> np.ndarray:
    """The mean over all axes but the last and all batches, float64 of shape (channels,)."""
    total: Any = 0.0
    count = 0
    for value in values:
        rows = value.numpy().reshape(-1, value.shape[-1])
        total = total + rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return np.asarray(total / count)
