"""The TFMOT QuantizeScheme for TensorRT: puts an ActivationQuantizer on every edge of a placement and wraps the layers with weights."""

from __future__ import annotations

from typing import Any

from tensorflow_model_optimization.python.core.quantization.keras.quantize_layout_transform import QuantizeLayoutTransform
from tensorflow_model_optimization.python.core.quantization.keras.quantize_registry import QuantizeRegistry
from tensorflow_model_optimization.python.core.quantization.keras.quantize_scheme import QuantizeScheme

from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, TensorRef
from tfqat.placement import rules
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.reads import Read, by_tensor, edges_of, point_id
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig, default_config
from tfqat.quantize.quantizers import ActivationQuantizer
from tfqat.quantize.wrapper import QuantizeWrapper


class TensorRTScheme(QuantizeScheme):  # type: ignore[misc]
    """Q/DQ where TensorRT wants them: `quantize_apply(annotated_model, scheme=tfqat.TensorRTScheme())`.

    Args:
        placement: which tensors are quantized; None takes it from the QuantizeConfigs that the layers are annotated with.
    """

    def __init__(self, placement: Placement | None = None) -> None:
        self.placement = placement

    def get_layout_transformer(self) -> QuantizeLayoutTransform:
        """The transform that inserts the quantizers."""
        return TensorRTLayoutTransform(self.placement)

    def get_quantize_registry(self) -> QuantizeRegistry:
        """A registry that adds nothing to what is annotated."""
        return AnnotatedOnlyRegistry()


class AnnotatedOnlyRegistry(QuantizeRegistry):  # type: ignore[misc]
    """Supports no layer of itself.

    TFMOT asks it only for layers that are not annotated but precede one that is, to quantize their outputs; that would
    put Q/DQ between a convolution and what it fuses with.
    """

    def supports(self, layer: Any) -> bool:
        """False."""
        return False

    def get_quantize_config(self, layer: Any) -> InputQuantizeConfig:
        """The config of a layer by itself; not asked for, because `supports` is false."""
        return WeightedQuantizeConfig() if type(layer).__name__ in rules.WEIGHTS else InputQuantizeConfig()


class TensorRTLayoutTransform(QuantizeLayoutTransform):  # type: ignore[misc]
    """Rewrites an annotated model: quantizers on the edges of the placement, wrappers around the layers with quantized weights."""

    def __init__(self, placement: Placement | None) -> None:
        self.placement = placement

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """TFMOT's hook.

        Args:
            model: the model without annotations; TFMOT's own copy.
            layer_quantize_map: layer name -> {"quantize_config": config or None}.

        Returns:
            The rewritten model, and the annotations that are not tfqat's, for TFMOT to apply.

        Raises:
            ModelError: the model computes in another type than float32.
        """
        model_graph.check_float32(model)
        graph = model_graph.read(model)
        configs, foreign = _sort_configs(graph, layer_quantize_map)
        placed = self.placement.activations if self.placement else annotated_points(graph, configs)
        on_edges = {(edge.layer, edge.index): quantizer for quantizer, point in _quantizers(placed) for edge in point.edges}

        def wrap(layer: Any) -> Any:
            copy = model_graph.clone_layer(layer)
            config = configs.get(layer.name)
            return QuantizeWrapper(copy, config) if isinstance(config, WeightedQuantizeConfig) else copy

        quantized = model_graph.rebuild(model, replace=wrap, on_edges=on_edges)
        copy_into_wrapped(model, quantized)
        return quantized, foreign


def annotated_points(graph: ModelGraph, configs: dict[str, InputQuantizeConfig]) -> tuple[QPoint, ...]:
    """The activation points that annotations ask for: one per tensor, with the grid of the first layer that reads it."""
    reads = [
        Read.of(node, index, configs[node.name].inputs, configs[node.name].reason)
        for node in graph.nodes
        if node.name in configs
        for index in configs[node.name].inputs
    ]
    return tuple(_annotated_point(tensor, found, configs[found[0].node.name]) for tensor, found in by_tensor(graph, reads).items())


def _annotated_point(tensor: TensorRef, reads: tuple[Read, ...], config: InputQuantizeConfig) -> QPoint:
    return QPoint(
        id=point_id(tensor, reads),
        kind="activation",
        source=tensor.layer,
        output=tensor.index,
        spec=config.activations,
        calibrator=config.calibrator,
        edges=edges_of(reads),
        reason="; ".join(dict.fromkeys(read.reason for read in reads)),
    )


def copy_into_wrapped(source: Any, quantized: Any) -> None:
    """Set the weights of a quantized model's layers from the float model of the same layers."""
    for layer in quantized.layers:
        inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
        if inner.weights and not isinstance(inner, ActivationQuantizer):
            inner.set_weights(source.get_layer(inner.name).get_weights())


def _sort_configs(graph: ModelGraph, layer_quantize_map: dict[str, Any]) -> tuple[dict[str, InputQuantizeConfig], dict[str, Any]]:
    annotated = {name: entry for name, entry in layer_quantize_map.items() if entry}  # TFMOT lists input layers with an empty entry.
    foreign = {
        name: entry
        for name, entry in annotated.items()
        if entry["quantize_config"] is not None and not isinstance(entry["quantize_config"], InputQuantizeConfig)
    }
    others = {node.name: "not annotated for tfqat" for node in graph.nodes if node.name not in annotated or node.name in foreign}
    view = rules.View(graph=graph, skipped=others)
    ours = {
        name: entry["quantize_config"] or default_config(view, graph.node(name)) for name, entry in annotated.items() if name not in foreign
    }
    return {name: config for name, config in ours.items() if config is not None}, foreign


def _quantizers(points: tuple[QPoint, ...]) -> list[tuple[ActivationQuantizer, QPoint]]:
    return [(ActivationQuantizer(point), point) for point in points]
