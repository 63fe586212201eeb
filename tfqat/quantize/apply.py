"""Float model + placement -> quantized model, and back: the three functions that hide TFMOT from the rest of tfqat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from tfqat.errors import ModelError, PlacementError
from tfqat.models import graph as model_graph
from tfqat.models.layers import ChannelReLU
from tfqat.models.load import canonical, copy_of, with_origins
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.planner import plan
from tfqat.placement.rules import Weight
from tfqat.quantize import state
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig
from tfqat.quantize.fed_weight import FedWeight
from tfqat.quantize.quantizers import ActivationQuantizer
from tfqat.quantize.scheme import insert_quantizers
from tfqat.quantize.wrapper import QuantizeWrapper
from tfqat.recipe.quantization import QuantizationConfig


def quantize_model(
    model: Any,
    quantization: str | Mapping[str, Any] | QuantizationConfig | Placement = "selective",
    *,
    configs: Mapping[str, InputQuantizeConfig] | None = None,
) -> Any:
    """A model with fake quantizers where the placement says.

    Until `tfqat.calibrate` has given its quantizers their ranges they pass values on, so the new model computes what `model` computes.
    It is what TFMOT's `quantize_apply` makes with a `TensorRTScheme` of the placement, without the copies that TFMOT makes on the way.

    Args:
        model: a functional or Sequential model of tf_keras or Keras 3; it is not changed.
        quantization: a preset, the `quantization` block of a recipe, or a Placement from `tfqat.plan`.
        configs: QuantizeConfigs of layer classes of your own, by class name, such as
            `{"MyConv": tfqat.WeightedQuantizeConfig(weight=tfqat.Weight(attribute="kernel", channel_axes=(3,)))}`.

    Returns:
        A tf_keras.Model with the inputs, outputs and weights of `model`, in its canonical form (see `tfqat.load_model`).

    Raises:
        PlacementError: the placement names a layer that the model does not have.
        ModelError: the model cannot be read (see `tfqat.load_model`), or computes in float16 or float64.
    """
    model = canonical(model)
    model_graph.check_float32(model)
    placement = quantization if isinstance(quantization, Placement) else plan(model, quantization, configs=configs)
    _check_fits(model, placement)
    weighted = {
        point.source: WeightedQuantizeConfig(
            weights=point.spec,
            weight=Weight(attribute=str(point.weight), channel_axes=point.spec.axes),
            weight_calibrator=point.calibrator,
            reason=point.reason,
        )
        for point in placement.weights
    }
    return insert_quantizers(model, weighted, placement.activations)


def strip(qmodel: Any, like: Any = None) -> Any:
    """The float model of a quantized one, with its (fine-tuned) weights and without quantizers.

    Args:
        qmodel: a quantized model; it is not changed.
        like: the model that the quantized one was made from, of tf_keras or Keras 3, nested or not; the result is then a copy of it with
            the weights of `qmodel`. None gives the canonical model.

    Raises:
        ModelError: `like` lacks a layer, or has one of another shape.
    """
    trained = {layer.name: layer for layer in map(_inner, qmodel.layers) if layer.weights}
    if like is None:
        stripped = _unwrapped(qmodel)
        for layer in stripped.layers:
            if layer.weights:
                _set_weights(layer, trained)
        return stripped
    copy = copy_of(like)
    _check_caps(qmodel, canonical(copy))
    for name, variables in with_origins(copy).origins.items():
        _assign(name, variables, trained)
    return copy


def with_fed_weights(
    qmodel: Any,
    replace_quantizer: Callable[[QPoint], Any],
    *,
    clone: Callable[..., Any] = model_graph.clone_layer,
    biases: Mapping[str, Any],
    dropped: Collection[str],
    kernels: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, str]]:
    """The float model of a quantized one, reading each quantized weight from an input of its own: what export converts.

    A converter cannot fold, merge or scale a weight that it does not know, and the input's name says whose weight it is.

    Args:
        qmodel: a calibrated quantized model.
        replace_quantizer: activation point -> the layer that takes the place of its quantizer.
        clone: makes the new layer of a layer, with changes to its configuration as keywords.
        biases: layer name -> the bias that the layer gets, in place of its own if it has one.
        dropped: names of layers to leave out, such as a BatchNorm that is folded into a weight and a bias.
        kernels: layer name -> the kernel that a float layer gets, in place of its own.

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
        if layer.name in dropped:
            return lambda tensor, **_: tensor
        inner = clone(_inner(layer), **({"use_bias": True} if layer.name in biases else {}))
        if inner.name not in fed:
            return inner
        point, weight = fed[inner.name]
        reading = FedWeight(inner, str(point.weight))
        return lambda tensor, **_: reading([tensor, weight])

    model = model_graph.rebuild(qmodel, replace=replace, extra_inputs=[weight for _, weight in fed.values()])
    trained = {layer.name: layer for layer in map(_inner, qmodel.layers) if layer.weights}
    for layer in model.layers:
        if layer.name in biases:
            kernel = (kernels or {}).get(layer.name, trained[layer.name].get_weights()[0])  # of Keras's own layers the kernel is the first
            layer.set_weights([kernel, biases[layer.name]])
        elif layer.weights:
            _set_weights(layer, trained)
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


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def _check_caps(qmodel: Any, like: Any) -> None:
    """Make sure that caps per channel, which equalization made of a ReLU6, are in the other model too: its weights go with them."""
    other = {layer.name: layer for layer in like.layers}
    for layer in qmodel.layers:
        if isinstance(layer, ChannelReLU) and not isinstance(other.get(layer.name), ChannelReLU):
            raise ModelError(
                f"layer {layer.name!r} of the quantized model has a cap for each channel, from equalization; that of `like` has one cap. "
                "Give the equalized model, or take the factors back first: strip(equalized.undo(strip(qmodel)), like=model)"
            )


def _assign(name: str, variables: Sequence[Any], trained: Mapping[str, Any]) -> None:
    """Set the variables that layer `name` of the canonical form took its weights from; a split layer holds them in another shape."""
    values = _layer(name, trained).get_weights()
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    if sizes != [value.size for value in values]:
        raise ModelError(
            f"layer {name!r} has other weights in the quantized model: {[value.shape for value in values]}, expected "
            f"{[tuple(variable.shape) for variable in variables]}"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value.reshape(tuple(variable.shape)))


def _layer(name: str, trained: Mapping[str, Any]) -> Any:
    if name not in trained:
        raise ModelError(f"layer {name!r} of the model given as `like` is not in the quantized model; give the model it was made from")
    return trained[name]


def _set_weights(layer: Any, trained: Mapping[str, Any]) -> None:
    try:
        model_graph.set_weights(layer, _layer(layer.name, trained).get_weights())
    except ValueError as error:
        raise ModelError(f"layer {layer.name!r} has other weights in the quantized model: {error}") from error


def _check_fits(model: Any, placement: Placement) -> None:
    nodes = model_graph.read(model).nodes  # a Sequential does not list its input layer
    known = {node.name for node in nodes} | {node.layer for node in nodes}
    wanted = {edge.layer for point in placement.activations for edge in point.edges} | {point.source for point in placement.points}
    missing = sorted(wanted - known)
    if missing:
        raise PlacementError(
            f"the placement names layers that model {model.name!r} does not have: {', '.join(missing)}; plan it again for this model"
        )
