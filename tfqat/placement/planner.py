"""Plans the placement of a model: applies the preset's rules to every layer, then the recipe's skips and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfqat.errors import NoMatchError, PlacementError
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement import rules
from tfqat.placement.plan import Edge, FloatLayer, Placement, QPoint
from tfqat.placement.select import matches, no_match
from tfqat.recipe.load import quantization_config
from tfqat.recipe.schema import Override, QuantizationConfig
from tfqat.spec import Calibrator, PerChannel, PerTensor, QuantSpec


def plan(model: Any, quantization: str | Mapping[str, Any] | QuantizationConfig = "selective") -> Placement:
    """The placement of a model.

    Args:
        model: a flat functional tf_keras model.
        quantization: a preset (`naive`, `hybrid`, `selective`), the `quantization` block of a recipe as a mapping, or a QuantizationConfig.

    Returns:
        Every quantization point in topological order, and every layer left float, each with its reason.

    Raises:
        NoMatchError: patterns that match no layer, all of them in one message.
        PlacementError: a `skip` with the preset `naive`, or no layer that can be quantized.
    """
    return plan_graph(model_graph.read(model), quantization_config(quantization))


def plan_graph(graph: ModelGraph, config: QuantizationConfig) -> Placement:
    """`plan` for a model that has been read already."""
    view = rules.View(graph=graph, skipped=_skipped(graph, config))
    decisions = {node.name: rules.decide(view, node, rules.RULES[config.preset]) for node in graph.nodes if node.class_name != "InputLayer"}
    _check_patterns(graph, decisions, config)
    points = (*_activation_points(graph, decisions, config), *_weight_points(graph, decisions, config))
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
            for name, decision in decisions.items()
            if isinstance(decision, rules.KeepFloat)
        ),
    )


@dataclass
class _Reads:
    """The consumers of one tensor that ask for its quantized form."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def _activation_points(graph: ModelGraph, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> list[QPoint]:
    """One point per tensor, whatever number of layers read its quantized form."""
    reads: dict[TensorRef, _Reads] = {}
    for node in graph.nodes:
        decision = decisions.get(node.name)
        if not isinstance(decision, rules.Quantize):
            continue
        for index in decision.inputs:
            read = reads.setdefault(node.inputs[index], _Reads())
            read.nodes.append(node)
            read.edges.append(Edge(layer=node.name, index=index))
            read.names += [(node.name, node.class_name), (edge_id(node, index, decision.inputs), "")]
            read.reasons.append(decision.reason)
    return [_activation_point(tensor, read, decisions, config) for tensor, read in reads.items()]


