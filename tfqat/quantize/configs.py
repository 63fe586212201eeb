"""TFMOT QuantizeConfigs: what of a layer is quantized. `quantize_annotate_layer(layer, tfqat.WeightedQuantizeConfig())` uses them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_config import QuantizeConfig

from tfqat.errors import PlacementError
from tfqat.models.graph import Node
from tfqat.models.names import given_name
from tfqat.placement.plan import QPoint
from tfqat.placement.planner import weight_spec
from tfqat.placement.rules import WEIGHTS, Quantize, View, Weight
from tfqat.placement.rules.classes import TRANSPOSED
from tfqat.quantize.quantizers import PACKAGE, TensorQuantizer
from tfqat.spec import Calibrator, QuantSpec

_DEFAULT_CALIBRATOR = Calibrator(method="percentile")
_MAX = Calibrator()


@tf_keras.utils.register_keras_serializable(PACKAGE)
class InputQuantizeConfig(QuantizeConfig):  # type: ignore[misc]
    """Q/DQ on inputs of a layer without weights: the shortcut of an Add, the input of an average pooling.

    Args:
        activations: the grid of the inputs.
        inputs: which inputs are quantized.
        calibrator: how the ranges of the inputs are chosen.
        reason: why, for the placement table.
    """

    weight: Weight | None = None
    has_weight = False

    def __init__(
        self,
        *,
        activations: QuantSpec = QuantSpec(),  # noqa: B008 - frozen
        inputs: tuple[int, ...] = (0,),
        calibrator: Calibrator = _DEFAULT_CALIBRATOR,
        reason: str = "annotated",
    ) -> None:
        self.activations = activations
        self.inputs = tuple(inputs)
        self.calibrator = calibrator
        self.reason = reason

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, TensorQuantizer]]:
        """No weights."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """No weights."""

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """None: TensorRT wants Q/DQ on the inputs of a layer, not inside it."""
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """None to set."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """None: Q/DQ on an output would break the fusion with what follows."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Keras configuration."""
        return {
            "activations": self.activations.to_dict(),
            "inputs": list(self.inputs),
            "calibrator": asdict(self.calibrator),
            "reason": self.reason,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InputQuantizeConfig:
        """The inverse of `get_config`."""
        return cls(
            activations=QuantSpec.from_dict(config["activations"]),
            inputs=tuple(config["inputs"]),
            calibrator=Calibrator(**config["calibrator"]),
            reason=config["reason"],
        )


@tf_keras.utils.register_keras_serializable(PACKAGE)
class WeightedQuantizeConfig(InputQuantizeConfig):
    """Q/DQ on the input and the weight of a convolution, depthwise convolution or Dense layer, or of a class of your own.

    Args:
        weights: the grid of the weight; None is int8 with one scale per output channel, whatever the layer's class.
        weight: where a class of your own keeps its weight, such as `tfqat.Weight(attribute="kernel", channel_axes=(3,))`; None for
            Keras's classes. `call` has to read it as that attribute, and multiply by it once.
        activations: the grid of the input.
        inputs: (0,), or () to quantize the weight alone.
        calibrator: how the range of the input is chosen.
        weight_calibrator: how the ranges of the weight are chosen, `max` or `mse`.
        reason: why, for the placement table.
    """

    has_weight = True

    def __init__(
        self,
        *,
        weights: QuantSpec | None = None,
        weight: Weight | None = None,
        activations: QuantSpec = QuantSpec(),  # noqa: B008 - frozen
        inputs: tuple[int, ...] = (0,),
        calibrator: Calibrator = _DEFAULT_CALIBRATOR,
        weight_calibrator: Calibrator = _MAX,
        reason: str = "annotated",
    ) -> None:
        super().__init__(activations=activations, inputs=inputs, calibrator=calibrator, reason=reason)
        self.weights = weights
        self.weight = weight
        self.weight_calibrator = weight_calibrator

    def weight_point(self, layer: Any) -> QPoint:
        """The QPoint of the layer's weight.

        Raises:
            PlacementError: the layer's class has no weight that tfqat quantizes.
        """
        weight = self._weight_of(layer)
        return QPoint(
            id=f"{given_name(layer.name)}/{weight.attribute}",
            kind="weight",
            source=layer.name,
            weight=weight.attribute,
            spec=self.weights or weight_spec(weight),
            calibrator=self.weight_calibrator,
            reason=self.reason,
        )

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, TensorQuantizer]]:
        """The kernel of the layer and its quantizer."""
        point = self.weight_point(layer)
        variables = {name: value for name, value in vars(layer).items() if isinstance(value, tf.Variable)}
        if point.weight not in variables:
            raise PlacementError(
                f"layer {layer.name!r} ({type(layer).__name__}) has no variable {point.weight!r} to quantize; it has "
                f"{', '.join(variables) or 'none'}"
            )
        return [(variables[point.weight], TensorQuantizer(point))]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Let the layer compute with these weights.

        Written past Keras's `__setattr__`, which would untrack the variable (TFMOT 0.8.1 loses it, so its models do not reload).
        """
        vars(layer)[self._weight_of(layer).attribute] = quantize_weights[0]

    def get_config(self) -> dict[str, Any]:
        """Keras configuration."""
        weights = self.weights.to_dict() if self.weights else None
        return {
            **super().get_config(),
            "weights": weights,
            "weight": asdict(self.weight) if self.weight else None,
            "weight_calibrator": asdict(self.weight_calibrator),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedQuantizeConfig:
        """The inverse of `get_config`."""
        base = InputQuantizeConfig.from_config(config)
        return cls(
            weights=QuantSpec.from_dict(config["weights"]) if config["weights"] else None,
            weight=_weight_from_dict(config["weight"]) if config["weight"] else None,
            activations=base.activations,
            inputs=base.inputs,
            calibrator=base.calibrator,
            weight_calibrator=Calibrator(**config.get("weight_calibrator", {})),
            reason=base.reason,
        )

    def _weight_of(self, layer: Any) -> Weight:
        known = {**WEIGHTS, **TRANSPOSED}
        class_name = type(layer).__name__
        weight = self.weight or known.get(class_name)
        if weight is None:
            raise PlacementError(
                f"layer {layer.name!r} ({class_name}) has no weight that can be quantized: use it on {', '.join(sorted(known))}, or say "
                "where the class keeps its weight: WeightedQuantizeConfig(weight=tfqat.Weight(attribute=..., channel_axes=...))"
            )
        return weight


def _weight_from_dict(data: dict[str, Any]) -> Weight:
    return Weight(attribute=data["attribute"], channel_axes=tuple(data["channel_axes"]))


def default_config(view: View, node: Node) -> InputQuantizeConfig | None:
    """The config of a layer that is annotated without one: what the view's rules say; None where they keep it float."""
    decision = view.decide(node)
    if not isinstance(decision, Quantize):
        return None
    if decision.weight is None:
        return InputQuantizeConfig(inputs=decision.inputs, reason=decision.reason)
    return WeightedQuantizeConfig(weight=decision.weight, inputs=decision.inputs, reason=decision.reason)
