"""The layers that tf_keras lacks and a canonical model needs; they save and load like every other layer.

`CUSTOM_OBJECTS` is what `tf_keras.models.load_model(..., custom_objects=...)` needs for a file that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras


@tf_keras.saving.register_keras_serializable("tfqat")
class MatMul(tf_keras.layers.Layer):
    """The matrix product of two tensors over their last two axes; the axes before them are batch.

    (..., m, k), (..., k, n) -> (..., m, n); with `transpose_b` the second is (..., n, k).
    """

    def __init__(self, transpose_b: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transpose_b = transpose_b

    def call(self, inputs: Sequence[Any]) -> Any:
        """The product of `inputs`, a list of two tensors."""
        first, second = inputs
        return tf.matmul(first, second, transpose_b=self.transpose_b)

    def get_config(self) -> dict[str, Any]:
        """What Keras saves of this layer."""
        return {**super().get_config(), "transpose_b": self.transpose_b}


@tf_keras.saving.register_keras_serializable("tfqat")
class ChannelReLU(tf_keras.layers.Layer):
    """min(max(x, 0), cap_c) with a cap for each channel, the last axis: what equalization makes of a ReLU6.

    min(max(z, 0), 6) / s = min(max(z / s, 0), 6 / s) for s > 0.
    """

    def __init__(self, max_values: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_values = [float(value) for value in max_values]

    def call(self, inputs: Any) -> Any:
        """The bounded values of a tensor whose last axis has as many channels as there are caps."""
        return tf.minimum(tf.nn.relu(inputs), tf.constant(self.max_values, inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        """What Keras saves of this layer."""
        return {**super().get_config(), "max_values": self.max_values}


CUSTOM_OBJECTS: Mapping[str, Any] = {f"tfqat>{layer.__name__}": layer for layer in (MatMul, ChannelReLU)}
