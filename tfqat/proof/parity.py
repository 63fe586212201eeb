"""What a comparison of int8 codes found: per point and over all points, local, end to end, and the noise floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfqat.proof.limits import (
    END_TO_END_TIES,
    FLOAT32,
    FLOOR_FACTOR,
    FUSED_EQUAL,
    FUSED_MAX_DIFFERENCE,
    LIMITS,
    LOCAL_MAX_DIFFERENCE,
    LOCAL_POINT_TIES,
    TOP1_AGREEMENT,
    Limits,
)
from tfqat.proof.structure import StructureCheck

if TYPE_CHECKING:
    from tfqat.proof.cause import Divergence


@dataclass(frozen=True, kw_only=True)
class CodeDifference:
    """How two sets of codes differ: `histogram[d]` counts the codes that are d apart."""

    histogram: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray) -> CodeDifference:
        """The difference of two int8 arrays of one shape."""
        apart = np.abs(first.astype(np.int16) - second.astype(np.int16)).ravel()
        counts = np.bincount(apart)
        return cls(histogram={int(distance): int(counts[distance]) for distance in np.flatnonzero(counts)})

    @classmethod
    def total(cls, differences: Iterable[CodeDifference]) -> CodeDifference:
        """All differences in one."""
        merged: dict[int, int] = {}
        for difference in differences:
            for distance, count in difference.histogram.items():
                merged[distance] = merged.get(distance, 0) + count
        return cls(histogram=dict(sorted(merged.items())))

    @property
    def codes(self) -> int:
        """How many codes were compared."""
        return sum(self.histogram.values())

    @property
    def different(self) -> int:
        """How many codes are not equal."""
        return self.codes - self.histogram.get(0, 0)

    @property
    def equal(self) -> float:
        """The share of equal codes; 1.0 if none were compared."""
        return self.histogram.get(0, 0) / self.codes if self.codes else 1.0

    @property
    def max_difference(self) -> int:
        """The largest difference of two codes."""
        return max(self.histogram, default=0)

    def diverges(self, limits: Limits = FLOAT32) -> bool:
        """Whether these, the local codes of one point, differ by more than ties of rounding."""
        too_many = self.different > max(LOCAL_POINT_TIES, (1 - limits.point_equal) * self.codes)
        return too_many or self.max_difference > LOCAL_MAX_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        histogram = {str(distance): count for distance, count in self.histogram.items()}
        return {"equal": self.equal, "max_difference": self.max_difference, "codes": self.codes, "histogram": histogram}


@dataclass(frozen=True, kw_only=True)
class PointParity:
    """The codes of one point: local, end to end, and of Keras in float32 against float64, XLA's float32, and float32 with rounding noise.

    `perturbed` is the repetition with noise that differs most over the whole model. `fused` is the graph run literally against ONNX
    Runtime's fused kernels, for a graph that is for them. `layers` are the Keras layers that make the point from those before it.
    """

    id: str
    local: CodeDifference
    end_to_end: CodeDifference
    noise_floor: CodeDifference
    compiled: CodeDifference = field(default_factory=CodeDifference)
    perturbed: CodeDifference = field(default_factory=CodeDifference)
    fused: CodeDifference = field(default_factory=CodeDifference)
    layers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "id": self.id,
            "layers": list(self.layers),
            "local_equal": self.local.equal,
            "local_max_difference": self.local.max_difference,
            "end_to_end_equal": self.end_to_end.equal,
            "end_to_end_max_difference": self.end_to_end.max_difference,
            "floor_equal": self.noise_floor.equal,
            "floor_max_difference": self.noise_floor.max_difference,
            "compiled_equal": self.compiled.equal,
            "compiled_max_difference": self.compiled.max_difference,
            "perturbed_equal": self.perturbed.equal,
            "perturbed_max_difference": self.perturbed.max_difference,
            "fused_equal": self.fused.equal,
            "fused_max_difference": self.fused.max_difference,
        }


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """The model's outputs in Keras and in ONNX Runtime: largest difference, cosine, and how often the largest entry is the same.

    An example whose largest entries lie closer together than the noise floor of both, times the factor that codes are allowed, counts as
    the same.
    """

    max_abs_difference: float
    cosine: float
    top1_agreement: float

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray, noise: float = 0.0) -> OutputParity:
        """The difference of two (examples, ..., classes) arrays; an output with one class agrees by definition.

        Args:
            first: the reference.
            second: what is compared with it.
            noise: how far two entries of the reference may lie apart by rounding alone.
        """
        a, b = first.astype(np.float64), second.astype(np.float64)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        classes = a.shape[-1] if a.ndim > 1 else 1
        chosen = np.take_along_axis(a, b.argmax(axis=-1)[..., None], axis=-1)[..., 0] if classes > 1 else np.zeros(1)
        largest = a.max(axis=-1) if classes > 1 else np.zeros(1)
        return cls(
            max_abs_difference=float(np.abs(a - b).max(initial=0.0)),
            cosine=float((a * b).sum() / norms) if norms else float(not np.any(a) and not np.any(b)),
            top1_agreement=float((largest - chosen <= noise).mean()),
        )

    @classmethod
    def worst(cls, outputs: Iterable[OutputParity]) -> OutputParity:
        """The worst figure of each kind over the outputs of a model."""
        outputs = tuple(outputs)
        return cls(
            max_abs_difference=float(np.max([output.max_abs_difference for output in outputs])),  # NaN stays
            cosine=float(np.min([output.cosine for output in outputs])),
            top1_agreement=float(np.min([output.top1_agreement for output in outputs])),
        )


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Whether an exported graph computes what the model computes: structure, codes (local, end to end, the noise floors) and outputs.

    `local_output_difference` is that of the outputs when the last segment is fed the same codes, as a share of the largest output.
    `first_divergence` is the first point whose local codes differ by more than ties, or the outputs if only they do; `output_divergence`
    that of the outputs.
    """

    examples: int
    structure: tuple[StructureCheck, ...]
    points: tuple[PointParity, ...]
    outputs: OutputParity
    local_output_difference: float
    remainder: str = "float32"
    first_divergence: Divergence | None = None
    output_divergence: Divergence | None = None

    @property
    def limits(self) -> Limits:
        """What is allowed, by the type of what is not quantized."""
        return LIMITS[self.remainder]

    @property
    def worst_layer(self) -> PointParity | None:
        """The point whose local codes agree least, with the Keras layers that make it; None if all codes are equal."""
        worst = min(self.points, key=lambda point: point.local.equal, default=None)
        return worst if worst is not None and worst.local.different else None

    @property
    def local(self) -> CodeDifference:
        """All points, each segment fed the same codes."""
        return CodeDifference.total(point.local for point in self.points)

    @property
    def end_to_end(self) -> CodeDifference:
        """All points, Keras in float32 against ONNX Runtime, from the same inputs."""
        return CodeDifference.total(point.end_to_end for point in self.points)

    @property
    def noise_floor(self) -> CodeDifference:
        """All points, Keras in float32 against Keras in float64, from the same inputs."""
        return CodeDifference.total(point.noise_floor for point in self.points)

    @property
    def compiled(self) -> CodeDifference:
        """All points, Keras in float32 against the same graph compiled by XLA; no codes where XLA cannot compile it."""
        return CodeDifference.total(point.compiled for point in self.points)

    @property
    def perturbed(self) -> CodeDifference:
        """All points, Keras in float32 against itself with rounding noise."""
        return CodeDifference.total(point.perturbed for point in self.points)

    @property
    def fused(self) -> CodeDifference:
        """All points, the graph run literally against ONNX Runtime's fused kernels; no codes if the graph is not for them."""
        return CodeDifference.total(point.fused for point in self.points)

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of its limit; empty if the graph is proven."""
        found = [f"structure: {check.rule}: {check.detail}" for check in self.structure if not check.passed]
        limits = self.limits
        local, whole, floor, compiled = self.local, self.end_to_end, self.noise_floor, self.compiled
        if local.equal < limits.equal or local.max_difference > LOCAL_MAX_DIFFERENCE:
            worst = min(self.points, key=lambda point: point.local.equal)
            made_by = f", made by {', '.join(map(repr, worst.layers))}" if worst.layers else ""
            found.append(
                f"local: {local.equal:.5%} equal, largest difference {local.max_difference}; "
                f"worst at {worst.id!r} ({worst.local.equal:.5%}){made_by}"
            )
        if self.first_divergence is not None and self.first_divergence != self.output_divergence:
            found.append(f"first divergence: {self.first_divergence}")
        for point in self.points:
            if point.local.different > max(LOCAL_POINT_TIES, (1 - limits.point_equal) * point.local.codes):
                found.append(f"local: {point.local.equal:.5%} of the codes of {point.id!r} are equal, expected {limits.point_equal:.1%}")
        if not self.local_output_difference <= limits.output_difference:
            found.append(
                f"local: from the same codes the outputs are {self.local_output_difference:.2e} of the largest one apart, "
                f"expected at most {limits.output_difference:.0e}: look behind the last point"
                + (f": {self.output_divergence}" if self.output_divergence is not None else "")
            )
        floors = {"float64": floor, "XLA": compiled, "rounding noise": self.perturbed}
        allowed = max(*(FLOOR_FACTOR * (1 - found_floor.equal) for found_floor in floors.values()), 1 - limits.equal)
        furthest = max(*(FLOOR_FACTOR * found_floor.max_difference for found_floor in floors.values()), LOCAL_MAX_DIFFERENCE)
        too_many = whole.different > max(allowed * whole.codes, END_TO_END_TIES)
        if too_many or whole.max_difference > furthest:
            measured = ", ".join(f"{one.equal:.4%}, {one.max_difference} ({name})" for name, one in floors.items())
            found.append(
                f"end to end: {whole.equal:.4%} equal, largest difference {whole.max_difference}; noise floor {measured}; "
                f"{FLOOR_FACTOR} times the largest is allowed"
            )
        fused = self.fused
        if fused.equal < FUSED_EQUAL or fused.max_difference > FUSED_MAX_DIFFERENCE:
            worst = min(self.points, key=lambda point: point.fused.equal)
            found.append(
                f"fused: ONNX Runtime's kernels give {fused.equal:.4%} of the literal graph's codes, largest difference "
                f"{fused.max_difference}; worst at {worst.id!r} ({worst.fused.equal:.4%})"
            )
        if not self.outputs.top1_agreement >= TOP1_AGREEMENT:
            found.append(f"outputs: the largest entry is the same on {self.outputs.top1_agreement:.2%}, expected {TOP1_AGREEMENT:.1%}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether nothing is out of its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `parity.json`."""
        worst = self.worst_layer
        return {
            "examples": self.examples,
            "passed": self.passed,
            "remainder": self.remainder,
            "failures": list(self.failures),
            "limits": {
                "local_equal": self.limits.equal,
                "local_max_difference": LOCAL_MAX_DIFFERENCE,
                "local_point_equal": self.limits.point_equal,
                "local_output_difference": self.limits.output_difference,
                "fused_equal": FUSED_EQUAL,
                "fused_max_difference": FUSED_MAX_DIFFERENCE,
                "noise_floor_factor": FLOOR_FACTOR,
                "top1_agreement": TOP1_AGREEMENT,
            },
            "local": self.local.to_dict(),
            "end_to_end": self.end_to_end.to_dict(),
            "noise_floor": self.noise_floor.to_dict(),
            "compiled": self.compiled.to_dict(),
            "perturbed": self.perturbed.to_dict(),
            "fused": self.fused.to_dict(),
            "outputs": asdict(self.outputs),
            "local_output_difference": self.local_output_difference,
            "first_divergence": asdict(self.first_divergence) if self.first_divergence is not None else None,
            "worst_layer": {"point": worst.id, "layers": list(worst.layers), "local_equal": worst.local.equal} if worst else None,
            "points": [point.to_dict() for point in self.points],
            "structure": [asdict(check) for check in self.structure],
        }
