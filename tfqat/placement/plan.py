"""Placement: every tensor and weight of a model that gets Q/DQ, with its spec and the reason; the same for what stays float."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tfqat.models.names import given_name
from tfqat.spec import MAX_BITS, Calibrator, QuantSpec


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Input number `index` of node `layer` (`conv`, or `conv@2` for the second call of a shared layer): where a tensor is consumed."""

    layer: str
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class QPoint:
    """One activation tensor, or one weight, that gets Q/DQ.

    `source` is the layer that produces the tensor, or owns the weight. For an activation, `edges` are the consumers that see
    the quantized tensor (all other consumers see the float one) and `output` is the index of the tensor among the outputs of
    `source`; for a weight, `weight` is the attribute that holds it, such as `kernel`. The points of one `scale_group` share one scale.
    A `non_negative` tensor holds no negative value, whatever the data. `max_bits` is the widest code that the target's kernels take.
    """

    id: str
    kind: Literal["activation", "weight"]
    source: str
    spec: QuantSpec
    calibrator: Calibrator
    reason: str
    edges: tuple[Edge, ...] = ()
    output: int = 0
    weight: str | None = None
    scale_group: str | None = None
    non_negative: bool = False
    max_bits: int = MAX_BITS

    @property
    def given_source(self) -> str:
        """`source` as the user's model called it; the same but for names that tf_keras refuses."""
        return given_name(self.source)


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A layer that computes in float, and why."""

    layer: str
    class_name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """All quantization points of a model, in topological order, and the layers left float."""

    preset: str
    points: tuple[QPoint, ...]
    float_layers: tuple[FloatLayer, ...]

    @property
    def activations(self) -> tuple[QPoint, ...]:
        """The points that quantize an activation tensor."""
        return tuple(point for point in self.points if point.kind == "activation")

    @property
    def weights(self) -> tuple[QPoint, ...]:
        """The points that quantize a weight."""
        return tuple(point for point in self.points if point.kind == "weight")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        points = [point_to_dict(point) for point in self.points]
        return {"preset": self.preset, "points": points, "float_layers": [asdict(layer) for layer in self.float_layers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Placement:
        """The inverse of `to_dict`."""
        return cls(
            preset=data["preset"],
            points=tuple(point_from_dict(point) for point in data["points"]),
            float_layers=tuple(FloatLayer(**layer) for layer in data["float_layers"]),
        )


def point_to_dict(point: QPoint) -> dict[str, Any]:
    """A point as a JSON object."""
    edges = [asdict(edge) for edge in point.edges]
    return {**asdict(point), "spec": point.spec.to_dict(), "edges": edges}


def point_from_dict(data: dict[str, Any]) -> QPoint:
    """The inverse of `point_to_dict`."""
    nested = {
        "spec": QuantSpec.from_dict(data["spec"]),
        "calibrator": Calibrator(**data["calibrator"]),
        "edges": tuple(Edge(**edge) for edge in data["edges"]),
    }
    return QPoint(**{**data, **nested})
