"""The patterns of a `quantization` block held against a model: what each selects, and every one that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfqat.errors import NoMatchError, PlacementError
from tfqat.models.graph import ModelGraph, Node
from tfqat.models.names import given_name
from tfqat.placement.reads import Read
from tfqat.placement.rules import Decision, Quantize, View
from tfqat.placement.rules.choice import obstacle_to_forcing
from tfqat.placement.select import matches, no_match
from tfqat.recipe.quantization import Override, QuantizationConfig

Named = tuple[str, str]
"""A name and a class name by which a pattern may select something; one of them can be empty."""

# What the layers lack that a pattern without effect matches, and what to do.
QUANTIZER = "a quantizer {listed}, so it changes nothing; name the layers that read the tensor"
WEIGHT = "a quantized weight {listed}, so it changes nothing; name layers with a weight, such as Conv2D or Dense"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that overrides set: the weight of a layer, or the range of a tensor (or of several that share it), and its names."""

    id: str
    names: tuple[Named, ...]


def names_of(node: Node) -> tuple[Named, ...]:
    """The names of a layer: its own, that of this call, and the one it had in the user's model."""
    return tuple(dict.fromkeys([(node.layer, node.class_name), (node.name, node.class_name), (given_name(node.layer), "")]))


def _names_to_choose(node: Node) -> tuple[Named, ...]:
    """The names by which a layer is skipped or forced: an Add goes by the id of its shortcut too."""
    return (*names_of(node), (f"{given_name(node.name)}:shortcut", "")) if node.class_name == "Add" else names_of(node)


def names_of_reads(reads: Iterable[Read]) -> tuple[Named, ...]:
    """The names by which an override finds an activation: those of the layers that read it, and the ids of their inputs."""
    return tuple(pair for read in reads for pair in (*names_of(read.node), (read.id, "")))


def found(pattern: str, named: Iterable[Named]) -> bool:
    """Whether a pattern matches any of the names."""
    return any(matches(pattern, name=name, class_name=class_name) for name, class_name in named)


def selected(graph: ModelGraph, patterns: Iterable[str], key: str) -> dict[str, str]:
    """Layer -> where the first pattern that selects any of its calls stands: `quantization.skip[0]`."""
    layers: dict[str, str] = {}
    for index, pattern in enumerate(patterns):
        for node in graph.nodes:
            if found(pattern, _names_to_choose(node)):
                layers.setdefault(node.layer, f"quantization.{key}[{index}]")
    return layers


def matching(config: QuantizationConfig, target: Target) -> list[Override]:
    """The overrides that match a target, in their order."""
    return [override for override in config.overrides if found(override.match, target.names)]


def check_choice(view: View, config: QuantizationConfig) -> None:
    """Make sure that `skip` and `force` can be obeyed.

    Raises:
        PlacementError: a skip with the preset naive, a layer that is both skipped and forced, or a forced layer that cannot be quantized.
    """
    if config.preset == "naive" and config.skip:
        raise PlacementError(
            "quantization.skip: preset 'naive' quantizes every supported layer; use 'hybrid' or 'selective' to skip layers"
        )
    skipped, forced = selected(view.graph, config.skip, "skip"), selected(view.graph, config.force, "force")
    for layer in (layer for layer in forced if layer in skipped):
        raise PlacementError(
            f"{forced[layer]} wants layer {given_name(layer)!r} quantized, {skipped[layer]} wants it float; remove it from one of them"
        )
    for node in view.graph.nodes:
        obstacle = obstacle_to_forcing(view, node) if node.layer in forced else None
        if obstacle:
            raise PlacementError(
                f"{forced[node.layer]}: layer {given_name(node.layer)!r} ({node.class_name}) cannot be quantized: {obstacle}. "
                "Remove it from `force`; a class of your own can be described under quantization.custom_layers"
            )


