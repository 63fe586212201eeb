"""What a comparison of int8 codes found: per point and over all points, local, end to end, and the noise floor."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tfqat.proof.differences import CodeDifference, OutputParity
from tfqat.proof.limits import (
    END_TO_END_TIES,
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
        if local.agreeing < limits.equal or local.max_difference > LOCAL_MAX_DIFFERENCE:
            worst = min(self.points, key=lambda point: point.local.agreeing)
            made_by = f", made by {', '.join(map(repr, worst.layers))}" if worst.layers else ""
            found.append(
                f"local: {local.equal:.5%} equal, largest difference {local.max_difference}; "
                f"worst at {worst.id!r} ({worst.local.equal:.5%}){made_by}"
            )
        if self.first_divergence is not None and self.first_divergence != self.output_divergence:
            found.append(f"first divergence: {self.first_divergence}")
        for point in self.points:
            if point.local.unexplained > max(LOCAL_POINT_TIES, (1 - limits.point_equal) * point.local.codes):
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
