"""The TFMOT QuantizeScheme for TensorRT: puts an ActivationQuantizer on every edge of a placement and wraps the layers with weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tensorflow_model_optimization.python.core.quantization.keras.quantize_layout_transform import QuantizeLayoutTransform
from tensorflow_model_optimization.python.core.quantization.keras.quantize_registry import QuantizeRegistry
from tensorflow_model_optimization.python.core.quantization.keras.quantize_scheme import QuantizeScheme

from tfqat.models import graph as model_graph
from tfqat.models.dtypes import float32_policy
from tfqat.models.graph import ModelGraph, TensorRef
from tfqat.placement import rules
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.reads import Read, by_tensor, edges_of, point_id
from tfqat.placement.rules import Decision, Quantize
from tfqat.placement.scale_groups import scale_groups
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig, default_config
from tfqat.quantize.quantizers import ActivationQuantizer, quantizers
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
        return insert_quantizers(model, configs, placed), foreign


@float32_policy()
def insert_quantizers(model: Any, configs: Mapping[str, InputQuantizeConfig], points: Iterable[QPoint]) -> Any:
    """A new model with a quantizer on the edges of each activation point, and a wrapper around each layer with a quantized weight.

    Args:
        model: a flat functional float model; it is not changed.
        configs: layer name -> config; those of layers with weights count here.
        points: the activation points.
    """
    on_edges = {
        (edge.layer, edge.index): quantizer for point in points for quantizer in [ActivationQuantizer(point)] for edge in point.edges
    }

    def wrap(layer: Any) -> Any:
        copy = model_graph.clone_layer(layer)
        config = configs.get(layer.name)
        return QuantizeWrapper(copy, config) if isinstance(config, WeightedQuantizeConfig) else copy

    with quantizers(on=False):  # Keras asks the layers for shapes only
        quantized = model_graph.rebuild(model, replace=wrap, on_edges=on_edges, keep_class=True)
    copy_into_wrapped(model, quantized)
    return quantized


def annotated_points(graph: ModelGraph, configs: dict[str, InputQuantizeConfig]) -> tuple[QPoint, ...]:
    """The activation points that annotations ask for: one per tensor, with the grid of the first layer that reads it."""
    decisions: dict[str, Decision] = {
        node.name: Quantize(
            inputs=configs[node.layer].inputs, reason=configs[node.layer].reason, one_scale=node.class_name == "Concatenate"
        )
        for node in graph.nodes
        if node.layer in configs
    }
    reads = [
        Read.of(graph.node(name), index, decision.inputs, decision.reason)
        for name, decision in decisions.items()
        if isinstance(decision, Quantize)
        for index in decision.inputs
    ]
    tensors = by_tensor(graph, reads)
    groups = scale_groups(graph, decisions, tensors)
    names = {tensor: point_id(tensor, found) for tensor, found in tensors.items()}
    group_names = {groups[tensor]: names[tensor] for tensor in reversed(tensors) if tensor in groups}  # the first of each group
    return tuple(
        _annotated_point(names[tensor], tensor, found, configs[found[0].node.layer], group_names.get(groups.get(tensor, -1)))
        for tensor, found in tensors.items()
    )


def _annotated_point(name: str, tensor: TensorRef, reads: tuple[Read, ...], config: InputQuantizeConfig, group: str | None) -> QPoint:
    return QPoint(
        id=name,
        kind="activation",
        source=tensor.layer,
        output=tensor.index,
        spec=config.activations,
        calibrator=config.calibrator,
        edges=edges_of(reads),
        reason="; ".join(dict.fromkeys(read.reason for read in reads)),
        scale_group=group,
    )


def copy_into_wrapped(source: Any, quantized: Any) -> None:
    """Set the weights of a quantized model's layers from the float model of the same layers."""
    given = {layer.name: layer for layer in source.layers}
    for layer in quantized.layers:
        inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
        if inner.weights and not isinstance(inner, ActivationQuantizer):
            model_graph.set_weights(inner, given[inner.name].get_weights())


def _sort_configs(graph: ModelGraph, layer_quantize_map: dict[str, Any]) -> tuple[dict[str, InputQuantizeConfig], dict[str, Any]]:
    annotated = {name: entry for name, entry in layer_quantize_map.items() if entry}  # TFMOT lists input layers with an empty entry.
    foreign = {
        name: entry
        for name, entry in annotated.items()
        if entry["quantize_config"] is not None and not isinstance(entry["quantize_config"], InputQuantizeConfig)
    }
    others = {node.name: "not annotated for tfqat" for node in graph.nodes if node.name not in annotated or node.name in foreign}
    view = rules.view(graph, skipped=others)
    ours = {
        name: entry["quantize_config"] or default_config(view, graph.node(name)) for name, entry in annotated.items() if name not in foreign
    }
    return {name: config for name, config in ours.items() if config is not None}, foreign
