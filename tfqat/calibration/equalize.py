"""Cross-layer equalization: factors for each channel between layers, exact in float, that make the quantized products more accurate.

    before   y = f(W1 x + b1),              z = W2 y
    after    y' = f(W1 x / s + b1 / s) = y / s,    z = (W2 s) y'            f positively homogeneous, one s > 0 for each channel
             ReLU6:  min(max(v, 0), 6) / s = min(max(v / s, 0), 6 / s)      a bound for each channel

s is a power of two, so multiplying by it rounds nothing: the float model returns the same bits (unless a value leaves the range of normal
numbers). What changes is the rounding of y, which has one scale for all channels, and that of W2, which has one for all its input channels.
W1 has a scale for each output channel and does not notice. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", section 4.1; there s balances the ranges, here it minimizes a prediction of the error (`PredictedError`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat.calibration.links import Link, find_links
from tfqat.calibration.predicted_error import PredictedError, Seen
from tfqat.datasets import check_batch, inputs_of
from tfqat.errors import DataError, ModelError
from tfqat.models import graph as model_graph
from tfqat.models.depth import functional_model
from tfqat.models.dtypes import float32_policy
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.layers import ChannelReLU
from tfqat.models.load import canonical
from tfqat.placement.rules.classes import WEIGHTS

ROWS = 2048
"""Positions of a tensor whose values, all channels, the error is predicted from; together of all batches."""

_GOLDEN = 0.6180339887498949
_DEPTHWISE = frozenset({"DepthwiseConv1D", "DepthwiseConv2D"})


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What the channels of a layer were scaled by, float32: `output` divides what it makes, `reads` multiplies its weight; None: by 1."""

    output: np.ndarray | None = None
    reads: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Equalized:
    """An equalized model, and what brings it back.

    Attributes:
        model: the new float model; it returns what the old one does, bit for bit.
        factors: layer -> its factors, for every layer whose weights were scaled.
        caps: ReLU6 layer that got a bound for each channel -> the bound that it had.
        left: product -> why the channels that it reads were left alone.
    """

    model: Any
    factors: Mapping[str, Factors]
    caps: Mapping[str, float]
    left: Mapping[str, str]

    def undo(self, model: Any) -> Any:
        """A model of the scale of the original one, from one with the layers of `self.model`, whose weights may have been trained since.

        `tfqat.strip(equalized.undo(tfqat.strip(qmodel)), like=original)` gives the weights to the user's own model.
        """
        inverse = {
            name: Factors(**{part: None if value is None else 1 / value for part, value in vars(factors).items()})
            for name, factors in self.factors.items()
        }
        layers = {name: tf_keras.layers.ReLU(cap, name=name) for name, cap in self.caps.items()}
        return _scaled(model, inverse, layers)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object without the model: the exponents k of the factors 2 ** -k."""
        exponents = {
            name: {part: None if value is None else (-np.log2(value)).astype(int).tolist() for part, value in vars(factors).items()}
            for name, factors in self.factors.items()
        }
        return {"exponents": exponents, "caps": dict(self.caps), "left": dict(self.left)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any = None) -> Equalized:
        """The inverse of `to_dict`."""
        factors = {
            name: Factors(**{part: None if value is None else np.exp2(-np.asarray(value, np.float32)) for part, value in parts.items()})
            for name, parts in data["exponents"].items()
        }
        return cls(model=model, factors=factors, caps=data["caps"], left=data["left"])


@float32_policy()
def equalize(model: Any, dataset: Iterable[Any], *, batches: int = 16, weight_bits: int = 8, activation_bits: int = 8) -> Equalized:
    """Scale the channels between the layers of a float model where that is predicted to make it more accurate once it is quantized.

    The largest value of every tensor that a product reads stays as it is or falls, so that no calibrator has to choose a wider range.

    Args:
        model: a functional or Sequential model; it is not changed.
        dataset: batches of inputs, or of (inputs, labels, ...).
        batches: how many batches to look at.
        weight_bits: of the quantized weights, which have one scale for each output channel.
        activation_bits: of what the products read, with one scale each.

    Raises:
        DataError: fewer batches than asked for, a batch of another shape than the model takes, NaN or Inf.
    """
    model = canonical(model)
    graph = model_graph.read(model)
    found = find_links(graph)
    if not found.links:
        return Equalized(model=model_graph.clone(model), factors={}, caps={}, left=found.left)
    tensors = {tensor: link.channels for link in found.links for tensor, _ in link.readers}
    seen = _observe(model, tensors, dataset, batches)
    levels = 2 ** (weight_bits - 1) - 1, 2 ** (activation_bits - 1) - 1
    factors: dict[str, Factors] = {}
    layers: dict[str, Any] = {}
    caps: dict[str, float] = {}
    for link in found.links:
        exponents = _choose(model, graph, link, seen, *levels)
        if not exponents.any():
            continue
        scale = np.exp2(-exponents).astype(np.float32)
        for node in link.producers:
            factors[node.layer] = Factors(output=scale, reads=factors.get(node.layer, Factors()).reads)
        for _, node in link.readers:
            factors[node.layer] = Factors(output=factors.get(node.layer, Factors()).output, reads=scale)
        for node, cap in link.caps:
            caps[node.layer] = cap
            layers[node.layer] = ChannelReLU((cap / scale).tolist(), name=node.layer)
    return Equalized(model=_scaled(model, factors, layers), factors=factors, caps=caps, left=found.left)


def _observe(model: Any, tensors: Mapping[TensorRef, int], dataset: Iterable[Any], batches: int) -> dict[TensorRef, Seen]:
    symbolic = model_graph.tensors(model)
    observer = functional_model(model.inputs, [symbolic[tensor] for tensor in tensors])
    rows = -(-ROWS // batches)

    @tf.function(reduce_retracing=True)
    def look(*inputs: Any) -> list[tuple[Any, Any]]:
        flat = [
            tf.reshape(value, [-1, channels])
            for value, channels in zip(tf.nest.flatten(observer(list(inputs), training=False)), tensors.values(), strict=True)
        ]
        return [(tf.reduce_max(tf.abs(x), axis=0), tf.gather(x, _spread(tf.shape(x)[0], rows))) for x in flat]

    found = []
    for number, batch in enumerate(itertools.islice(dataset, batches)):
        inputs = inputs_of(batch)
        check_batch(model, inputs, where=f"equalization batch {number}")
        named = [inputs[name] for name in model.input_names] if isinstance(inputs, Mapping) else tf.nest.flatten(inputs)
        found.append(look(*(tf.cast(value, given.dtype) for value, given in zip(named, model.inputs, strict=True))))
        _check_finite({**dict(zip(model.input_names, named, strict=True)), **_largest(tensors, found[-1])}, number)
    if len(found) < batches:
        raise DataError(f"equalization asked for {batches} batches, the data held {len(found)}: give more data, or ask for fewer batches")
    return {
        tensor: Seen(
            amax=np.max([batch[index][0].numpy() for batch in found], axis=0),
            values=np.concatenate([batch[index][1].numpy() for batch in found]).astype(np.float64),
        )
        for index, tensor in enumerate(tensors)
    }


def _spread(size: Any, count: int) -> Any:
    """Positions that lie evenly in [0, size), and so that no period of the tensor, such as the width of an image, repeats."""
    parts = tf.math.floormod(tf.range(count, dtype=tf.float64) * _GOLDEN, 1.0)
    return tf.cast(parts * tf.cast(size, tf.float64), tf.int32)


def _largest(tensors: Iterable[TensorRef], found: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    return {tensor.layer: amax for tensor, (amax, _) in zip(tensors, found, strict=True)}


def _check_finite(named: Mapping[str, Any], number: int) -> None:
    """Raise if a value is NaN or Inf; the inputs are among them, since a fused ReLU hides NaN from what follows."""
    for name, value in named.items():
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise DataError(f"equalization batch {number}: tensor {name!r} holds NaN or Inf. Look at that batch of the data")


def _choose(model: Any, graph: ModelGraph, link: Link, seen: Mapping[TensorRef, Seen], weight_hi: int, activation_hi: int) -> np.ndarray:
    """The exponents k of the channels of a link, s = 2 ** -k; none where the error is not predicted to fall."""
    error = PredictedError(channels=link.channels)
    for tensor, node in link.readers:
        rows = _rows(model.get_layer(node.layer), node, link.channels)
        gain = _gain(model, graph, node, rows.shape[-1] if node.class_name not in _DEPTHWISE else link.channels * rows.shape[-1])
        if node.class_name in _DEPTHWISE:
            error.add_depthwise(rows, gain.reshape(link.channels, -1), seen[tensor], activation_hi)
        else:
            error.add(rows, gain, seen[tensor], weight_hi, activation_hi)
    return error.descend()


def _rows(layer: Any, node: Node, channels: int) -> np.ndarray:
    """The weight of a product that reads `channels` channels, as (channels, positions, outputs), float64.

    A Dense behind Flatten reads each channel at several positions; of a depthwise weight the outputs are those of one channel.
    """
    weight = np.asarray(getattr(layer, WEIGHTS[node.class_name].attribute), np.float64)
    return weight.reshape(-1, channels, weight.shape[-1]).transpose(1, 0, 2)


def _gain(model: Any, graph: ModelGraph, node: Node, outputs: int) -> np.ndarray:
    """|gamma| / sqrt(variance + epsilon) of the BatchNorm that alone reads a product's output, else 1; shape (outputs,)."""
    readers = graph.consumers(TensorRef(layer=node.name))
    if len(readers) != 1 or readers[0][0].class_name != "BatchNormalization":
        return np.ones(outputs)
    norm = model.get_layer(readers[0][0].layer)
    gain = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    return gain * np.abs(np.asarray(norm.gamma, np.float64)) if norm.scale else gain


