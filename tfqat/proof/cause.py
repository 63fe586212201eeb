"""Why a graph stops agreeing with its model: the first point whose codes diverge, the layers that make it, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.proof.differences import CodeDifference
from tfqat.proof.expected import Expected
from tfqat.proof.limits import FLOAT32, LIMITS, Limits
from tfqat.proof.parity import PointParity
from tfqat.proof.pattern import Pattern, pattern_of
from tfqat.proof.segments import KerasSegments, OnnxSegment, onnx_segment
from tfqat.proof.structure import check_structure

# The rules of the structure that speak about a weight: broken in the segment, they are the cause.
_WEIGHT_RULES = {
    "weight codes are the model's": "weight codes differ",
    "weight scales go along the output channels": "weight scales lie on another axis",
    "weights are constants of int8 codes": "weight codes are missing",
}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Where a graph stops agreeing with its model, when everything before it is fed the model's codes, and the likely cause.

    Attributes:
        point: the quantization point, or the output behind the last points.
        layers: the Keras layers that make it from the points before it, in topological order.
        different: the share of its codes that differ; of an output the share of its entries.
        max_difference: the largest difference, in steps of the code; of an output in its own units.
        kind: `activation scale`, `zero point`, `weights`, `scale`, `bias`, `channels`, `padding`, `clipping`, `rounding`, `ties` or
            `operation`.
        cause: the likely cause in a sentence.
    """

    point: str
    layers: tuple[str, ...]
    different: float
    max_difference: float
    kind: str
    cause: str

    def __str__(self) -> str:
        return f"{self.point!r}, made by {quoted(self.layers)}: {self.cause}"


class Watch:
    """Remembers the codes of the first point that diverges, and the first outputs that do, of one batch each: no more is kept."""

    def __init__(self, points: Iterable[str], limits: Limits = FLOAT32) -> None:
        self._limits = limits
        self._order = {name: number for number, name in enumerate(points)}
        self.codes: tuple[str, np.ndarray, np.ndarray] | None = None
        self.outputs: tuple[int, np.ndarray, np.ndarray] | None = None

    def see(
        self,
        differences: Mapping[str, CodeDifference],
        wanted: Mapping[str, np.ndarray],
        found: Mapping[str, np.ndarray],
        layouts: Mapping[str, Sequence[int]],
    ) -> None:
        """The local codes of a batch: in Keras's layout, and in the graph's, which `layouts` lead to."""
        before = self._order[self.codes[0]] if self.codes else len(self._order)
        names = list(self._order)[:before]
        first = next((name for name in names if differences[name].diverges(self._limits)), None)
        if first is not None:
            self.codes = first, wanted[first], found[first].transpose(np.argsort(layouts[first]))

    def see_outputs(self, wanted: Sequence[np.ndarray], found: Sequence[np.ndarray], apart: Sequence[float]) -> None:
        """The outputs of a batch from the same codes, and how far each is apart, as a share of the largest."""
        if self.outputs is None:
            wrong = next((number for number, one in enumerate(apart) if not one <= self._limits.output_difference), None)
            self.outputs = None if wrong is None else (wrong, wanted[wrong], found[wrong])


