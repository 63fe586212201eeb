"""Plans the placement of a model: applies the preset's rules to every layer, then the recipe's skips, forces and overrides."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tfqat.errors import PlacementError
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.load import canonical
from tfqat.models.names import given_name
from tfqat.placement import patterns, rules
from tfqat.placement.patterns import Target, matching, names_of, names_of_reads, selected
from tfqat.placement.plan import FloatLayer, Placement, QPoint
from tfqat.placement.reads import Read, by_tensor, edges_of, point_id
from tfqat.placement.rules import Decision, KeepFloat, Quantize, View, Weight
from tfqat.placement.rules.classes import TRANSPOSED
from tfqat.placement.scale_groups import scale_groups
from tfqat.placement.signs import non_negative
from tfqat.recipe.load import quantization_config
from tfqat.recipe.quantization import QuantizationConfig
from tfqat.spec import MAX_BITS, Calibrator, PerChannel, PerTensor, QuantSpec

NARROW_BITS = 7
"""Of a weight that meets uint8 codes up to 255, where kernels add two products in 16 bits: 255 * 63 * 2 < 2 ** 15."""


class LayerConfig(Protocol):
    """What a QuantizeConfig says of a layer class of the user's own."""

    inputs: tuple[int, ...]
    weight: Weight | None
    has_weight: bool


Configs = Mapping[str, LayerConfig]
"""Layer class name -> its QuantizeConfig."""


def plan(
    model: Any, quantization: str | Mapping[str, Any] | QuantizationConfig = "selective", *, configs: Configs | None = None
) -> Placement:
    """The placement of a model.

    Args:
        model: a functional or Sequential model of tf_keras or Keras 3; the placement is that of its canonical form (`tfqat.load_model`).
        quantization: a preset (`naive`, `hybrid`, `selective`), the `quantization` block of a recipe as a mapping, or a QuantizationConfig.
        configs: QuantizeConfigs of layer classes of your own, by class name.

    Returns:
        Every quantization point in topological order, and every layer left float, each with its reason.

    Raises:
        NoMatchError: patterns that match no layer, or change nothing, all of them in one message.
        PlacementError: a `skip` with the preset `naive`, a `force` that cannot be obeyed, overrides that conflict, or no layer that can
            be quantized.
        ModelError: the model cannot be read.
    """
    return plan_graph(model_graph.read(canonical(model)), quantization_config(quantization), configs=configs)


def plan_graph(graph: ModelGraph, config: QuantizationConfig, *, configs: Configs | None = None) -> Placement:
    """`plan` for a model that has been read already."""
    skipped = {layer: _skip_reason(config, where) for layer, where in selected(graph, config.skip, "skip").items()}
    view = _view(graph, config, configs, skipped)
    patterns.check_choice(_view(graph, config, configs, {}, forced=False), config)
    planned = _Planned.of(view)
    without_skips = _decisions(_view(graph, config, configs, {})) if skipped else planned.decisions
    patterns.check_effect(view, without_skips, config, *planned.targets())
    points = (*planned.activation_points(config), *planned.weight_points(config))
    if not points:
        raise PlacementError(
            f"preset {config.preset!r} quantizes no layer of this model: it has none of {', '.join(sorted(rules.WEIGHTS))} left to quantize"
        )
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    return Placement(
        preset=config.preset,
        points=tuple(sorted(points, key=lambda point: (order[_anchor(point)], point.kind))),
        float_layers=tuple(
            FloatLayer(layer=name, class_name=graph.node(name).class_name, reason=decision.reason)
            for name, decision in planned.decisions.items()
            if isinstance(decision, KeepFloat)
        ),
    )


def weight_spec(weight: Weight, *, num_bits: int = 8, per_channel: bool = True) -> QuantSpec:
    """The grid of a weight: narrow range, one scale per output channel or one for all."""
    axes = weight.channel_axes
    return QuantSpec(num_bits=num_bits, granularity=PerChannel(axes=axes) if per_channel and axes else PerTensor(), narrow_range=True)


