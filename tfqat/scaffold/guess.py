"""What a model's file tells about its data and its loss: shapes and types exactly, the loss by the last activation, as a guess.

    last activation   units   labels                  loss
    softmax           n       class indices           SparseCategoricalCrossentropy
    none (linear)     n > 1   class indices           SparseCategoricalCrossentropy, from_logits: true
    sigmoid           any     0 or 1 per unit         BinaryCrossentropy
    none (linear)     1       numbers                 mean_squared_error
    any other         any     numbers                 mean_squared_error

The units are the last axis; the axes between it and the batch (pixels, tokens) have a label each. A recipe has one loss for every output,
so outputs that would want different ones get the mean squared error, which fits probabilities and numbers alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfqat.models import graph
from tfqat.scaffold.facts import Facts, Labels, Loss, Output, Port

_PASSING = ("Reshape", "Flatten", "Permute", "Dropout")
"""Layers behind the last activation that change no value."""

_BY_ACTIVATION: Mapping[str, Labels] = {"softmax": "classes", "sigmoid": "binary"}


def facts_of(model: Any) -> Facts:
    """The facts of a canonical model.

    Inputs and outputs have the names by which batches can address them: the keys of the model's own mapping, or its layers' names.
    """
    found = graph.read(model)
    input_names = sorted(model.input) if isinstance(model.input, dict) else list(model.input_names)
    tensors = [model.input[name] for name in input_names] if isinstance(model.input, dict) else model.inputs
    inputs = tuple(
        Port(name=name, shape=tuple(tensor.shape[1:]), dtype=tensor.dtype.name) for name, tensor in zip(input_names, tensors, strict=True)
    )
    output_names = sorted(model.output) if isinstance(model.output, dict) else list(model.output_names)
    outputs = tuple(_output(found, name, ref) for name, ref in zip(output_names, found.outputs, strict=True))
    if len({(output.labels, output.activation == "linear" and output.labels == "classes") for output in outputs}) > 1:
        outputs = tuple(replace(output, labels="numbers") for output in outputs)
    return Facts(inputs=inputs, outputs=outputs, loss=_loss(outputs))


def _output(found: graph.ModelGraph, name: str, ref: graph.TensorRef) -> Output:
    shape = found.shape(ref)[1:]
    activation = _last_activation(found, ref)
    labels = _BY_ACTIVATION.get(activation, "numbers")
    if activation == "linear" and shape and (shape[-1] or 0) > 1:
        labels = "classes"
    return Output(name=name, shape=shape, activation=activation, labels=labels if shape else "numbers")


def _last_activation(found: graph.ModelGraph, ref: graph.TensorRef) -> str:
    node = found.producer(ref)
    while node.class_name in _PASSING and node.inputs:
        node = found.producer(node.inputs[0])
    if node.class_name == "Softmax":
        return "softmax"
    activation = node.config.get("activation", "linear" if node.class_name != "ReLU" else "relu")
    return activation if isinstance(activation, str) else "of its own"


def _loss(outputs: tuple[Output, ...]) -> Loss:
    said = " and ".join(
        f"`{output.name}` has {output.units} unit{'' if output.units == 1 else 's'} and "
        f"{'no activation' if output.activation == 'linear' else f'the activation {output.activation}'}"
        for output in outputs
    )
    if all(output.labels == "binary" for output in outputs):
        return Loss(yaml="BinaryCrossentropy", metric="binary_accuracy", reason=f"{said}, so yes or no per unit; labels of 0 and 1.")
    if all(output.labels == "classes" for output in outputs):
        return _of_classes(outputs, said)
    mixed = len(outputs) > 1 and any(output.activation in ("softmax", "sigmoid") for output in outputs)
    why = "one loss serves every output of a recipe; one-hot labels for classes" if mixed else "so numbers (regression)"
    return Loss(yaml="mean_squared_error", metric="mean_absolute_error", reason=f"{said}, {why}.")


def _of_classes(outputs: tuple[Output, ...], said: str) -> Loss:
    if outputs[0].activation == "linear":
        return Loss(
            yaml="{name: SparseCategoricalCrossentropy, from_logits: true}",
            metric="accuracy",
            reason=f"{said}, so logits of classes, with whole numbers from 0 as labels. For regression: mean_squared_error.",
        )
    return Loss(
        yaml="SparseCategoricalCrossentropy",
        metric="accuracy",
        reason=f"{said}, so probabilities of classes, with whole numbers from 0 as labels.",
    )
