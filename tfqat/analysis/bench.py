"""A copy of a calibrated model whose units are switched one by one, and what the model computes with some of them switched.

Nothing is traced again for a switch: activations are switched by the `enabled` variables of their quantizers, of which each unit has its
own here; weights by theirs, or by assigning the values that they have in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import tensorflow as tf

from tfqat import numerics
from tfqat.analysis.units import Unit, units_of
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph
from tfqat.models.pieces import Pieces, cut
from tfqat.placement.plan import Placement, QPoint
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of, quantize_model, strip
from tfqat.quantize.quantizers import layer_name
from tfqat.spec import MAX_BITS

Level = Literal["planned", "int8", "float"]
"""How a unit computes: as the placement plans it, with 8-bit weights where it plans fewer bits, or in float."""

Levels = Mapping[str, Level]
"""Unit name -> level; units that are not named are `planned`."""

Change = tuple[str, Level]


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight's values at each level, and its quantizer's state."""

    variable: Any
    enabled: Any
    original: tf.Tensor
    in_8_bits: tf.Tensor | None


class Bench:
    """A calibrated model that can be switched (see the module).

    Attributes:
        model: the copy.
        graph: of the float model.
        units: in topological order.
        pieces: the copy in pieces, one beginning at every unit.
        switched: unit name -> the nodes of the copy that its switch changes.

    Raises:
        NotCalibratedError: a quantizer of `qmodel` has no range.
    """

    def __init__(self, qmodel: Any) -> None:
        ranges = state.ranges(qmodel)
        points, float_model = placement_of(qmodel).points, strip(qmodel)
        self.graph: ModelGraph = model_graph.read(float_model)
        self.units: tuple[Unit, ...] = units_of(self.graph, points)
        split = {unit.name: _points_of(unit, points) for unit in self.units}
        own = tuple(point for found in split.values() for point, _ in found)
        self.model = quantize_model(float_model, Placement(preset="switchable", points=own, float_layers=()))
        state.set_ranges(self.model, {point.id: ranges[origin] for found in split.values() for point, origin in found})
        handles = state.handles(self.model)
        self._activations = {
            name: [handles[point.id].enabled for point, _ in found if point.kind == "activation"] for name, found in split.items()
        }
        self._weights = {
            name: [_weight(handles[point.id]) for point, _ in found if point.kind == "weight"] for name, found in split.items()
        }
        quantizers = {name: [layer_name(point) for point, _ in found if point.kind == "activation"] for name, found in split.items()}
        self.switched = {unit.name: (*quantizers[unit.name], *unit.nodes) for unit in self.units}
        late = {name for names in quantizers.values() for name in names}
        self.pieces: Pieces = cut(self.model, [set(names) for names in self.switched.values()], late=late)
        self._set_at: dict[str, Level] = {unit.name: "planned" for unit in self.units}

    def set(self, levels: Levels, *, others: Level = "planned") -> None:
        """Switch every unit."""
        for unit in self.units:
            self.switch(unit.name, levels.get(unit.name, others))

    def switch(self, name: str, level: Level) -> None:
        """Switch one unit."""
        if self._set_at[name] == level:
            return
        for enabled in self._activations[name]:
            enabled.assign(level != "float")
        for weight in self._weights[name]:
            narrow = weight.in_8_bits is not None
            if narrow:
                weight.variable.assign(weight.in_8_bits if level == "int8" else weight.original)
            weight.enabled.assign(level == "planned" or (level == "int8" and not narrow))
        self._set_at[name] = level

    def first_piece(self, name: str) -> int:
        """The first piece that a unit's switch changes."""
        return min(self.pieces.of(node) for node in self.switched[name])

    def outputs(self, inputs: Any) -> list[tf.Tensor]:
        """The outputs for a batch, with the units as they are."""
        return self.pieces.results(self.pieces.run(self.pieces.start(inputs)))

    def sweep(
        self, inputs: Any, changes: Iterable[Change], base: Levels, *, others: Level = "planned"
    ) -> Iterator[tuple[Change | None, list[tf.Tensor]]]:
        """The outputs for a batch with each single change to `base`, in the order of the model, and at last with none (None).

        What comes before a changed unit is computed once for all changes.

        Args:
            inputs: the batch.
            changes: a unit and its level.
            base: the levels of units.
            others: the level of the other units.
        """
        self.set(base, others=others)
        live, done = self.pieces.start(inputs), 0
        for name, level in sorted(changes, key=lambda change: self.first_piece(change[0])):
            before, first = self._set_at[name], self.first_piece(name)
            live, done = self.pieces.run(live, done, first), first
            self.switch(name, level)
            yield (name, level), self.pieces.results(self.pieces.run(live, first))
            self.switch(name, before)
        yield None, self.pieces.results(self.pieces.run(live, done))


def _points_of(unit: Unit, points: Iterable[QPoint]) -> list[tuple[QPoint, str]]:
    """The points of a unit alone, each with the id of the model's point that it is a part of."""
    found: list[tuple[QPoint, str]] = []
    for point in points:
        if point.id in unit.weights:
            found.append((point, point.id))
        edges = tuple(edge for edge in point.edges if edge in unit.edges)
        if edges:
            found.append((replace(point, id=f"{point.id}/for/{unit.name}", edges=edges, scale_group=None), point.id))
    return found


def _weight(handle: state.Handle) -> _Weight:
    spec = handle.point.spec
    in_8_bits = None
    if spec.num_bits < MAX_BITS:
        wide = replace(spec, num_bits=MAX_BITS)
        in_8_bits = numerics.fake_quantize(handle.weight, numerics.weight_amax(handle.weight, wide), wide)
    original = tf.identity(handle.weight)
    return _Weight(variable=handle.weight, enabled=handle.enabled, original=original, in_8_bits=in_8_bits)
