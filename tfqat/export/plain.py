"""Layers as export writes them: the same function in operations that convert to few ONNX nodes with static shapes.

tf-keras 2.21 computes a Dense on more than two axes with `tf.tensordot` and a LayerNormalization with `fused_batch_norm`; both work out
shapes at run time, which becomes dozens of nodes of integer arithmetic that TensorRT cannot fuse over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat.models import keras3_layers
from tfqat.models.graph import clone_layer


class _Dense(tf_keras.layers.Dense):  # type: ignore[misc]
    """activation(x W + b), x of shape (batch, ..., in), W of shape (in, out)."""

    def call(self, inputs: Any) -> Any:
        if inputs.shape.rank <= 2:
            return super().call(inputs)
        product = tf.matmul(inputs, self.kernel)
        return self.activation(product + self.bias if self.use_bias else product)


class _LayerNormalization(tf_keras.layers.LayerNormalization):  # type: ignore[misc]
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, over `axis`."""

    def call(self, inputs: Any) -> Any:
        axes = [self.axis] if isinstance(self.axis, int) else list(self.axis)
        shape = [size if axis in axes else 1 for axis, size in enumerate(inputs.shape)]
        centred = inputs - tf.reduce_mean(inputs, axes, keepdims=True)
        variance = tf.reduce_mean(centred * centred, axes, keepdims=True)
        normal = centred / tf.sqrt(variance + self.epsilon)
        normal = normal * tf.reshape(self.gamma, shape) if self.scale else normal
        return normal + tf.reshape(self.beta, shape) if self.center else normal


class _Reshape(tf_keras.layers.Reshape):  # type: ignore[misc]
    """(batch, ...) -> (batch, *target_shape)."""

    def call(self, inputs: Any) -> Any:
        target = self.compute_output_shape(inputs.shape)[1:]
        return tf.reshape(inputs, (-1, *target)) if all(target) else super().call(inputs)


class _Rescaling(tf_keras.layers.Rescaling):  # type: ignore[misc]
    """scale * x + offset, without what changes nothing."""

    def call(self, inputs: Any) -> Any:
        scaled = inputs if _all(self.scale, 1) else inputs * tf.constant(self.scale, inputs.dtype)
        return scaled if _all(self.offset, 0) else scaled + tf.constant(self.offset, inputs.dtype)


def _all(values: Any, wanted: float) -> bool:
    return bool(np.all(np.asarray(values) == wanted))


_PLAIN: dict[type, Any] = {
    keras3_layers.BatchNormalization: tf_keras.layers.BatchNormalization,  # whose fused kernel is one node
    tf_keras.layers.Rescaling: _Rescaling,
    tf_keras.layers.Dense: _Dense,
    tf_keras.layers.LayerNormalization: _LayerNormalization,
    tf_keras.layers.Reshape: _Reshape,
}


def plain(layer: Any, **changes: Any) -> Any:
    """A new, unbuilt layer that computes what `layer` does in the form that export writes, with `changes` to the configuration."""
    form = _PLAIN.get(type(layer))
    return form.from_config({**layer.get_config(), **changes}) if form else clone_layer(layer, **changes)
