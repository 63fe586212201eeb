"""The canonical form of a model: one flat functional tf_keras model whose operations are layers.

    before   backbone(x), a model; x + y, tf.nn.relu(x); SeparableConv2D "s"
    after    backbone/conv1, backbone/bn1, ...; Add, ReLU; DepthwiseConv2D "s/depthwise" -> Conv2D "s/pointwise"

Reads private attributes of tf_keras (the nodes of a functional model, `_keras_history`), checked on tf-keras 2.21.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from tfqat.errors import ModelError
from tfqat.models.depth import functional_model
from tfqat.models.dtypes import float32_policy, is_mixed, without_mixed
from tfqat.models.nested import Names, calls, check_functional, key, made_again
from tfqat.models.operations import layer_for, written_out
from tfqat.models.split import Split, split
from tfqat.models.steps import Step, is_symbolic


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A canonical model and where its weights came from.

    Attributes:
        model: a flat functional tf_keras.Model.
        origins: name of each of its layers with weights -> the source model's variables, in the order of `layer.weights`. A variable
            may have another shape than the weight, with the same elements in C order.
    """

    model: Any
    origins: Mapping[str, tuple[Any, ...]]


@float32_policy()
def canonicalize(model: Any) -> Canonical:
    """The canonical form of a functional or Sequential tf_keras model.

    Layers of nested models are called `<nested model>/<layer>`. A layer or a nested model that is called several times stays one layer
    object for each of its layers, called several times. Names of the model and of its outputs are kept, but an output that is a
    nested model is called after its inner layer, `<nested model>/<layer>`. A layer made from an operation is called after it,
    `tf.__operators__.add_3` -> `add_3`. What has no equivalent stays as it is. Layers of mixed precision compute in float32.

    Args:
        model: it is not changed, and shares no variable with the result.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or unbuilt; or a layer cannot be made again from its configuration.
    """
    check_functional(model, "model")
    return _Canonicalizer(model).run()


def is_canonical(model: Any) -> bool:
    """Whether `canonicalize` would only copy `model`: it is flat and functional and nothing in it would be rewritten."""
    if isinstance(model, tf_keras.Sequential) or not getattr(model, "_is_graph_network", False):
        return False
    return not any(_changes(call.layer, call.call_args, call.call_kwargs) for call in calls(model))


def _changes(layer: Any, arguments: Any, keywords: Mapping[str, Any]) -> bool:
    if isinstance(layer, tf_keras.Model) or is_mixed(layer) or _rewrite(layer, arguments, keywords) is not None:
        return True
    return written_out(layer, arguments) is not arguments


def _rewrite(layer: Any, arguments: Any, keywords: Mapping[str, Any]) -> Split | None:
    if isinstance(layer, tf_keras.layers.InputLayer):
        return None
    step = layer_for(layer, arguments, keywords)
    return Split(steps=(step,), outputs=step.part) if step is not None else split(layer, arguments, keywords)