@dataclass(frozen=True)
class _Planned:
    """What the rules say of every node, and which tensors are read quantized by whom."""

    graph: ModelGraph
    decisions: Mapping[str, Decision]
    tensors: Mapping[TensorRef, tuple[Read, ...]]
    groups: Mapping[TensorRef, int]
    non_negative: Collection[TensorRef]

    @classmethod
    def of(cls, view: View) -> _Planned:
        decisions = _decisions(view)
        reads = [
            Read.of(node, index, decision.inputs, decision.reason)
            for node in view.graph.nodes
            if isinstance(decision := decisions.get(node.name), Quantize)
            for index in decision.inputs
        ]
        tensors = by_tensor(view.graph, reads)
        return cls(view.graph, decisions, tensors, scale_groups(view.graph, decisions, tensors), non_negative(view.graph))

    def targets(self) -> tuple[list[Target], list[Target]]:
        """Every weight, and every activation, with the names that overrides find it by."""
        return [self._weight_target(node) for node in self._weighted()], [self._target(tensor) for tensor in self.tensors]

    def activation_points(self, config: QuantizationConfig) -> list[QPoint]:
        """One point per tensor, whatever number of layers read its quantized form."""
        return [self._activation_point(tensor, reads, config) for tensor, reads in self.tensors.items()]

    def weight_points(self, config: QuantizationConfig) -> list[QPoint]:
        """One point per quantized weight, however often its layer is called."""
        return [self._weight_point(node, config) for node in self._weighted()]

    def _activation_point(self, tensor: TensorRef, reads: tuple[Read, ...], config: QuantizationConfig) -> QPoint:
        _, settings = config.resolve(matching(config, self._target(tensor)))
        return QPoint(
            id=point_id(tensor, reads),
            kind="activation",
            source=tensor.layer,
            output=tensor.index,
            spec=QuantSpec(num_bits=settings.num_bits),
            calibrator=Calibrator(method=settings.calibrator, percentile=settings.percentile),
            edges=edges_of(reads),
            reason="; ".join(dict.fromkeys(read.reason for read in reads)),
            scale_group=self._group_name(tensor),
            non_negative=tensor in self.non_negative,
        )

    def _weight_point(self, node: Node, config: QuantizationConfig) -> QPoint:
        weight = self._weight(node)
        settings, _ = config.resolve(matching(config, self._weight_target(node)))
        widest, reason = MAX_BITS, f"weight of {node.class_name}"
        if config.target == "onnxruntime" and self._reads_signed(node):
            widest = NARROW_BITS
            reason += f", which reads values of both signs: at most {widest} bits, so that no 16-bit sum saturates"
        return QPoint(
            id=f"{given_name(node.layer)}/{weight.attribute}",
            kind="weight",
            source=node.layer,
            weight=weight.attribute,
            spec=weight_spec(weight, num_bits=min(settings.num_bits, widest), per_channel=settings.granularity == "per_channel"),
            calibrator=Calibrator(method=settings.calibrator),
            reason=reason,
            max_bits=widest,
        )

    def _reads_signed(self, node: Node) -> bool:
        """Whether any call of the layer reads a tensor that may hold negative values."""
        return any(call.inputs[0] not in self.non_negative for call in self.graph.calls(node.layer))

    def _weighted(self) -> list[Node]:
        nodes = [node for node in self.graph.nodes if isinstance(found := self.decisions.get(node.name), Quantize) and found.weight]
        return list({node.layer: node for node in reversed(nodes)}.values())[::-1]  # the first call of each layer

    def _weight(self, node: Node) -> Weight:
        decision = self.decisions[node.name]
        assert isinstance(decision, Quantize) and decision.weight is not None  # `_weighted` chose it
        return decision.weight

    def _weight_target(self, node: Node) -> Target:
        return Target(id=f"{given_name(node.layer)}/{self._weight(node).attribute}", names=names_of(node))

    def _target(self, tensor: TensorRef) -> Target:
        """What overrides find a tensor by; tensors that share one scale are found by the names of all of them."""
        members = [tensor] if tensor not in self.groups else [other for other in self.groups if self.groups[other] == self.groups[tensor]]
        named = [
            pair for member in members for pair in ((point_id(member, self.tensors[member]), ""), *names_of_reads(self.tensors[member]))
        ]
        return Target(id=point_id(tensor, self.tensors[tensor]), names=tuple(dict.fromkeys(named)))

    def _group_name(self, tensor: TensorRef) -> str | None:
        if tensor not in self.groups:
            return None
        first = next(other for other in self.tensors if self.groups.get(other) == self.groups[tensor])
        return point_id(first, self.tensors[first])


def _view(
    graph: ModelGraph, config: QuantizationConfig, configs: Configs | None, skipped: Mapping[str, str], *, forced: bool = True
) -> View:
    declared = {
        layer.class_name: Quantize(
            inputs=layer.inputs,
            reason=f"{layer.class_name}: declared by the recipe",
            weight=Weight(attribute=layer.weight, channel_axes=layer.channel_axes) if layer.weight else None,
        )
        for layer in config.custom_layers
    }
    given = {
        name: Quantize(inputs=layer.inputs, reason=f"{name}: by its QuantizeConfig", weight=_weight_of_class(name, layer))
        for name, layer in (configs or {}).items()
    }
    return rules.view(
        graph,
        preset=config.preset,
        target=config.target or "tensorrt",
        skipped=skipped,
        forced=selected(graph, config.force, "force") if forced else (),
        custom={**declared, **given},
        small_products_float=config.small_products == "float",
    )


def _weight_of_class(name: str, config: LayerConfig) -> Weight | None:
    weight = config.weight or rules.WEIGHTS.get(name) or TRANSPOSED.get(name) if config.has_weight else None
    if config.has_weight and weight is None:
        raise PlacementError(
            f"configs[{name!r}]: the QuantizeConfig is for a layer with a weight, and does not say where {name} keeps it; give it "
            "weight=tfqat.Weight(attribute=..., channel_axes=...), or use an InputQuantizeConfig"
        )
    return weight


def _decisions(view: View) -> dict[str, Decision]:
    return {node.name: view.decide(node) for node in view.graph.nodes if node.class_name != "InputLayer"}


def _skip_reason(config: QuantizationConfig, where: str) -> str:
    index = int(where.rpartition("[")[2].removesuffix("]"))
    return f"skipped by the recipe: {config.skip[index]!r}"


def _anchor(point: QPoint) -> str:
    """The node at whose place a point is listed: the first that reads the activation, or the owner of the weight."""
    return point.edges[0].layer if point.kind == "activation" else point.source
