"""The tf_keras layer that computes what a Keras 3 layer computes, made from its configuration (checked on Keras 3.15.1, tf-keras 2.21.0).

    keras.layers.LeakyReLU(negative_slope=0.1, name="act")   ->   tf_keras.layers.LeakyReLU(alpha=0.1, name="act")

Weights are not copied here, so initializers are the cheapest ones.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import tf_keras

from tfqat.errors import ModelError
from tfqat.models import activations
from tfqat.models.dtypes import MIXED
from tfqat.models.keras3_layers import BatchNormalization, LayerScale, StochasticDepth

_OWN = {"LayerScale": LayerScale, "StochasticDepth": StochasticDepth}
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
_NOT_USED = {"SpectralNormalization"}  # tf-keras 2.21 makes it with classes of `tf.keras`, which is Keras 3
_NESTED = ("layer", "backward_layer", "cell", "cells")
_ACTIVATIONS = ("activation", "recurrent_activation")

# They say how Keras 3 computes, makes or stores something, not what.
_WITHOUT_EFFECT = {"name", "trainable", "dtype", "seed", "use_cudnn", "flash_attention", "lora_rank", "lora_alpha", "data_format"}
_WITHOUT_EFFECT |= {"quantization_config", "gptq_unpacked_column_size"}


@dataclass(frozen=True, kw_only=True)
class Equivalent:
    """A tf_keras layer, not yet built, and the Keras 3 layer, if any, that has to be applied to its output: an activation of the user's."""

    layer: Any
    activation: Any = None


class _NoEquivalentError(Exception):
    """tf_keras has no layer for it; the text says why."""


def equivalent(layer: Any, name: str) -> Equivalent | None:
    """The tf_keras layer called `name` for a Keras 3 layer; None if tf_keras has none.

    Raises:
        ModelError: a layer that Keras 3 has quantized already.
    """
    check_not_quantized(layer, name)
    try:
        return _equivalent(layer, name)
    except _NoEquivalentError:
        return None


def check_not_quantized(layer: Any, name: str) -> None:
    """ModelError if a layer computes with integers already."""
    mode = getattr(getattr(layer, "dtype_policy", None), "quantization_mode", None)
    if mode is not None:
        raise ModelError(
            f"layer {name!r} ({type(layer).__name__}) has been quantized by Keras ({mode}), expected float weights: give the model "
            "as it was before model.quantize()"
        )


def _equivalent(layer: Any, name: str) -> Equivalent:
    target = _class_of(type(layer))
    if target is tf_keras.layers.Lambda:
        return Equivalent(layer=_lambda(layer, name))
    accepted = _parameters(target)
    arguments: dict[str, Any] = {}
    split = None
    for key, value in _config(layer).items():
        key_there = _RENAMED.get((target.__name__, key), key)
        if key_there not in accepted:
            _check_without_effect(layer, key, value)
        elif key == "activation" and _is_users_own(layer):
            split, arguments[key] = _as_layer(layer), "linear"
        elif key not in ("name", "trainable", "dtype"):
            arguments[key_there] = _argument(layer, key, value)
    arguments.update(_statistics(layer) if target is tf_keras.layers.Normalization else {})
    return Equivalent(layer=target(**arguments, name=name, dtype=dtype_of(layer)), activation=split)


def _class_of(kind: type) -> Any:
    """The tf_keras class; subclasses of the user's are not looked through, since they may compute something else."""
    if kind.__module__ == "keras.src.applications.convnext" and kind.__name__ in _OWN:
        return _OWN[kind.__name__]
    if kind.__module__.startswith("keras.src.layers.") and kind.__name__ == "BatchNormalization":
        return BatchNormalization
    known = hasattr(tf_keras.layers, kind.__name__) and kind.__name__ not in _NOT_USED
    if known and kind.__module__.startswith("keras.src.layers."):
        return getattr(tf_keras.layers, kind.__name__)
    raise _NoEquivalentError(f"tf_keras has no layer {kind.__name__}")


