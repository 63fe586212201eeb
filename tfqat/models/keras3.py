"""Makes flat functional tf_keras models of Keras 3 models, layer by layer with weights (checked on Keras 3.15.1).

Keras 3 is imported when a model is converted or loaded, not before; the user's model is only read.

    keras.Model:      conv -> backbone(_stem -> act) -> x * 2
    tf_keras.Model:   conv -> backbone/._stem -> backbone/act -> multiply (a Rescaling)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import ModelError
from tfqat.models import keras3_config, keras3_graph, keras3_ops
from tfqat.models.depth import functional_model
from tfqat.models.dtypes import float32_policy
from tfqat.models.keras3_calls import replaced
from tfqat.models.keras3_graph import Call
from tfqat.models.keras3_layers import Keras3Layer, KerasOperation
from tfqat.models.keras3_live import Description
from tfqat.models.keras3_weights import copy_weights
from tfqat.models.layers import MatMul
from tfqat.models.names import legal_name

is_keras3 = keras3_graph.is_keras3


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A flat functional tf_keras model, and where its weights came from.

    `origins` gives, for the name of each layer with weights, the variables of the Keras 3 model in the order of `layer.weights`.
    """

    model: Any
    origins: Mapping[str, tuple[Any, ...]]


@float32_policy()
def convert(model: Any) -> Converted:
    """The tf_keras model that computes what a Keras 3 model computes, with its weights.

    Args:
        model: functional, or Sequential with an input shape. Nested models at any depth are flattened, the names of their layers are paths
            (`backbone/stem`); a layer that is called twice stays one layer.

    Raises:
        ModelError: a subclassed or unbuilt model; a model with layers that only Keras 3 can compute, while its backend is not TensorFlow.
    """
    function = keras3_graph.functional(model)
    conversion = _Conversion()
    inputs = [_new_input(tensor) for tensor in function._inputs]
    outputs = conversion.run(function, inputs, prefix="", training=None)
    tree = import_module("keras").tree
    structured = (tree.pack_sequence_as(function._inputs_struct, inputs), tree.pack_sequence_as(function._outputs_struct, outputs))
    return Converted(model=functional_model(*structured, name=legal_name(model.name)), origins=conversion.origins)


def load_file(path: Path, custom_objects: Mapping[str, Any] | None = None, *, unsafe: bool = False) -> Any:
    """The Keras 3 model of a `.keras` or `.h5` file.

    Args:
        path: the file.
        custom_objects: Keras's mapping from names to the classes of custom layers.
        unsafe: also load Lambda layers, whose byte code can do anything.

    Raises:
        ModelError: the file cannot be loaded by the installed Keras 3.
    """
    keras = import_module("keras")
    try:
        return keras.models.load_model(path, custom_objects=dict(custom_objects or {}), compile=False, safe_mode=not unsafe)
    except Exception as error:  # Keras raises dozens of types for a bad file; each means the same to the user.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        advice = _advice(str(error), hdf5=path.suffix != ".keras")
        raise ModelError(f"model file {path} cannot be loaded by Keras {keras.__version__}: {lines[0][:300]}{advice}") from error


def _advice(text: str, *, hdf5: bool) -> str:
    if "safe_mode=False" in text:
        return ". The file holds Python byte code: if you trust its source, load it with unsafe=True (--unsafe)"
    if "Unknown layer" in text and hdf5:  # Keras 3.15 writes operations such as keras.ops.relu to .h5 files, but cannot read them
        return ". Give the classes of custom layers as custom_objects; operations (keras.ops) can only be read from a .keras file: save one"
    if "Could not locate" in text or "Unknown layer" in text or "register_keras_serializable" in text:
        return ". Give the classes of custom layers as custom_objects"
    if "passed as positional arguments" in text:  # Keras 3.15 writes `x * 2` to .h5 files, but cannot read it
        return ". Keras cannot read operations such as x * 2 from this kind of file: save the model as .keras"
    return ""


def _check_backend(operation: Any, name: str) -> None:
    """ModelError if Keras 3 cannot compute a layer or an operation inside a tf_keras model."""
    backend = import_module("keras").backend.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"layer {name!r} ({type(operation).__module__}.{type(operation).__name__}) has no counterpart in tf_keras, and Keras 3 "
            f"computes it with its backend {backend!r}; expected 'tensorflow': set KERAS_BACKEND=tensorflow in the environment"
        )


def _new_input(tensor: Any) -> Any:
    name = legal_name(tensor._keras_history.operation.name)
    return tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype, sparse=bool(tensor.sparse), name=name)