@dataclass(frozen=True, kw_only=True, eq=False)
class Explainer:
    """What is needed to tell a cause: the graph, what the model says that it must hold, and the layers of each segment."""

    model: ir.Model
    expected: Expected
    segments: KerasSegments
    watch: Watch
    output_names: Sequence[str]

    @property
    def limits(self) -> Limits:
        """What a segment may differ by."""
        return LIMITS[self.expected.form.remainder]

    def point(self, points: Sequence[PointParity]) -> Divergence | None:
        """The first point in topological order whose local codes diverge; None if all are within their limits.

        Where each is and all together are not, the one that agrees least.
        """
        first = next((point for point in points if point.local.diverges(self.limits)), None)
        if first is None and CodeDifference.total(point.local for point in points).agreeing < self.limits.equal:
            first = min(points, key=lambda point: point.local.agreeing)
        if first is None:
            return None
        quantize = next(node for node in self.model.graph if node.name == f"{first.id}/Q")
        segment = onnx_segment(self.model.graph, quantize.inputs[0])
        codes = self.watch.codes
        if codes is not None and codes[0] == first.id:
            pattern = pattern_of(codes[1], codes[2], unit=float(self.expected.activations[first.id]))
        else:  # within the limits in every batch, and out of them in all together
            pattern = Pattern(kind="ties", text=f"rarely ({1 - first.local.equal:.4%}) and by one step")
        kind, cause = self._fault(segment, first.layers, first.id) or _likely(pattern, segment, self._with_kernels(first.layers), "codes")
        return Divergence(
            point=first.id,
            layers=first.layers,
            different=1 - first.local.equal,
            max_difference=first.local.max_difference,
            kind=kind,
            cause=cause,
        )

    def outputs(self) -> Divergence | None:
        """The layers behind the last points, if their outputs diverge from the same codes; `max_difference` is that of the outputs."""
        if self.watch.outputs is None:
            return None
        number, wanted, found = self.watch.outputs
        layers = self.segments.outputs[number]
        segment = onnx_segment(self.model.graph, self.model.graph.outputs[number])
        step = self.limits.output_difference * (float(np.abs(wanted).max(initial=0.0)) or 1.0)
        apart = np.abs(wanted.astype(np.float64) - found)
        if np.isfinite(apart).all() and wanted.ndim > 1:
            pattern = pattern_of(wanted.astype(np.float64) / step, found.astype(np.float64) / step, unit=step)
        else:
            pattern = Pattern(kind="everywhere", text="in every channel" if np.isfinite(apart).all() else "and are not finite")
        kind, cause = self._fault(segment, layers, None) or _likely(pattern, segment, self._with_kernels(layers), "outputs")
        return Divergence(
            point=self.output_names[number],
            layers=layers,
            different=float((apart > step).mean()),
            max_difference=float(apart.max(initial=0.0)),
            kind=kind,
            cause=cause,
        )

    def _with_kernels(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(layer for layer in layers if layer in self.segments.with_kernels) or layers

    def _fault(self, segment: OnnxSegment, layers: Iterable[str], point: str | None) -> tuple[str, str] | None:
        """A scale, a zero point or a weight of the segment that is not the model's: then that is the cause."""
        wanted = self.expected.activations
        owners = {f"{one}/DQ": one for one in segment.points} | ({} if point is None else {f"{point}/Q": point})
        for node in self.model.graph:
            owner = owners.get(node.name or "", "")
            fault = _scale_fault(node, wanted[owner], self.expected.zero_point(owner)) if owner in wanted else None
            if fault is not None:
                return fault
        mine = tuple(weight for weight in self.expected.weights if weight.layer in set(layers))
        for check in check_structure(self.model, replace(self.expected, activations={}, weights=mine)):
            if mine and not check.passed and check.rule in _WEIGHT_RULES:
                return "weights", f"{_WEIGHT_RULES[check.rule]}: {check.detail}"
        return None


def _scale_fault(node: ir.Node, wanted: np.ndarray, zero_point: np.int8 | np.uint8) -> tuple[str, str] | None:
    found, zero = _constant(node.inputs[1]), _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if found is not None and not np.array_equal(found.ravel(), wanted.ravel()):
        one, other = float(found.ravel()[0]), float(wanted.ravel()[0])
        return "activation scale", f"activation scale of {node.name}: {one:.7g}, the model's is {other:.7g} (factor {one / other:.4g})"
    if zero is not None and (zero.dtype != zero_point.dtype or np.any(zero != zero_point)):
        return "zero point", f"zero point of {node.name}: {int(zero.ravel()[0])}, expected {zero_point}"
    return None


def _likely(pattern: Pattern, segment: OnnxSegment, weighted: tuple[str, ...], what: str) -> tuple[str, str]:
    """(kind, sentence) of what a pattern points to."""
    ops, layers = ", ".join(segment.ops) or "no operation", quoted(weighted)
    means = {
        "ties": "ties of rounding, which the order of a sum decides; not a fault",
        "rounding": f"rounding of halves, which QuantizeLinear sends to even ({ops})",
        "clipping": f"another range ({ops})",
        "activation": f"another operation: the graph computes {ops}",
        "border": f"padding of {layers} ({ops})",
        "bias": f"bias of {layers}",
        "scale": f"weight scale of {layers}" if segment.weights or segment.constants else f"a constant factor ({ops})",
        "channels": f"scale, weight or bias of {layers} in these channels",
        "everywhere": f"another operation: the graph computes {ops}",
    }
    kinds = {"activation": "operation", "everywhere": "operation", "border": "padding"}
    return kinds.get(pattern.kind, pattern.kind), f"{means[pattern.kind]}: the {what} differ {pattern.text}"


def quoted(names: Iterable[str]) -> str:
    """`'a', 'b'`."""
    return ", ".join(repr(name) for name in names)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())
