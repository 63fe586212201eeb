"""What a comparison of two Q/DQ graphs found: points, scales, weights, codes and outputs, and whether they compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tfqat.proof.differences import CodeDifference, OutputParity
from tfqat.proof.limits import FLOAT32, TOP1_AGREEMENT

# Of all codes, end to end. Graphs with the same numbers in them can differ by the rounding of their operations alone, which one flipped
# code carries on; of other numbers, nothing but a few ties is asked for.
EQUAL, EQUAL_OF_SAME_NUMBERS = FLOAT32.equal, 0.99
COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """The first point, in the first graph's order, or else the output, where the graphs differ, and what differs right there."""

    point: str
    equal: float
    max_difference: float
    cause: str


@dataclass(frozen=True, kw_only=True)
class GraphComparison:
    """Two graphs that were run literally on the same inputs.

    Attributes:
        first, second: the files.
        data: where the inputs came from.
        examples: how many there were.
        only_in_first, only_in_second: the points and weights that the other lacks, by name.
        scales: the points whose scales differ: (of the first, of the second).
        weights: the weights whose codes or scales differ, and how.
        constants: the other float constants, such as biases, that differ.
        points: the codes of each common point, code minus zero point.
        outputs: the outputs.
        output_difference: their largest difference, as a share of the largest output.
        first_difference: where the graphs begin to differ; None if all codes and the outputs agree.
    """

    first: str
    second: str
    data: str
    examples: int
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]
    weights: Mapping[str, str]
    constants: tuple[str, ...]
    points: Mapping[str, CodeDifference]
    outputs: OutputParity
    output_difference: float
    first_difference: FirstDifference | None

    @property
    def codes(self) -> CodeDifference:
        """All common points."""
        return CodeDifference.total(self.points.values())

    @property
    def same_numbers(self) -> bool:
        """Whether both hold the same points, scales, weights and constants."""
        return not (self.only_in_first or self.only_in_second or self.scales or self.weights or self.constants)

    @property
    def limit(self) -> float:
        """The share of all codes that must be equal."""
        return EQUAL_OF_SAME_NUMBERS if self.same_numbers else EQUAL

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of its limit; empty if the graphs compute the same."""
        found = []
        for names, where in ((self.only_in_first, self.first), (self.only_in_second, self.second)):
            if names:
                found.append(f"only in {where}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
        codes = self.codes
        if codes.equal < self.limit:
            found.append(f"codes: {codes.equal:.4%} equal, expected {self.limit:.2%}; largest difference {codes.max_difference}")
        if not codes.different and not self.output_difference <= FLOAT32.output_difference:
            found.append(
                f"outputs: from equal codes {self.output_difference:.2e} of the largest one apart, expected at most "
                f"{FLOAT32.output_difference:.0e}"
            )
        if not self.outputs.cosine >= COSINE:
            found.append(f"outputs: cosine {self.outputs.cosine:.6f}, expected {COSINE}")
        if not self.outputs.top1_agreement >= TOP1_AGREEMENT:
            found.append(f"outputs: the largest entry is the same on {self.outputs.top1_agreement:.2%}, expected {TOP1_AGREEMENT:.1%}")
        if found and self.first_difference is not None:
            found.append(f"first difference: {self.first_difference.point!r}: {self.first_difference.cause}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether nothing is out of its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        limits = {"equal": self.limit, "output_difference": FLOAT32.output_difference, "cosine": COSINE, "top1_agreement": TOP1_AGREEMENT}
        return {
            "first": self.first,
            "second": self.second,
            "data": self.data,
            "examples": self.examples,
            "passed": self.passed,
            "failures": list(self.failures),
            "limits": limits,
            "only_in_first": list(self.only_in_first),
            "only_in_second": list(self.only_in_second),
            "scales": {name: list(pair) for name, pair in self.scales.items()},
            "weights": dict(self.weights),
            "constants": list(self.constants),
            "codes": self.codes.to_dict(),
            "outputs": asdict(self.outputs),
            "output_difference": self.output_difference,
            "first_difference": asdict(self.first_difference) if self.first_difference is not None else None,
            "points": [{"id": name, "equal": one.equal, "max_difference": one.max_difference} for name, one in self.points.items()],
        }
