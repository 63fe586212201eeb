"""A copy of a calibrated model whose units are switched one by one, and what the model computes with some of them switched.

Nothing is traced again for a switch: activations are switched by the `enabled` variables of their quantizers, of which each unit has its
own here; weights by theirs, or by assigning the values that they have in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfqat import numerics
from tfqat.analysis.units import Unit, units_of
from tfqat.calibration.weights import weight_amax
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, TensorRef
from tfqat.models.pieces import Pieces, cut
from tfqat.placement.plan import Placement, QPoint
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of, quantize_model, strip
from tfqat.quantize.quantizers import layer_name

Level = Literal["planned", "int8", "float"]
"""How a unit computes: as the placement plans it, with 8-bit weights where it plans fewer bits, or in float."""

Levels = Mapping[str, Level]
"""Unit name -> level; units that are not named are `planned`."""

Change = tuple[str, Level]


@dataclass(frozen=True, kw_only=True)
class _Values:
    """A variable and its value at each level; None for a level where it stays as planned.

    `enabled` is the state of its quantizer if it is a quantized weight; `in_8_bits` is already rounded.
    """

    variable: Any
    planned: tf.Tensor
    in_float: tf.Tensor | None = None
    in_8_bits: tf.Tensor | None = None
    enabled: Any = None

    def switch(self, level: Level) -> None:
        """Give the variable its value, and switch its quantizer."""
        if self.in_float is not None or self.in_8_bits is not None:
            of_level = {"planned": self.planned, "float": self.in_float, "int8": self.in_8_bits}[level]
            self.variable.assign(self.planned if of_level is None else of_level)
        if self.enabled is not None:
            self.enabled.assign(level == "planned" or (level == "int8" and self.in_8_bits is None))


class Bench:
    """A calibrated model that can be switched (see the module).

    Args:
        qmodel: the calibrated model; it is not changed.
        like: the float model that it was made from, if its weights or biases were corrected or trained since: what a unit computes with
            at the level `float`. Default: the weights of `qmodel`.

    Attributes:
        made_from: the arguments, for a bench like it in another process.
        model: the copy.
        graph: of the float model.
        units: in topological order.
        pieces: the copy in pieces, one beginning at every unit.
        switched: unit name -> the nodes of the copy that its switch changes.

    Raises:
        NotCalibratedError: a quantizer of `qmodel` has no range.
    """

    def __init__(self, qmodel: Any, like: Any = None) -> None:
        self.made_from = (qmodel, like)
        ranges = state.ranges(qmodel)
        points, planned = placement_of(qmodel).points, strip(qmodel)
        self.graph: ModelGraph = model_graph.read(planned)
        self.units: tuple[Unit, ...] = units_of(self.graph, points)
        split = {unit.name: _points_of(unit, points) for unit in self.units}
        own = tuple(point for found in split.values() for point, _ in found)
        self.model = quantize_model(planned, Placement(preset="switchable", points=own, float_layers=()))
        state.set_ranges(self.model, {point.id: ranges[origin] for found in split.values() for point, origin in found})
        handles = state.handles(self.model)
        quantizers = {name: [point for point, _ in found if point.kind == "activation"] for name, found in split.items()}
        self._activations = {name: [handles[point.id].enabled for point in found] for name, found in quantizers.items()}
        weights = {name: [handles[point.id] for point, _ in found if point.kind == "weight"] for name, found in split.items()}
        self._values = _values(self.graph, self.units, weights, self.model, planned if like is None else like)
        layers = {name: [layer_name(point) for point in found] for name, found in quantizers.items()}
        self.switched = {unit.name: (*layers[unit.name], *unit.nodes) for unit in self.units}
        late = {name for names in layers.values() for name in names}
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
        for values in self._values[name]:
            values.switch(level)
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


def _values(
    graph: ModelGraph, units: Iterable[Unit], weights: Mapping[str, list[state.Handle]], model: Any, like: Any
) -> dict[str, list[_Values]]:
    """The variables that each unit switches: quantized weights, and biases that differ from those of the float model `like`."""
    layers = {layer.name: layer for layer in model.layers}
    original = {layer.name: layer for layer in like.layers}
    found: dict[str, list[_Values]] = {}
    for unit in units:
        found[unit.name] = [_weight(handle, original) for handle in weights[unit.name]]
        taken = {id(values.variable) for values in found[unit.name]}
        for name in dict.fromkeys((*unit.layers, *_batch_norms(graph, unit))):
            inner = getattr(layers[name], "layer", layers[name])
            pairs = zip(inner.weights, original[name].weights, strict=True) if name in original else ()
            for variable, other in pairs:
                if id(variable) not in taken and not np.array_equal(variable, other):
                    plain = tf.identity(other)
                    in_8_bits = plain if unit.num_bits < unit.max_bits else None  # what was corrected for fewer bits is wrong for 8
                    values = _Values(variable=variable, planned=tf.identity(variable), in_float=plain, in_8_bits=in_8_bits)
                    found[unit.name].append(values)
    return found


def _batch_norms(graph: ModelGraph, unit: Unit) -> list[str]:
    """The BatchNorm layers that follow the unit's products, whose beta a correction of the bias may have changed."""
    readers = [reader for node in unit.nodes for reader, _ in graph.consumers(TensorRef(layer=node))]
    return [reader.layer for reader in readers if reader.class_name == "BatchNormalization"]


def _weight(handle: state.Handle, original: Mapping[str, Any]) -> _Values:
    spec, planned = handle.point.spec, tf.identity(handle.weight)
    layer = original.get(handle.point.source)
    plain = tf.identity(vars(layer)[str(handle.point.weight)]) if layer is not None else planned
    in_8_bits = None
    if spec.num_bits < handle.point.max_bits:
        wide = replace(spec, num_bits=handle.point.max_bits)
        amax = weight_amax(plain.numpy(), "mse" if handle.point.calibrator.method == "mse" else "max", wide)
        in_8_bits = numerics.fake_quantize(plain, amax, wide)
    in_float = None if np.array_equal(plain, planned) else plain
    return _Values(variable=handle.weight, planned=planned, in_float=in_float, in_8_bits=in_8_bits, enabled=handle.enabled)
