"""What sensitivity analysis found, as data: `sensitivity.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfqat.analysis.raised import recipe_text
from tfqat.analysis.search import Search
from tfqat.placement.plan import Placement


@dataclass(frozen=True, kw_only=True)
class UnitSensitivity:
    """How much one unit loses.

    Attributes:
        name: of the unit.
        layers: that are switched together.
        class_name: of the layer called `name`.
        num_bits: the least width among its quantizers.
        macs: multiply-accumulates for one example.
        score: how much worse the model gets by quantizing this unit: larger is worse. An estimated output error for the method `fast`,
            else the drop of the metric.
        value: the metric that was measured for it; None if it was not.
        latency_ms: measured milliseconds for one example, `float` and `int8`; None if they were not.
    """

    name: str
    layers: tuple[str, ...]
    class_name: str
    num_bits: int
    macs: int
    score: float
    value: float | None = None
    latency_ms: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "class_name": self.class_name,
            "num_bits": self.num_bits,
            "macs": self.macs,
            "latency_ms": dict(self.latency_ms) if self.latency_ms else None,
            "score": self.score,
            "value": self.value,
        }


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The sensitivity of a model's units, the most sensitive one first, and the placement that a goal led to.

    Attributes:
        method: `fast`, `leave_one_in` or `leave_one_out`.
        metric: what was measured.
        higher_is_better: of the metric.
        examples: that were measured on.
        float_value: the metric of the float model.
        quantized_value: the metric with every unit as planned.
        units: by descending score.
        search: what the goal led to; None without one.
        placement: as planned but for the units that `search` raised; None without a goal.
        lines: what to add to the `quantization` block of a recipe for this placement; empty if nothing is raised.
        evaluations: how many sets of units were measured.
        seconds: that all of it took.
    """

    method: str
    metric: str
    higher_is_better: bool
    examples: int
    float_value: float
    quantized_value: float
    units: tuple[UnitSensitivity, ...]
    search: Search | None
    placement: Placement | None
    lines: Mapping[str, Any]
    evaluations: int
    seconds: float

    @property
    def recipe(self) -> str:
        """`lines` as YAML; the empty string if there are none."""
        return recipe_text(self.lines)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; the placement has a file of its own."""
        return {
            "method": self.method,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "examples": self.examples,
            "float": self.float_value,
            "quantized": self.quantized_value,
            "seconds": round(self.seconds, 2),
            "evaluations": self.evaluations,
            "units": [unit.to_dict() for unit in self.units],
            "search": self.search.to_dict() if self.search else None,
            "recipe": self.recipe,
        }


def loss_text(metric: str, higher_is_better: bool, drop: float, reference: float) -> str:
    """How much a unit loses, for people: `-0.43 accuracy`, in points where more is better and at most 1, else `+0.012 loss`."""
    if not higher_is_better:
        return f"{drop:+.3g} {metric.replace('_', ' ')}"
    return f"{-100 * drop:+.2f} {metric}" if 0 <= reference <= 1 else f"{-drop:+.3g} {metric}"
