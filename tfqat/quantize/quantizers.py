"""The fake quantizers as Keras state: a TFMOT Quantizer, and the layer that applies one to an activation tensor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

from tfqat import numerics
from tfqat.models.names import legal_name
from tfqat.placement.plan import QPoint, point_from_dict, point_to_dict

PACKAGE = "tfqat"

_HERE = threading.local()


@contextmanager
def quantizers(*, on: bool) -> Iterator[None]:
    """What this thread traces or computes within it has all quantizers on, or none, whatever their `enabled` says.

    Only the branch that is taken is traced, or none: tracing the branches of many quantizers takes longer than the rest of a model.
    """
    before = getattr(_HERE, "on", None)
    _HERE.on = on
    try:
        yield
    finally:
        _HERE.on = before


Amax = Literal["frozen", "dynamic", "lsq", "pact"]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a quantizer takes part in training.

    Attributes:
        amax: `frozen` keeps the range; `dynamic` takes a weight's largest magnitude at each step; `lsq` and `pact` train it.
        gradient: to the tensor, where amax is not trained; see `numerics.fake_quantize`.
    """

    amax: Amax = "frozen"
    gradient: numerics.Gradient = "clipped"


@tf_keras.utils.register_keras_serializable(PACKAGE)
class TensorQuantizer(Quantizer):  # type: ignore[misc]
    """Fake-quantizes one tensor on the grid of a QPoint.

    Its state belongs to the layer that builds it: `amax` (float32, shape () or one entry per channel) and `enabled` (bool, shape ()).
    A quantizer that has not been calibrated is not enabled and passes its tensor on; both can be set without retracing.

    Attributes:
        point: what it quantizes.
        learning: read when a function is traced; set by `tfqat.qat_compile`, and not saved.
    """

    def __init__(self, point: QPoint) -> None:
        self.point = point
        self.learning = Learning()

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Create the state of a tensor of `tensor_shape` on `layer`; names start with `name`."""
        shape = numerics.amax_shape(tensor_shape, self.point.spec)
        amax = layer.add_weight(name=f"{name}_amax", shape=shape, dtype=tf.float32, initializer="zeros", trainable=False)
        enabled = layer.add_weight(name=f"{name}_enabled", shape=(), dtype=tf.bool, initializer=_false, trainable=False)
        return {"amax": amax, "enabled": enabled}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **_: Any) -> Any:
        """fake_quantize(inputs) where enabled, else `inputs`; training makes no difference."""
        del training
        on = getattr(_HERE, "on", None)
        if on is not None:
            return self._quantized(inputs, weights["amax"], behind=relu_before(inputs)) if on else inputs
        return tf.cond(weights["enabled"], lambda: self._quantized(inputs, weights["amax"]), lambda: tf.identity(inputs))

    def _quantized(self, inputs: Any, amax: Any, behind: tuple[Any, float | None] | None = None) -> Any:
        spec, learning = self.point.spec, self.learning
        if learning.amax in ("lsq", "pact"):
            has_batch = self.point.kind == "activation"
            return numerics.learned_fake_quantize(inputs, amax, spec, rule=learning.amax, has_batch=has_batch)
        if learning.amax == "dynamic":
            amax = numerics.weight_amax(inputs, spec)
        elif behind is not None and not spec.axes:
            tensor, cap = behind
            return numerics.fake_quantize_relu(tensor, amax, spec, cap=cap, gradient=learning.gradient)
        return numerics.fake_quantize(inputs, amax, spec, gradient=learning.gradient)

    def get_config(self) -> dict[str, Any]:
        """Keras configuration: the QPoint as JSON."""
        return {"point": point_to_dict(self.point)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TensorQuantizer:
        """The inverse of `get_config`."""
        return cls(point_from_dict(config["point"]))


@tf_keras.utils.register_keras_serializable(PACKAGE)
class ActivationQuantizer(tf_keras.layers.Layer):  # type: ignore[misc]
    """Q/DQ on an activation tensor: sits on the edges of its QPoint and fake-quantizes what passes.

    TFMOT's own QuantizeLayer is not its base class, because `quantize_apply` makes plain QuantizeLayers of all instances of it.
    """

    def __init__(self, point: QPoint, **kwargs: Any) -> None:
        super().__init__(**{"name": layer_name(point), **kwargs})
        self.quantizer = TensorQuantizer(point)

    @property
    def point(self) -> QPoint:
        """The QPoint that this layer quantizes."""
        return self.quantizer.point

    def build(self, input_shape: Any) -> None:
        """Create `amax` and `enabled`."""
        self.quantizer_weights = self.quantizer.build(input_shape, "output", self)
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """(batch, ...) -> the same shape and type, on the grid of the QPoint; 16-bit floats are quantized in float32."""
        if inputs.dtype in (tf.float16, tf.bfloat16):
            return tf.cast(self.quantizer(tf.cast(inputs, tf.float32), training, self.quantizer_weights), inputs.dtype)
        return self.quantizer(inputs, training, self.quantizer_weights)

    def get_config(self) -> dict[str, Any]:
        """Keras configuration."""
        return {**super().get_config(), **self.quantizer.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ActivationQuantizer:
        """The inverse of `get_config`."""
        return cls(**{**config, "point": point_from_dict(config["point"])})


def relu_before(tensor: Any) -> tuple[Any, float | None] | None:
    """What the ReLU reads that makes a tensor of a graph, and its cap; None if there is none.

    The quantizer can do the ReLU's work: its lower limit is 0 then. The ReLU itself is dropped from the graph unless something else
    reads it.
    """
    operation = None if tf.executing_eagerly() else getattr(tensor, "op", None)
    if operation is None or operation.type not in _RELUS:
        return None
    return operation.inputs[0], _RELUS[operation.type]


_RELUS: Mapping[str, float | None] = {"Relu": None, "Relu6": 6.0}


def layer_name(point: QPoint) -> str:
    """The name of an activation point's layer: Keras scopes allow no colon and no @."""
    return f"{legal_name(point.id.replace(':', '.').replace('@', '.call'))}.q"


def _false(shape: Any, dtype: Any = None, **_: Any) -> Any:
    return tf.zeros(shape, tf.bool)