class _Canonicalizer:
    """One run of `canonicalize`: the layers made so far, their names and the variables that their weights come from."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._names = Names(model)
        self._made: dict[Any, Any] = {}
        self._origins: dict[str, tuple[Any, ...]] = {}
        self._casts: list[Any] = []  # kept alive: `_made` knows layers by id

    def run(self) -> Canonical:
        source = self._model
        with tf_keras.utils.custom_object_scope(_own_classes(source)):
            inputs = {key(tensor): _input_like(tensor) for tensor in source.inputs}
            outputs = self._expand(source, "", list(inputs.values()), None)
        nested_inputs = tf.nest.map_structure(lambda tensor: inputs[key(tensor)], source._nested_inputs)
        model = functional_model(nested_inputs, outputs, name=source.name)
        origins = {layer.name: self._origins[layer.name] for layer in model.layers if layer.weights}
        _copy_weights(model, origins)
        return Canonical(model=model, origins=origins)

    def _expand(self, model: Any, prefix: str, inputs: list[Any], training: Any) -> Any:
        """Call the layers of `model` on `inputs`; its outputs."""
        made = {key(old): self._conform(new, old, prefix) for old, new in zip(model.inputs, inputs, strict=True)}
        for call in calls(model):
            if isinstance(call.layer, tf_keras.layers.InputLayer):
                continue
            arguments, keywords = tf.nest.map_structure(
                lambda value: made[key(value)] if is_symbolic(value) else _constant(value), (tuple(call.call_args), dict(call.call_kwargs))
            )
            outputs = self._call(call.layer, prefix, arguments, keywords, training)
            made.update({key(old): new for old, new in zip(tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True)})
        return tf.nest.map_structure(lambda tensor: made[key(tensor)], model._nested_outputs)

    def _conform(self, tensor: Any, expected: Any, prefix: str) -> Any:
        """What a nested model does to its inputs: add or drop a last axis of size 1, and cast."""
        surplus = tensor.shape.rank - expected.shape.rank
        if surplus == 1 and tensor.shape[-1] == 1:
            tensor = self._operation("squeeze", prefix, tensor, axis=-1)
        elif surplus == -1 and expected.shape[-1] == 1:
            tensor = self._operation("expand_dims", prefix, tensor, axis=-1)
        return tensor if tensor.dtype == expected.dtype else self._operation("cast", prefix, tensor, dtype=expected.dtype)

    def _operation(self, name: str, prefix: str, tensor: Any, **keywords: Any) -> Any:
        layer = TFOpLambda(getattr(tf, name), name=f"tf.{name}")
        self._casts.append(layer)
        return self._call(layer, prefix, (tensor,), keywords, None)

    def _call(self, layer: Any, prefix: str, arguments: Any, keywords: dict[str, Any], training: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return self._call_model(layer, prefix, arguments, keywords, training)
        passed = layer._call_spec.arg_was_passed("training", arguments, keywords, inputs_in_args=True)
        if training is not None and layer._expects_training_arg and not passed:
            keywords = {**keywords, "training": training}
        rewrite = _rewrite(layer, arguments, keywords)
        if rewrite is not None:
            return self._call_parts(layer, prefix, rewrite)
        copy = self._once((id(layer),), lambda: _copy_layer(layer, self._names.of(layer, prefix)), tuple(layer.weights))
        return _built_with_zeros(copy, written_out(layer, arguments), keywords)

    def _call_model(self, model: Any, prefix: str, arguments: Any, keywords: dict[str, Any], training: Any) -> Any:
        call = dict(zip(("inputs", "training", "mask"), arguments, strict=False)) | keywords
        if call.get("mask") is not None or set(call) - {"inputs", "training", "mask"}:
            others = ", ".join(sorted(set(call) - {"inputs", "training"}))
            raise ModelError(
                f"nested model {prefix + model.name!r} is called with {others}; expected its inputs and training only: give a mask to the "
                "layers that use it"
            )
        own = call.get("training")
        inputs = model._flatten_to_reference_inputs(call["inputs"])
        return self._expand(model, f"{prefix}{model.name}/", inputs, training if own is None else own)

    def _call_parts(self, layer: Any, prefix: str, rewrite: Split) -> Any:
        tensors: dict[str, Any] = {}
        for step in rewrite.steps:
            last = step is rewrite.steps[-1]
            make = partial(self._make_part, layer, prefix, step, last)
            part = self._once((id(layer), step.part, step.layer_class, repr(step.config)), make, step.weights)
            reads, keywords = tf.nest.map_structure(
                lambda value: tensors[value] if isinstance(value, str) else value, (step.reads, dict(step.keywords))
            )
            tensors[step.part] = _built_with_zeros(part, (reads,), keywords)
        return tf.nest.map_structure(lambda part: tensors[part], rewrite.outputs)

    def _make_part(self, layer: Any, prefix: str, step: Step, last: bool) -> Any:
        return step.layer_class(**without_mixed(step.config), name=self._names.of_part(layer, prefix, step, last=last))

    def _once(self, key: Any, make: Callable[[], Any], weights: tuple[Any, ...]) -> Any:
        if key not in self._made:
            layer = self._made[key] = make()
            self._origins[layer.name] = weights
        return self._made[key]


def _input_like(tensor: Any) -> Any:
    return tf_keras.layers.InputLayer.from_config(tensor._keras_history.layer.get_config()).output


def _constant(value: Any) -> Any:
    """An argument that is no symbolic tensor. A variable is given by value: Keras does not track it, and models share none."""
    return tf.convert_to_tensor(value) if isinstance(value, tf.Variable) else value


def _copy_layer(layer: Any, name: str) -> Any:
    """A new layer like `layer` without its weights.

    Raises:
        ModelError: the class of the layer has no, or no complete, `get_config`, or is one of TFMOT.
    """
    if isinstance(layer, TFOpLambda):
        return type(layer)(layer.function, name=name)
    if type(layer) is tf_keras.layers.Lambda:  # its configuration holds byte code, which lost the names around the function
        options = {"output_shape": layer._output_shape, "mask": layer.mask, "arguments": dict(layer.arguments)}
        return tf_keras.layers.Lambda(layer.function, name=name, dtype=layer.dtype, trainable=layer.trainable, **options)
    with warnings.catch_warnings():  # keras.applications gives TensorFlow's initializers to a few layers
        warnings.filterwarnings("ignore", message="The `keras.initializers.serialize", category=UserWarning)
        return made_again(layer, lambda: {**without_mixed(layer.get_config()), "name": name})


def _own_classes(model: Any) -> dict[str, Any]:
    """The custom layer classes of a model by name, for wrappers such as TimeDistributed that make their inner layer by name."""
    classes = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    return {
        name: kind for name, kind in classes.items() if not kind.__module__.startswith("tf_keras.") and not hasattr(tf_keras.layers, name)
    }


def _built_with_zeros(layer: Any, arguments: Any, keywords: Mapping[str, Any]) -> Any:
    """The outputs of `layer` called on these arguments."""
    if layer.built:
        return layer(*arguments, **keywords)
    with _zero_initializers(layer):
        return layer(*arguments, **keywords)


@contextmanager
def _zero_initializers(layer: Any) -> Iterator[None]:
    """Build `layer` with zeros, which are set to the source's weights later; random values take most of the time otherwise."""
    attributes = vars(layer)
    kept = {name: value for name, value in attributes.items() if isinstance(value, tf_keras.initializers.Initializer)}
    attributes.update(dict.fromkeys(kept, tf_keras.initializers.Zeros()))
    try:
        yield
    finally:
        attributes.update(kept)


def _copy_weights(model: Any, origins: Mapping[str, tuple[Any, ...]]) -> None:
    for layer in model.layers:
        if not layer.weights:
            continue
        sources = origins[layer.name]
        pairs = zip(layer.weights, sources, strict=True)
        layer.set_weights([source.numpy().reshape(weight.shape) for weight, source in pairs])
        if isinstance(layer, tf_keras.layers.Normalization):
            layer.finalize_state()  # what it computes with is derived from its weights
