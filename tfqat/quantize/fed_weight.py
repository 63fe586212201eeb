"""A layer that reads its weight from an input instead of its variable."""

from __future__ import annotations

from typing import Any

import tf_keras


class FedWeight(tf_keras.layers.Layer):  # type: ignore[misc]
    """Computes `inner` with the weight that comes as the second input; only export uses it, for the time of a conversion."""

    def __init__(self, inner: Any, attribute: str) -> None:
        super().__init__(name=inner.name)
        self.inner = inner
        self.attribute = attribute

    def build(self, input_shape: Any) -> None:
        """Build `inner` for the shape of the first input."""
        self.inner.build(input_shape[0])
        self.inner.built = True
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """[tensor, weight] -> the output of `inner`; the variable is put back past Keras's tracking, as QuantizeWrapper does."""
        tensor, weight = inputs
        variable = vars(self.inner)[self.attribute]
        vars(self.inner)[self.attribute] = weight
        try:
            return self.inner.call(tensor)
        finally:
            vars(self.inner)[self.attribute] = variable