def check_effect(
    view: View, without_skips: Mapping[str, Decision], config: QuantizationConfig, weights: Sequence[Target], activations: Sequence[Target]
) -> None:
    """Make sure that every pattern changes something.

    Args:
        view: the model.
        without_skips: node -> what the rules say if nothing is skipped.
        config: the patterns.
        weights: every quantized weight.
        activations: every quantized activation.

    Raises:
        NoMatchError: patterns that match no layer, or change nothing, all of them in one message.
        PlacementError: two overrides of which the later one undoes the earlier.
    """
    nodes = view.graph.nodes
    layers = [pair for node in nodes for pair in names_of(node)]
    choosable = [pair for node in nodes for pair in _names_to_choose(node)]
    skippable = [pair for node in nodes if isinstance(without_skips.get(node.name), Quantize) for pair in _names_to_choose(node)]
    of_weights, of_activations = ([pair for target in targets for pair in target.names] for targets in (weights, activations))
    checks = [(f"quantization.skip[{index}]", pattern, skippable, QUANTIZER) for index, pattern in enumerate(config.skip)]
    checks += [(f"quantization.force[{index}]", pattern, choosable, QUANTIZER) for index, pattern in enumerate(config.force)]
    for index, override in enumerate(config.overrides):
        keys = settings_of(override)
        sets_weights, sets_activations = (any(block == name for block, _ in keys) for name in ("weights", "activations"))
        changed = [*(of_weights if sets_weights else ()), *(of_activations if sets_activations else ())]
        checks.append((f"quantization.overrides[{index}].match", override.match, changed, QUANTIZER if sets_activations else WEIGHT))
    checks += [
        (f"quantization.custom_layers[{index}].class_name", layer.class_name, layers, QUANTIZER)
        for index, layer in enumerate(config.custom_layers)
    ]
    missing = [
        _without_effect(pattern, [*layers, *of_activations], len({node.layer for node in nodes}), where, lacking)
        for where, pattern, changed, lacking in checks
        if not found(pattern, changed)
    ]
    if missing:
        raise NoMatchError("\n".join(missing))
    _check_conflicts(config, {"weights": weights, "activations": activations})


def settings_of(override: Override) -> dict[tuple[str, str], object]:
    """(block, key) -> value, for every key that an override gives."""
    blocks = {"weights": override.weights, "activations": override.activations}
    return {(name, key): value for name, block in blocks.items() if block for key, value in block.model_dump(exclude_unset=True).items()}


def _check_conflicts(config: QuantizationConfig, targets: Mapping[str, Sequence[Target]]) -> None:
    """Raise for a setting of an override that later ones undo wherever it applies: it has no effect, so one of the two is a mistake."""
    for index, override in enumerate(config.overrides):
        for (block, key), value in settings_of(override).items():
            applies = [target for target in targets[block] if found(override.match, target.names)]
            undone = [_undone_by(config, index, target, (block, key), value) for target in applies]
            if applies and all(undone):
                later = undone[0] or 0
                other = config.overrides[later]
                raise PlacementError(
                    f"quantization.overrides[{index}].match: {override.match!r} sets {block}.{key} to {value!r}, and "
                    f"quantization.overrides[{later}].match: {other.match!r} sets it to {settings_of(other)[block, key]!r} for "
                    f"{'all that it matches' if len(applies) > 1 else repr(applies[0].id)}: the two conflict; keep one of them, "
                    "or put the narrower one last"
                )


def _undone_by(config: QuantizationConfig, index: int, target: Target, setting: tuple[str, str], value: object) -> int | None:
    """The last later override that gives a setting of a target another value; None if there is none."""
    for later in range(len(config.overrides) - 1, index, -1):
        override = config.overrides[later]
        if setting in settings_of(override) and found(override.match, target.names):
            return later if settings_of(override)[setting] != value else None
    return None


def _without_effect(pattern: str, known: Sequence[Named], layers: int, where: str, lacking: str) -> str:
    """The message for a pattern that changes nothing: it matches no layer, or only layers (or inputs of layers) that lack what it sets."""
    matched = list(dict.fromkeys(name for name, class_name in known if matches(pattern, name=name, class_name=class_name)))
    if not matched:
        return no_match(pattern, known, layers=layers, where=where)
    listed = ", ".join(matched[:5]) + (", ..." if len(matched) > 5 else "")
    return f"{where}: pattern {pattern!r} matches only layers without {lacking.format(listed=f'({listed})')}"