def _full(dtype: str) -> str:
    """What an operation between layers computes in; in a model of mixed precision those are 16 bits, but it is taken in float32."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


class _Conversion:
    """Walks a graph and the graphs inside it; keeps the tf_keras layer of each Keras 3 layer, so that shared layers stay shared."""

    def __init__(self) -> None:
        self.origins: dict[str, tuple[Any, ...]] = {}
        self._layers: dict[int, keras3_config.Equivalent] = {}
        self._operations: dict[tuple[int, bool], Any] = {}
        self._names: set[str] = set()

    def run(self, function: Any, inputs: Sequence[Any], *, prefix: str, training: bool | None) -> list[Any]:
        """Call the layers of `function` on tf_keras tensors.

        Args:
            function: a keras.Function.
            inputs: one tensor for each of its inputs, flat.
            prefix: path of the model, with a slash at its end.
            training: what the model was called with on purpose.

        Returns:
            Its outputs, flat.
        """
        made = {id(tensor): value for tensor, value in zip(function._inputs, inputs, strict=True)}
        for call in keras3_graph.calls(function):
            outputs = self._call(call, made, prefix, training)
            made.update({id(tensor): value for tensor, value in zip(call.node.outputs, outputs, strict=True)})
        return [made[id(tensor)] for tensor in function._outputs]

    def _call(self, call: Call, made: Mapping[int, Any], prefix: str, training: bool | None) -> list[Any]:
        operation, path = call.operation, f"{prefix}{call.operation.name}"
        training = training if call.training is None else call.training
        args, kwargs = replaced((call.args, dict(call.kwargs)), lambda value: made.get(id(value), value))
        function = keras3_graph.graph_of(operation)
        if function is not None:
            return self.run(function, self._flat_inputs(function, args[0], path), prefix=f"{path}/", training=training)
        if not isinstance(operation, import_module("keras").layers.Layer):
            return self._operate(call, [made[id(tensor)] for tensor in call.tensors], path)
        return self._apply(operation, path, args, kwargs, training)

    def _apply(self, source: Any, path: str, args: Any, kwargs: Any, training: bool | None) -> list[Any]:
        """Call the counterpart of a Keras 3 layer; the first call makes it."""
        is_new = id(source) not in self._layers
        if is_new:
            self._layers[id(source)] = self._counterpart(source, path, kwargs)
        target, activation = self._layers[id(source)].layer, self._layers[id(source)].activation
        if training is not None and target._call_spec.expects_training_arg:
            kwargs = {**kwargs, "training": training}
        outputs = target(*args, **dict(sorted(kwargs.items())))  # in the order in which tf.nest flattens them
        if is_new:
            self._take_weights(source, target)
        if activation is None:
            return tf.nest.flatten(outputs)
        parent = path.rpartition("/")
        return self._apply(activation, f"{parent[0]}{parent[1]}{activation.name}", (outputs,), {}, training)

    def _counterpart(self, source: Any, path: str, kwargs: Mapping[str, Any]) -> keras3_config.Equivalent:
        name = self._free_name(path)
        found = keras3_config.equivalent(source, name)
        if found is not None and all(key in found.layer._call_spec.arg_names for key in kwargs):
            return found
        _check_backend(source, path)
        return keras3_config.Equivalent(layer=Keras3Layer(Description.of(source), name=name, dtype=keras3_config.dtype_of(source)))

    def _take_weights(self, source: Any, target: Any) -> None:
        variables = copy_weights(source, target)
        if variables:
            self.origins[target.name] = variables
        target.trainable = source.trainable

    def _operate(self, call: Call, tensors: list[Any], path: str) -> list[Any]:
        """Apply an operation; one that changes nothing leaves no layer."""
        if type(call.operation).__name__ == "Cast" and tensors[0].dtype == _full(call.node.outputs[0].dtype):
            return tensors
        # Operations do not pass masks on, most layers of tf_keras do.
        masked = any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors)
        key = (id(call.node), masked)
        if key not in self._operations:
            self._operations[key] = self._operation_layer(call, self._free_name(path), masked)
        return tf.nest.flatten(self._operations[key](tensors[0] if len(tensors) == 1 else tensors))

    def _operation_layer(self, call: Call, name: str, masked: bool) -> Any:
        path, output = keras3_graph.operation_path(call.operation), call.node.outputs[0]
        simple = keras3_ops.OperationCall(operation=call.operation, args=call.args, tensors=call.tensors, output=output)
        found = None if masked or any(value is not None for value in call.kwargs.values()) else keras3_ops.layer_for(simple)
        if found is not None:
            kind, settings = found
            return (MatMul if kind == "MatMul" else getattr(tf_keras.layers, kind))(**settings, name=name, dtype=_full(output.dtype))
        _check_backend(call.operation, name)
        settings, arguments = keras3_graph.encoded(call)
        dtype = _full(output.dtype) if "float" in output.dtype else "float32"
        return KerasOperation(operation=path, settings=settings, arguments=arguments, name=name, dtype=dtype)

    def _flat_inputs(self, function: Any, given: Any, path: str) -> list[Any]:
        """What a nested model is called with, as one tensor for each of its inputs."""
        if isinstance(given, Mapping) and not isinstance(function._inputs_struct, Mapping):
            given = [given[tensor.name] for tensor in function._inputs]
        flat = import_module("keras").tree.flatten(given)
        for tensor, expected in zip(flat, function._inputs, strict=True):
            if len(tensor.shape) != len(expected.shape):
                raise ModelError(
                    f"model {path!r} is called with a tensor of shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}: "
                    "reshape it in the outer model"
                )
        return [self._cast(tensor, _full(expected.dtype), path) for tensor, expected in zip(flat, function._inputs, strict=True)]

    def _cast(self, tensor: Any, dtype: str, path: str) -> Any:
        if tensor.dtype == dtype:
            return tensor
        arguments = {"args": [{"tensor": 0}], "kwargs": {}}
        name = self._free_name(f"{path}/cast")
        return KerasOperation("keras.src.ops.core.Cast", settings={"dtype": dtype}, arguments=arguments, name=name)(tensor)

    def _free_name(self, path: str) -> str:
        """A name that no layer has yet; an activation or an operation may stand in several places."""
        name, number = legal_name(path), 1
        while name in self._names:
            number += 1
            name = f"{legal_name(path)}_{number}"
        self._names.add(name)
        return name
