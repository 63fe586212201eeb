"""What a report shows of `sensitivity.json`: what quantizing each unit costs, and the search for the placement that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfqat.report.fields import numbers
from tfqat.spec import MAX_BITS


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that are switched together. `score` says how much worse quantizing them makes the metric; larger is worse.

    `latency_ms` and `value`, the metric that was measured, are empty if they were not measured.
    """

    name: str
    layers: tuple[str, ...]
    class_name: str
    num_bits: int
    macs: int
    score: float
    value: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Unit:
        """Reads one entry of `units`."""
        return cls(
            name=data["name"],
            layers=tuple(data["layers"]),
            class_name=data["class_name"],
            num_bits=int(data["num_bits"]),
            macs=int(data["macs"]),
            score=float(data["score"]),
            value=data.get("value"),
            latency_ms=numbers(data.get("latency_ms")),
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One placement that the search measured: the level (`float` or `int8`) of each unit that it leaves at higher precision."""

    raised: int
    levels: Mapping[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for the least sensitive placement: its goal, what it measured, and what it chose; `limit` is the worst value allowed."""

    goal: Mapping[str, float]
    limit: float | None
    steps: tuple[Step, ...]
    chosen: Mapping[str, str]
    value: float | None
    met: bool

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Search:
        """Reads the JSON object `search`."""
        return cls(
            goal=numbers(data["goal"]),
            limit=data.get("limit"),
            steps=tuple(
                Step(raised=int(row["raised"]), levels=_raised(row["levels"]), value=float(row["value"])) for row in data.get("steps") or ()
            ),
            chosen=_raised(data["chosen"]),
            value=data.get("value"),
            met=bool(data["met"]),
        )


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """`sensitivity.json`; `units` begin with the most sensitive one, `recipe` is the snippet that asks for the chosen placement."""

    method: str
    metric: str
    higher_is_better: bool
    examples: int
    float_value: float
    quantized_value: float
    seconds: float
    evaluations: int
    units: tuple[Unit, ...]
    search: Search | None = None
    recipe: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Reads the JSON object."""
        return cls(
            method=data["method"],
            metric=data["metric"],
            higher_is_better=bool(data["higher_is_better"]),
            examples=int(data["examples"]),
            float_value=float(data["float"]),
            quantized_value=float(data["quantized"]),
            seconds=float(data["seconds"]),
            evaluations=int(data["evaluations"]),
            units=tuple(Unit.from_dict(row) for row in data["units"]),
            search=Search.from_dict(data["search"]) if data.get("search") else None,
            recipe=data.get("recipe") or "",
        )

    @property
    def levels(self) -> Mapping[str, str]:
        """The level of each unit that the search left at higher precision; empty without a search."""
        return self.search.chosen if self.search else {}

    @property
    def narrow(self) -> bool:
        """Whether a unit is planned with fewer than 8 bits, so that `int8` is a higher precision too."""
        return any(unit.num_bits < MAX_BITS for unit in self.units)

    def curve(self) -> Sequence[tuple[int, float]]:
        """(units quantized as planned, best value of the steps that have as many), by that number."""
        best: dict[int, float] = {}
        better = max if self.higher_is_better else min
        for step in self.search.steps if self.search else ():
            if not math.isfinite(step.value):
                continue
            count = len(self.units) - step.raised
            best[count] = better(best.get(count, step.value), step.value)
        return sorted(best.items())


def _raised(levels: Mapping[str, str]) -> dict[str, str]:
    """The units that are not quantized as planned."""
    return {name: str(level) for name, level in levels.items() if level != "planned"}