@cache
def _parameters(kind: Any) -> frozenset[str]:
    """What the constructor of a class takes by name, and that of its bases as far as it passes keyword arguments on."""
    names: set[str] = set()
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        found = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {parameter.name for parameter in found if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
            break
    names |= {"activity_regularizer"} | ({"zero_output_for_mask"} if issubclass(kind, tf_keras.layers.RNN) else set())
    return frozenset(names - {"self"})


def _config(layer: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an activation is a lambda, which is not read from here
        return layer.get_config()


def _check_without_effect(layer: Any, key: str, value: Any) -> None:
    parameter = inspect.signature(type(layer).__init__).parameters.get(key)
    unset = value is None or value is False or (parameter is not None and _plain(value) == _plain(parameter.default))
    if not unset and key not in _WITHOUT_EFFECT:
        raise _NoEquivalentError(f"tf_keras's {type(layer).__name__} has no {key}={value!r}")
    if key == "data_format" and value == "channels_first":
        raise _NoEquivalentError(f"tf_keras's {type(layer).__name__} knows channels_last only")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _argument(layer: Any, key: str, value: Any) -> Any:
    if key.endswith("_initializer"):
        return "zeros"
    if key in _ACTIVATIONS:
        return _activation(layer, key)
    if key.endswith(("_regularizer", "_constraint")):
        return _regularizer_or_constraint(value, tf_keras.regularizers if key.endswith("_regularizer") else tf_keras.constraints)
    return _nested(layer, key) if key in _NESTED else value


def _activation(layer: Any, key: str) -> Any:
    found = activations.equivalent(getattr(layer, key))
    if found is None:
        raise _NoEquivalentError(f"tf_keras has no activation {getattr(layer, key)!r}")
    return found


def _is_users_own(layer: Any) -> bool:
    """Whether the activation is unknown to tf_keras, but the last thing that the layer computes, so that it can stand behind the layer."""
    last = type(layer).__name__.endswith(("Dense", "Conv1D", "Conv2D", "Conv3D", "Transpose"))
    return last and activations.equivalent(layer.activation) is None


def _as_layer(layer: Any) -> Any:
    layers = import_module("keras").layers
    is_layer = isinstance(layer.activation, layers.Layer)
    return layer.activation if is_layer else layers.Activation(layer.activation, name=f"{layer.name}_activation", dtype=dtype_of(layer))


def _regularizer_or_constraint(value: Any, module: Any) -> Any:
    """The object of the same class and settings; None, without effect, if tf_keras does not have the class."""
    made = getattr(module, value["class_name"], None) if isinstance(value, Mapping) else None
    return made(**value["config"]) if inspect.isclass(made) else None


def _nested(layer: Any, key: str) -> Any:
    """The layer, cell or cells inside a wrapper; a nested part that tf_keras lacks makes the wrapper one that it lacks."""
    live = getattr(layer, {"layer": "forward_layer" if hasattr(layer, "forward_layer") else "layer"}.get(key, key))
    made = [_nested_equivalent(part) for part in (live if isinstance(live, Iterable) else [live])]
    return made if isinstance(live, Iterable) else made[0]


def _nested_equivalent(layer: Any) -> Any:
    made = _equivalent(layer, layer.name)
    if made.activation is not None:
        raise _NoEquivalentError(f"tf_keras has no activation {layer.activation!r}")
    return made.layer


def _lambda(layer: Any, name: str) -> Any:
    backend = import_module("keras").backend.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"the function of Lambda layer {name!r} computes with {backend!r}: set KERAS_BACKEND=tensorflow in the environment"
        )
    return tf_keras.layers.Lambda(layer.function, mask=layer.mask, arguments=dict(layer.arguments), name=name, dtype=dtype_of(layer))


def _statistics(layer: Any) -> dict[str, Any]:
    """Mean and variance of a Normalization layer as settings. As weights they would have to be finalized after each change."""
    given = layer.input_mean is not None
    mean, variance = (layer.input_mean, layer.input_variance) if given else (layer.adapt_mean, layer.adapt_variance)
    return {key: np.asarray(_numpy(value)).tolist() for key, value in (("mean", mean), ("variance", variance))}


def _numpy(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value


def dtype_of(layer: Any) -> str:
    """The name of the layer's dtype policy; float32 for a mixed one."""
    policy = layer.dtype_policy
    name = str(getattr(policy, "default_policy", policy).name)
    return "float32" if name in MIXED else name