def _activation_point(tensor: TensorRef, read: _Reads, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> QPoint:
    first = decisions[read.nodes[0].name]
    point_id = activation_id(tensor, read.nodes, first.inputs if isinstance(first, rules.Quantize) else ())
    _, settings = config.resolve(_matching(config, [(point_id, ""), *read.names]))
    return QPoint(
        id=point_id,
        kind="activation",
        source=tensor.layer,
        output=tensor.index,
        spec=QuantSpec(num_bits=settings.num_bits),
        calibrator=Calibrator(method=settings.calibrator, percentile=settings.percentile),
        edges=tuple(read.edges),
        reason="; ".join(dict.fromkeys(read.reasons)),
    )


def activation_id(tensor: TensorRef, readers: Sequence[Node], quantized: Sequence[int]) -> str:
    """The id of an activation point: that of the edge where one Add alone reads it, else the name of the layer that makes the tensor.

    Args:
        tensor: what is quantized.
        readers: the layers that read it quantized.
        quantized: which inputs the first of them reads quantized.
    """
    if len(readers) == 1 and readers[0].class_name == "Add":
        return edge_id(readers[0], readers[0].inputs.index(tensor), quantized)
    return tensor.layer if tensor.index == 0 else f"{tensor.layer}:{tensor.index}"


def edge_id(node: Node, index: int, quantized: Sequence[int]) -> str:
    """`add:shortcut` for the one input that an Add reads quantized, `add:0` and `add:1` for one of several; else the layer's name."""
    if node.class_name != "Add":
        return node.name
    return f"{node.name}:shortcut" if len(quantized) == 1 else f"{node.name}:{index}"


def _weight_points(graph: ModelGraph, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> list[QPoint]:
    quantized = [node for node in graph.nodes if isinstance(decisions.get(node.name), rules.Quantize) and node.class_name in rules.WEIGHTS]
    return [_weight_point(node, config) for node in quantized]


def _weight_point(node: Node, config: QuantizationConfig) -> QPoint:
    settings, _ = config.resolve(_matching(config, [(node.name, node.class_name)]))
    spec = weight_spec(node.class_name, num_bits=settings.num_bits, per_channel=settings.granularity == "per_channel")
    return QPoint(
        id=f"{node.name}/{rules.WEIGHTS[node.class_name].attribute}",
        kind="weight",
        source=node.name,
        weight=rules.WEIGHTS[node.class_name].attribute,
        spec=spec,
        calibrator=Calibrator(method=settings.calibrator),
        reason=f"weight of {node.class_name}",
    )


def weight_spec(class_name: str, *, num_bits: int = 8, per_channel: bool = True) -> QuantSpec:
    """The grid of a layer class's weight: narrow range, one scale per output channel or one for all."""
    axes = rules.WEIGHTS[class_name].channel_axes
    return QuantSpec(num_bits=num_bits, granularity=PerChannel(axes=axes) if per_channel else PerTensor(), narrow_range=True)


def _matching(config: QuantizationConfig, named: Sequence[tuple[str, str]]) -> list[Override]:
    """The overrides that match any of the (name, class name) pairs, in their order."""
    return [override for override in config.overrides if _found(override.match, named)]


def _skipped(graph: ModelGraph, config: QuantizationConfig) -> dict[str, str]:
    """Layer name -> reason, for every layer that a skip pattern selects; the first pattern that does gives the reason."""
    skipped: dict[str, str] = {}
    for pattern in config.skip:
        for node in graph.nodes:
            if _found(pattern, _skip_names(node)):
                skipped.setdefault(node.name, f"skipped by the recipe: {pattern!r}")
    return skipped


def _skip_names(node: Node) -> list[tuple[str, str]]:
    """The (name, class name) pairs that a skip pattern may match: an Add is skipped by the id of its shortcut too."""
    shortcut = [(f"{node.name}:shortcut", "")] if node.class_name == "Add" else []
    return [(node.name, node.class_name), *shortcut]


def _check_patterns(graph: ModelGraph, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> None:
    if config.preset == "naive" and config.skip:
        raise PlacementError(
            "quantization.skip: preset 'naive' quantizes every supported layer; use 'hybrid' or 'selective' to skip layers"
        )
    layers = [(node.name, node.class_name) for node in graph.nodes]
    skippable = [name for node in graph.nodes for name in _skip_names(node)]
    edges = [
        (edge_id(node, index, decision.inputs), "")
        for node in graph.nodes
        if isinstance(decision := decisions.get(node.name), rules.Quantize)
        for index in decision.inputs
    ]
    patterns = [(f"quantization.skip[{index}]", pattern, skippable) for index, pattern in enumerate(config.skip)]
    patterns += [
        (f"quantization.overrides[{index}].match", override.match, layers + edges) for index, override in enumerate(config.overrides)
    ]
    missing = [
        no_match(pattern, names, layers=len(layers), where=where) for where, pattern, names in patterns if not _found(pattern, names)
    ]
    if missing:
        raise NoMatchError("\n".join(missing))


def _found(pattern: str, named: Sequence[tuple[str, str]]) -> bool:
    return any(matches(pattern, name=name, class_name=class_name) for name, class_name in named)


def _anchor(point: QPoint) -> str:
    """The layer at whose place a point is listed: the first that reads the activation, or the owner of the weight."""
    return point.edges[0].layer if point.kind == "activation" else point.source
