"""What two Q/DQ graphs hold that differs: names, scales, weights, constants; and what of it stands right before a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tfqat.proof.qdq_graph import Grid, QdqGraph
from tfqat.proof.segments import OnnxSegment, onnx_segment


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """The differences of what two files hold, by name.

    `scales` and `weights` are those of a name that both have; `add/DQ` is the scale of point `add` where it is read, if that differs by
    itself. `constants` are the other floats that differ, or that one of them lacks.
    """

    first: QdqGraph
    second: QdqGraph
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]
    weights: Mapping[str, str]
    constants: tuple[str, ...]

    @classmethod
    def between(cls, first: QdqGraph, second: QdqGraph) -> Held:
        """Compare two graphs by the names of their points, weights and constants."""
        return cls(
            first=first,
            second=second,
            only_in_first=_missing(first, second),
            only_in_second=_missing(second, first),
            scales=_scale_differences(first, second),
            weights={
                name: difference
                for name, grid in first.weights.items()
                if name in second.weights and (difference := _weight_difference(grid, second.weights[name]))
            },
            constants=tuple(
                name
                for name in {**first.constants, **second.constants}
                if not _equal(first.constants.get(name), second.constants.get(name))
            ),
        )

    def at_point(self, point: str) -> str:
        """What differs right before a point, and whether its own scale does."""
        quantizers = (graph.quantizer(point) for graph in (self.first, self.second))
        return self._cause(
            [onnx_segment(graph.model.graph, node.inputs[0]) for graph, node in zip(self._graphs, quantizers, strict=True)], point
        )

    def at_output(self, number: int) -> str:
        """What differs right before an output."""
        return self._cause([onnx_segment(graph.model.graph, graph.model.graph.outputs[number]) for graph in self._graphs], None)

    @property
    def _graphs(self) -> tuple[QdqGraph, QdqGraph]:
        return self.first, self.second

    def _cause(self, segments: list[OnnxSegment], point: str | None) -> str:
        found = list(self._found(segments[0], point))
        if constants := _differing_constants(self._graphs, segments):
            found.append(f"constants differ: {', '.join(constants)}")
        for ours, theirs, where in ((segments[0], segments[1], self.first), (segments[1], segments[0], self.second)):
            alone = sorted({*ours.points, *ours.weights} - {*theirs.points, *theirs.weights})
            if alone:
                found.append(f"in {where.path} it is made from {', '.join(alone)}")
        if segments[0].ops != segments[1].ops:
            found.append(f"its operations are {_listed(segments[0])}, and {_listed(segments[1])}")
        same = f"neither its scale nor weights or constants before it differ; it is made by {_listed(segments[0])}"
        return "; ".join(found) or same

    def _found(self, segment: OnnxSegment, point: str | None) -> Iterator[str]:
        for name in ([point] if point is not None else []) + [one for one in segment.points if one != point]:
            for key in (name, f"{name}/DQ") if name != point else (name,):
                if key in self.scales:
                    yield f"the scale of {key!r} differs: {self.scales[key][0]:.7g} and {self.scales[key][1]:.7g}"
        yield from (f"weight {name!r} differs: {self.weights[name]}" for name in segment.weights if name in self.weights)


def _differing_constants(graphs: tuple[QdqGraph, QdqGraph], segments: list[OnnxSegment]) -> list[str]:
    """The first graph's names of the constants in a segment that differ; they are paired by their order, as names may be anything."""
    pairs = [
        [(name, graph.constants[name]) for name in segment.constants if name in graph.constants]
        for graph, segment in zip(graphs, segments, strict=True)
    ]
    if len(pairs[0]) != len(pairs[1]):
        return []
    return [name for (name, ours), (_, theirs) in zip(*pairs, strict=True) if not _equal(ours, theirs)]


def _scale_differences(first: QdqGraph, second: QdqGraph) -> dict[str, tuple[float, float]]:
    written, read = (_pairs(*grids) for grids in ((first.points, second.points), (first.readers, second.readers)))
    return written | {f"{name}/DQ": pair for name, pair in read.items() if written.get(name) != pair}


def _pairs(first: Mapping[str, Grid], second: Mapping[str, Grid]) -> dict[str, tuple[float, float]]:
    """The scales that differ, of the points that both have."""
    both = {name: (grid.scale, second[name].scale) for name, grid in first.items() if name in second}
    return {name: (float(a.ravel()[0]), float(b.ravel()[0])) for name, (a, b) in both.items() if not _equal(a, b)}


def _equal(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is not None and second is not None and np.array_equal(first.ravel(), second.ravel())


def _missing(one: QdqGraph, other: QdqGraph) -> tuple[str, ...]:
    return (*(name for name in one.points if name not in other.points), *(name for name in one.weights if name not in other.weights))


def _listed(segment: OnnxSegment) -> str:
    return ", ".join(segment.ops) or "no operation"


def _weight_difference(first: Grid, second: Grid) -> str:
    """How two weights differ; empty if they do not."""
    ours, theirs = first.steps, second.steps
    found = []
    if ours.shape != theirs.shape:
        found.append(f"codes of the shapes {ours.shape} and {theirs.shape}")
    elif not np.array_equal(ours, theirs):
        found.append(f"{int((ours != theirs).sum())} of {ours.size} codes")
    scales = first.scale.ravel(), second.scale.ravel()
    if scales[0].shape != scales[1].shape:
        found.append(f"{len(scales[0])} and {len(scales[1])} scales")
    elif not np.array_equal(*scales):
        found.append(f"{int((scales[0] != scales[1]).sum())} of {len(scales[0])} scales")
    return ", ".join(found)
