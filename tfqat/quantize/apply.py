"""Float model + placement -> quantized model, and back: the three functions that hide TFMOT from the rest of tfqat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize import quantize_annotate_layer, quantize_apply
from tensorflow_model_optimization.python.core.quantization.keras.quantize_annotate import QuantizeAnnotate

from tfqat.errors import ModelError, PlacementError
from tfqat.models import graph as model_graph
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.planner import plan
from tfqat.quantize import state
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig
from tfqat.quantize.fed_weight import FedWeight
from tfqat.quantize.quantizers import ActivationQuantizer
from tfqat.quantize.scheme import TensorRTScheme
from tfqat.quantize.wrapper import QuantizeWrapper
from tfqat.recipe.schema import QuantizationConfig


def quantize_model(model: Any, quantization: str | Mapping[str, Any] | QuantizationConfig | Placement = "selective") -> Any:
    """A model with fake quantizers where the placement says.

    Until `tfqat.calibrate` has given its quantizers their ranges they pass values on, so the new model computes what `model` computes.

    Args:
        model: a flat functional tf_keras model, or a Sequential; it is not changed.
        quantization: a preset, the `quantization` block of a recipe, or a Placement from `tfqat.plan`.

    Returns:
        A tf_keras.Model with the inputs, outputs and weights of `model`.

    Raises:
        PlacementError: the placement names a layer that the model does not have.
        ModelError: the model cannot be read (see `tfqat.load_model`), or computes in another type than float32.
    """
    model_graph.check_float32(model)
    placement = quantization if isinstance(quantization, Placement) else plan(model, quantization)
    _check_fits(model, placement)
    weights = {point.source: point for point in placement.weights}
    inputs = {edge.layer for point in placement.activations for edge in point.edges}

    def annotate(layer: Any) -> Any:
        copy = model_graph.clone_layer(layer)
        if layer.name in weights:
            point = weights[layer.name]
            return quantize_annotate_layer(copy, WeightedQuantizeConfig(weights=point.spec, reason=point.reason))
        return quantize_annotate_layer(copy, InputQuantizeConfig()) if layer.name in inputs else copy

    annotated = model_graph.rebuild(model, replace=annotate)
    _copy_into_annotated(model, annotated)
    return quantize_apply(annotated, scheme=TensorRTScheme(placement))


def strip(qmodel: Any, like: Any = None) -> Any:
    """The float model of a quantized one, with its (fine-tuned) weights and without quantizers.

    Args:
        qmodel: a quantized model; it is not changed.
        like: a tf_keras model of the same layers; the result is then a copy of it with these weights. None rebuilds the model.

    Raises:
        ModelError: `like` lacks a layer, or has one of another shape.
    """

    stripped = _unwrapped(qmodel) if like is None else model_graph.clone(like)
    _set_all_weights(stripped, qmodel)
    return stripped


def with_fed_weights(qmodel: Any, replace_quantizer: Callable[[QPoint], Any]) -> tuple[Any, dict[str, str]]:
    """The float model of a quantized one, reading each quantized weight from an input of its own: what export converts.

    A converter cannot fold, merge or scale a weight that it does not know, and the input's name says whose weight it is.

    Args:
        qmodel: a calibrated quantized model.
        replace_quantizer: activation point -> the layer that takes the place of its quantizer.

    Returns:
        The model, whose further inputs follow its own, and weight point id -> the name of its input.
    """
    weights = [handle for handle in state.handles(qmodel).values() if handle.weight is not None]
    fed = {
        handle.point.source: (handle.point, tf_keras.Input(batch_shape=handle.weight.shape, name=f"tfqat_weight_{number}"))
        for number, handle in enumerate(weights)
    }

    def replace(layer: Any) -> Any:
        if isinstance(layer, ActivationQuantizer):
            return replace_quantizer(layer.point)
        inner = model_graph.clone_layer(_inner(layer))
        if inner.name not in fed:
            return inner
        point, weight = fed[inner.name]
        return lambda tensor, **_: FedWeight(inner, str(point.weight))([tensor, weight])

    model = model_graph.rebuild(qmodel, replace=replace, extra_inputs=[weight for _, weight in fed.values()])
    _set_all_weights(model, qmodel)
    return model, {point.id: weight.name for point, weight in fed.values()}


def placement_of(qmodel: Any) -> Placement:
    """The points of a quantized model, read back from its layers; the reasons of layers left float are not kept there."""
    points: list[QPoint] = []
    for layer in qmodel.layers:
        if isinstance(layer, ActivationQuantizer):
            points.append(layer.point)
        elif isinstance(layer, QuantizeWrapper):
            points += [quantizer.point for quantizer, _, _ in layer.quantized_weights()]
    if not points:
        raise PlacementError(f"model {qmodel.name!r} has no quantizers: make it with tfqat.quantize_model")
    return Placement(preset="as built", points=tuple(points), float_layers=())


def _unwrapped(qmodel: Any) -> Any:
    def unwrap(layer: Any) -> Any:
        return (lambda tensor, **_: tensor) if isinstance(layer, ActivationQuantizer) else model_graph.clone_layer(_inner(layer))

    return model_graph.rebuild(qmodel, replace=unwrap)


def _set_all_weights(model: Any, qmodel: Any) -> None:
    trained = {layer.name: layer for layer in map(_inner, qmodel.layers) if layer.weights}
    for layer in model.layers:
        if layer.weights:
            _set_weights(layer, trained)


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def _set_weights(layer: Any, trained: Mapping[str, Any]) -> None:
    if layer.name not in trained:
        raise ModelError(
            f"layer {layer.name!r} of the model given as `like` is not in the quantized model; give the model it was made from"
        )
    try:
        layer.set_weights(trained[layer.name].get_weights())
    except ValueError as error:
        raise ModelError(f"layer {layer.name!r} has other weights in the quantized model: {error}") from error


def _copy_into_annotated(model: Any, annotated: Any) -> None:
    for layer in annotated.layers:
        inner = layer.layer if isinstance(layer, QuantizeAnnotate) else layer
        if inner.weights:
            inner.set_weights(model.get_layer(inner.name).get_weights())


def _check_fits(model: Any, placement: Placement) -> None:
    known = {node.name for node in model_graph.read(model).nodes}  # a Sequential does not list its input layer
    wanted = {edge.layer for point in placement.activations for edge in point.edges} | {point.source for point in placement.points}
    missing = sorted(wanted - known)
    if missing:
        raise PlacementError(
            f"the placement names layers that model {model.name!r} does not have: {', '.join(missing)}; plan it again for this model"
        )
