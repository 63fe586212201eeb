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


CUSTOM_OBJECTS: Mapping[str, Any] = {"tfqat>MatMul": MatMul}