def _scaled(model: Any, factors: Mapping[str, Factors], layers: Mapping[str, Any]) -> Any:
    """A copy of a model with other layers in the place of some, and its weights scaled."""
    missing = sorted((set(factors) | set(layers)) - {layer.name for layer in model.layers})
    if missing:
        raise ModelError(f"model {model.name!r} lacks layers that were equalized: {', '.join(missing)}; expected the layers of `model`")
    copy = model_graph.rebuild(model, replace=lambda layer: layers.get(layer.name) or model_graph.clone_layer(layer))
    model_graph.copy_weights(model, copy)
    for name, scale in factors.items():
        layer = copy.get_layer(name)
        if scale.output is not None:
            for variable in _makes(layer):
                value = variable.numpy()
                variable.assign((value.reshape(-1, scale.output.size) / scale.output).reshape(value.shape))
        if scale.reads is not None:
            variable = getattr(layer, WEIGHTS[type(layer).__name__].attribute)
            value = variable.numpy()
            rows = value.reshape(-1, scale.reads.size, value.shape[-1]) * scale.reads[:, None]
            variable.assign(rows.reshape(value.shape))
    return copy


def _makes(layer: Any) -> list[Any]:
    """The variables that the output of a layer is linear in, each with the output channels last, or last two."""
    if type(layer).__name__ not in WEIGHTS:
        return [variable for variable in (layer.gamma, layer.beta) if variable is not None]
    weight = getattr(layer, WEIGHTS[type(layer).__name__].attribute)
    return [weight, layer.bias] if layer.use_bias else [weight]
