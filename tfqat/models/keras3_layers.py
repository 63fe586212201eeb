"""tf_keras layers that stand for parts of Keras 3 which tf_keras lacks.

`LayerScale` and `StochasticDepth` are equivalents. `KerasOperation` and `Keras3Layer` compute through Keras 3 itself, which needs its
TensorFlow backend. Keras 3 is imported when one of these two is made, not before. Checked on Keras 3.15.1 and tf-keras 2.21.0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.models.keras3_calls import decode_arguments
from tfqat.models.keras3_live import live_layer, operation_class
from tfqat.models.names import legal_name

_register = tf_keras.utils.register_keras_serializable("tfqat")


@_register
class BatchNormalization(tf_keras.layers.BatchNormalization):  # type: ignore[misc]
    """BatchNormalization as Keras 3 computes it: by its formula, where tf_keras takes TensorFlow's fused kernel, which rounds otherwise.

    The difference is one unit in the last place for each layer, and 1e-5 of the output behind fifty of them (ResNet50V2).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fused = False


@_register
class LayerScale(tf_keras.layers.Layer):
    """x gamma, with one trained factor for each channel (arXiv:2103.17239); it starts at `init_values`."""

    def __init__(self, init_values: float, projection_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.init_values, self.projection_dim = init_values, projection_dim
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Make `gamma`, shape (projection_dim,)."""
        initial = tf_keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=initial)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Scale the last axis."""
        return inputs * self.gamma

    def get_config(self) -> dict[str, Any]:
        """What `from_config` takes."""
        return {**super().get_config(), "init_values": self.init_values, "projection_dim": self.projection_dim}


@_register
class StochasticDepth(tf_keras.layers.Layer):
    """Drop a residual branch of a sample with probability `drop_path_rate` in training (arXiv:1603.09382); the identity otherwise."""

    def __init__(self, drop_path_rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop_path_rate = drop_path_rate
        self.supports_masking = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """`inputs`, or in training zero or inputs / (1 - rate) for each sample."""
        if not training:
            return tf.identity(inputs)
        keep = 1 - self.drop_path_rate
        shape = tf.concat([tf.shape(inputs)[:1], tf.ones(len(inputs.shape) - 1, tf.int32)], axis=0)
        return inputs / keep * tf.floor(keep + tf.random.uniform(shape, dtype=inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        """What `from_config` takes."""
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


@_register
class KerasOperation(tf_keras.layers.Layer):
    """One operation of `keras.ops` that no tf_keras layer computes.

    Args:
        operation: path of the operation's class, under `keras.src.ops` or `keras.src.activations`.
        settings: what its constructor takes, as `keras3_calls.encode` writes it.
        arguments: what it is called with, as `keras3_calls.encode_arguments` writes it: tensors by their position in the layer's input.
    """

    def __init__(self, operation: str, settings: Mapping[str, Any], arguments: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.operation, self.settings, self.arguments = operation, dict(settings), dict(arguments)
        kind = operation_class(operation)
        made = kind(**decode_arguments({"args": [], "kwargs": settings}, [])[1])
        self._operation: Callable[[], Any] = lambda: made  # a function, so that tf_keras does not track what it returns

    def call(self, inputs: Any) -> Any:
        """Apply the operation to the tensors of `inputs`."""
        return _as_written(self._compute)(tf.nest.flatten(inputs))

    def _compute(self, tensors: list[Any]) -> Any:
        args, kwargs = decode_arguments(self.arguments, tensors)
        return self._operation()(*args, **kwargs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """None: operations of Keras 3 do not pass masks on."""
        return None

    def get_config(self) -> dict[str, Any]:
        """What `from_config` takes."""
        own = {"operation": self.operation, "settings": self.settings, "arguments": self.arguments}
        return {**super().get_config(), **own}


@_register
class Keras3Layer(tf_keras.layers.Layer):
    """A layer of Keras 3 that tf_keras lacks, the user's own ones too: it owns the weights and computes through the Keras 3 layer.

    In float64 it computes through a copy of that layer made for float64. A layer that cannot be copied computes in float32 there.

    Args:
        layer: the Keras 3 layer, as `Description` or as the text of one.
    """

    def __init__(self, layer: str, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        made = live_layer(layer, self.compute_dtype)
        self._live: Callable[[], Any] = lambda: made
        self._live_parameters = inspect.signature(made.call).parameters
        self.supports_masking = bool(made.supports_masking)
        self._own: list[Any] | None = None

    @property
    def class_name(self) -> str:
        """The class of the Keras 3 layer."""
        return type(self._live()).__name__

    def call(self, inputs: Any, *args: Any, training: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        """Compute with the weights of this layer; `training` and `mask` go on if the Keras 3 layer takes them."""
        given = {"training": training, "mask": mask}
        kwargs.update({name: value for name, value in given.items() if name in self._live_parameters and value is not None})
        return _as_written(self._compute)(inputs, args, kwargs)

    def _compute(self, inputs: Any, args: Any, kwargs: Any) -> Any:
        keras, live = import_module("keras"), self._live()
        inputs, args, kwargs = tf.nest.map_structure(lambda value: self._cast(value, live.compute_dtype), (inputs, args, kwargs))
        self._make_weights(inputs, args, kwargs)
        own = list(zip(_variables(live), self._own or (), strict=True))
        with keras.StatelessScope(state_mapping=[(variable, tf.cast(weight, variable.dtype)) for variable, weight in own]) as scope:
            before = [scope.get_current_value(variable) for variable, _ in own]
            outputs = live(inputs, *args, **kwargs)
        for (variable, weight), old in zip(own, before, strict=True):
            new = scope.get_current_value(variable)
            if new is not old:
                weight.assign(tf.cast(new, weight.dtype))
        return tf.nest.map_structure(lambda value: self._cast(value, self.compute_dtype), outputs)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` takes."""
        return {**super().get_config(), "layer": self.layer}

    def _make_weights(self, inputs: Any, args: Any, kwargs: Any) -> None:
        """Tensors of the shapes of the Keras 3 layer's variables: first the trained ones, as in `weights`."""
        if self._own is not None:
            return
        live = self._live()
        with tf.init_scope():
            if live is not getattr(self.layer, "layer", None):  # a new one, of which parts may not be built
                specs = tf.nest.map_structure(_symbol, (inputs, args, kwargs))
                live(specs[0], *specs[1], **specs[2])
            own = [
                self.add_weight(
                    name=legal_name(variable.path),
                    shape=variable.shape,
                    dtype="float64" if (variable.dtype, self.compute_dtype) == ("float32", "float64") else variable.dtype,
                    initializer="zeros",
                    trainable=index < len(live.trainable_variables),
                )
                for index, variable in enumerate(_variables(live))
            ]
        self._own = own

    def _cast(self, value: Any, dtype: str) -> Any:
        """Only between the two types that this layer knows: its own and that of a Keras 3 layer which cannot follow it."""
        differs = tf.is_tensor(value) and {value.dtype.name, dtype} == {"float32", "float64"}
        return tf.cast(value, dtype) if differs else value


def _as_written(function: Any) -> Any:
    """`function`, which AutoGraph shall not translate: it cannot translate Keras 3, nor what users write for it."""
    return tf.autograph.experimental.do_not_convert(function)


CUSTOM_OBJECTS: Mapping[str, Any] = {
    f"tfqat>{layer.__name__}": layer for layer in (BatchNormalization, LayerScale, StochasticDepth, KerasOperation, Keras3Layer)
}
"""What Keras has to know to load a model with these layers."""


def _variables(layer: Any) -> list[Any]:
    return [*layer.trainable_variables, *layer.non_trainable_variables]


def _symbol(value: Any) -> Any:
    if not tf.is_tensor(value):
        return value
    return import_module("keras").KerasTensor(shape=tuple(value.shape), dtype=value.dtype.name)
