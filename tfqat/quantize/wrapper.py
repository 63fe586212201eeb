"""The layer that computes with fake-quantized weights: TFMOT's wrapper, without what keeps its models from reloading."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from tfqat.quantize.quantizers import PACKAGE, TensorQuantizer


@tf_keras.utils.register_keras_serializable(PACKAGE)
class QuantizeWrapper(QuantizeWrapperV2):  # type: ignore[misc]
    """Runs a layer with the quantized values of its weights.

    Unlike TFMOT 0.8.1 it leaves the layer's variables where they are (there they move to the wrapper, in an order that depends
    on what was built first, so that `.keras` files do not load), keeps no step counter, and adds no `tf.cond` on `training`.
    """

    def __init__(self, layer: Any, quantize_config: Any, name_prefix: str = "", **kwargs: Any) -> None:
        # The layer's own name, without TFMOT's `quant_`: Keras names outputs after layers, and finds labels and names metrics by them.
        super().__init__(layer, quantize_config, name_prefix=name_prefix, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Build the layer, then `amax` and `enabled` of each of its quantized weights.

        `_weight_vars` is written past Keras's `__setattr__`, which would track the layer's variables a second time: as weights of the
        wrapper they would be saved twice, and trained even where the layer is frozen.
        """
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        weight_vars = [
            (weight, quantizer, quantizer.build(weight.shape, quantizer.point.weight, self))
            for weight, quantizer in self.quantize_config.get_weights_and_quantizers(self.layer)
        ]
        object.__setattr__(self, "_weight_vars", weight_vars)
        self.built = True

    @property
    def trainable_weights(self) -> list[Any]:
        """The layer's, then a range that is trained: so `weights` has the same order whether it is or not."""
        return list(self._dedup_weights(self.layer.trainable_weights + self._trainable_weights))

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The layer's output, computed with quantized weights."""
        variables = [weight for weight, _, _ in self._weight_vars]
        quantized = [self._as_computed(quantizer(weight, training, state)) for weight, quantizer, state in self._weight_vars]
        self.quantize_config.set_quantize_weights(self.layer, quantized)
        try:
            return self.layer.call(inputs, **kwargs)
        finally:
            self.quantize_config.set_quantize_weights(self.layer, variables)

    def _as_computed(self, value: Any) -> Any:
        """A quantized weight in the type that the layer computes in."""
        dtype = self.layer.compute_dtype
        return value if dtype is None or value.dtype == dtype else tf.cast(value, dtype)

    def quantized_weights(self) -> list[tuple[TensorQuantizer, Any, dict[str, Any]]]:
        """(quantizer, variable, state) of each quantized weight."""
        return [(quantizer, weight, state) for weight, quantizer, state in self._weight_vars]
