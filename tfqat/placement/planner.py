"""Plans the placement of a model: applies the preset's rules to every layer, then the recipe's skips and overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfqat.errors import NoMatchError, PlacementError
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement import rules
from tfqat.placement.plan import FloatLayer, Placement, QPoint
from tfqat.placement.reads import Read, by_tensor, edges_of, point_id
from tfqat.placement.select import matches, no_match
from tfqat.recipe.load import quantization_config
from tfqat.recipe.schema import Override, QuantizationConfig
from tfqat.spec import Calibrator, PerChannel, PerTensor, QuantSpec

# What the layers lack that a pattern without effect matches, and what to do.
QUANTIZER = "a quantizer {listed}, so it changes nothing; name the layers that read the tensor"
WEIGHT = f"a quantized weight {{listed}}, so it changes nothing; weights are those of {', '.join(sorted(rules.WEIGHTS))}"


def plan(model: Any, quantization: str | Mapping[str, Any] | QuantizationConfig = "selective") -> Placement:
    """The placement of a model.

    Args:
        model: a flat functional tf_keras model, or a Sequential.
        quantization: a preset (`naive`, `hybrid`, `selective`), the `quantization` block of a recipe as a mapping, or a QuantizationConfig.

    Returns:
        Every quantization point in topological order, and every layer left float, each with its reason.

    Raises:
        NoMatchError: patterns that match no layer, or change nothing, all of them in one message.
        PlacementError: a `skip` with the preset `naive`, or no layer that can be quantized.
    """
    return plan_graph(model_graph.read(model), quantization_config(quantization))


def plan_graph(graph: ModelGraph, config: QuantizationConfig) -> Placement:
    """`plan` for a model that has been read already."""
    decisions = _decisions(rules.View(graph=graph, skipped=_skipped(graph, config), preset=config.preset))
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


def _decisions(view: rules.View) -> dict[str, rules.Decision]:
    return {node.name: rules.decide(view, node) for node in view.graph.nodes if node.class_name != "InputLayer"}


def _activation_points(graph: ModelGraph, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> list[QPoint]:
    """One point per tensor, whatever number of layers read its quantized form."""
    return [_activation_point(tensor, reads, config) for tensor, reads in by_tensor(graph, _reads(graph, decisions)).items()]


def _quantized(graph: ModelGraph, decisions: Mapping[str, rules.Decision]) -> list[Node]:
    return [node for node in graph.nodes if isinstance(decisions.get(node.name), rules.Quantize)]


def _reads(graph: ModelGraph, decisions: Mapping[str, rules.Decision]) -> list[Read]:
    return [
        Read.of(node, index, decision.inputs, decision.reason)
        for node in graph.nodes
        if isinstance(decision := decisions.get(node.name), rules.Quantize)
        for index in decision.inputs
    ]


def _activation_point(tensor: TensorRef, reads: tuple[Read, ...], config: QuantizationConfig) -> QPoint:
    _, settings = config.resolve(_matching(config, [(point_id(tensor, reads), ""), *_override_names(reads)]))
    return QPoint(
        id=point_id(tensor, reads),
        kind="activation",
        source=tensor.layer,
        output=tensor.index,
        spec=QuantSpec(num_bits=settings.num_bits),
        calibrator=Calibrator(method=settings.calibrator, percentile=settings.percentile),
        edges=edges_of(reads),
        reason="; ".join(dict.fromkeys(read.reason for read in reads)),
    )


def _override_names(reads: Iterable[Read]) -> list[tuple[str, str]]:
    """The (name, class name) pairs by which an override finds an activation: the layers that read it, and the ids of their inputs."""
    return [pair for read in reads for pair in ((read.node.name, read.node.class_name), (read.id, ""))]


def _weight_points(graph: ModelGraph, decisions: Mapping[str, rules.Decision], config: QuantizationConfig) -> list[QPoint]:
    return [_weight_point(node, config) for node in _quantized(graph, decisions) if node.class_name in rules.WEIGHTS]


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
    tensors = by_tensor(graph, _reads(graph, decisions)).items()
    activations = [*_override_names(read for _, reads in tensors for read in reads), *((point_id(*item), "") for item in tensors)]
    weights = [(node.name, node.class_name) for node in _quantized(graph, decisions) if node.class_name in rules.WEIGHTS]
    skippable = _skippable(graph, config)
    checks = [(f"quantization.skip[{index}]", pattern, skippable, QUANTIZER) for index, pattern in enumerate(config.skip)]
    for index, override in enumerate(config.overrides):
        sets_weights, sets_activations = (bool(block and block.model_fields_set) for block in (override.weights, override.activations))
        changed = [*(weights if sets_weights else ()), *(activations if sets_activations else ())]
        checks.append((f"quantization.overrides[{index}].match", override.match, changed, QUANTIZER if sets_activations else WEIGHT))
    missing = [
        _without_effect(pattern, [*layers, *activations], len(layers), where, lacking)
        for where, pattern, changed, lacking in checks
        if not _found(pattern, changed)
    ]
    if missing:
        raise NoMatchError("\n".join(missing))


def _skippable(graph: ModelGraph, config: QuantizationConfig) -> list[tuple[str, str]]:
    """The (name, class name) pairs of what the preset would quantize if nothing were skipped."""
    decisions = _decisions(rules.View(graph=graph, skipped={}, preset=config.preset))
    return [pair for node in _quantized(graph, decisions) for pair in _skip_names(node)]


def _without_effect(pattern: str, known: Sequence[tuple[str, str]], layers: int, where: str, lacking: str) -> str:
    """The message for a pattern that changes nothing: it matches no layer, or only layers (or inputs of layers) that lack what it sets."""
    matched = list(dict.fromkeys(name for name, class_name in known if matches(pattern, name=name, class_name=class_name)))
    if not matched:
        return no_match(pattern, known, layers=layers, where=where)
    listed = ", ".join(matched[:5]) + (", ..." if len(matched) > 5 else "")
    return f"{where}: pattern {pattern!r} matches only layers without {lacking.format(listed=f'({listed})')}"


def _found(pattern: str, named: Sequence[tuple[str, str]]) -> bool:
    return any(matches(pattern, name=name, class_name=class_name) for name, class_name in named)


def _anchor(point: QPoint) -> str:
    """The layer at whose place a point is listed: the first that reads the activation, or the owner of the weight."""
    return point.edges[0].layer if point.kind == "activation" else point.source
