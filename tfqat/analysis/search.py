"""Finds the placement that a goal asks for: a limit on how much the metric may fall, or a budget of INT8 share or latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.analysis.bench import Level
from tfqat.analysis.measure import Measurements
from tfqat.analysis.units import Unit
from tfqat.errors import PlacementError

_GRID = 2000  # steps that a budget is divided into
_ROUNDING = 1e-7  # a drop that is the limit but for float32 is within it
_CANDIDATES = 8  # of a greedy step, at least


@dataclass(frozen=True, kw_only=True)
class Step:
    """One set of units that was tried at higher precision, and what was measured."""

    levels: Mapping[str, Level]
    value: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"raised": len(self.levels), "levels": dict(self.levels), "value": self.value}


@dataclass(frozen=True, kw_only=True)
class Search:
    """What was tried and what was chosen.

    Attributes:
        goal: `{"max_drop": 0.005}`, `{"int8_share": 0.9}` or `{"latency_ms": 1.2}`.
        limit: the worst value that `max_drop` allows; None for a budget.
        steps: in the order they were tried.
        chosen: unit -> the level that it is raised to; the others stay as planned.
        value: the metric of the chosen set.
        met: whether it is within the limit.
    """

    goal: Mapping[str, float]
    limit: float | None
    steps: tuple[Step, ...]
    chosen: Mapping[str, Level]
    value: float
    met: bool

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "goal": dict(self.goal),
            "limit": self.limit,
            "steps": [step.to_dict() for step in self.steps],
            "chosen": dict(self.chosen),
            "value": self.value,
            "met": self.met,
        }


def within_drop(measurements: Measurements, ranked: Sequence[Unit], reference: float, max_drop: float) -> Search:
    """The smallest set of units at higher precision that keeps the metric within `max_drop` of `reference`.

    Units of fewer than 8 bits are raised to 8 bits, and only if that is not enough to float. The smallest prefix of the ranking that is
    within the limit is found by bisection; then each of its units is tried at the planned precision again; then smaller sets
    are built one unit at a time, each time the one that gains most.

    Args:
        measurements: measures sets.
        ranked: the units, the most sensitive one first.
        reference: the metric of the float model.
        max_drop: how much worse it may be, in the metric's own unit.
    """
    sets = _Sets(measurements, reference, max_drop)
    narrow = [unit for unit in ranked if unit.num_bits < unit.max_bits and unit.weights]
    base: dict[str, Level] = {}
    if sets.value(base) > 0:
        if narrow and sets.value({unit.name: "int8" for unit in narrow}) <= 0:
            base = _smallest(sets, narrow, "int8", {})
        else:
            base = _smallest(sets, ranked, "float", {unit.name: "int8" for unit in narrow})
            for unit in narrow[::-1]:
                if base.get(unit.name) == "int8" and sets.value({name: level for name, level in base.items() if name != unit.name}) <= 0:
                    del base[unit.name]
    sign = -1.0 if measurements.meter.higher_is_better else 1.0
    return Search(
        goal={"max_drop": max_drop},
        limit=reference + sign * max_drop,
        steps=sets.steps,
        chosen=base,
        value=sets.measured(base),
        met=sets.value(base) <= 0,
    )


def within_budget(
    measurements: Measurements,
    units: Sequence[Unit],
    scores: Mapping[str, float],
    costs: Mapping[str, float],
    room: float,
    goal: Mapping[str, float],
) -> Search:
    """The set of units left float that takes away the most sensitivity while its cost fits into `room`: a 0/1 knapsack, solved on a grid.

    Args:
        measurements: measures the result.
        units: all units.
        scores: unit -> sensitivity.
        costs: unit -> what it costs to leave it float; a unit that costs nothing or less is left float if it is sensitive at all.
        room: the sum of costs that is allowed.
        goal: for the result.

    Raises:
        PlacementError: there is no room even with all units as planned; says what the best is.
    """
    total = sum(max(score, 0.0) for score in scores.values())
    wanted = [unit.name for unit in units if scores[unit.name] > 1e-3 * total]
    free = [name for name in wanted if costs[name] <= 0]
    room -= sum(costs[name] for name in free)
    for name in sorted(costs, key=lambda name: costs[name]):  # float can be the faster form, which makes room
        if room < 0 and costs[name] < 0 and name not in free:
            free.append(name)
            room -= costs[name]
    if room < -1e-9 * sum(map(abs, costs.values())):
        key, value = next(iter(goal.items()))
        best = value + (room if key == "int8_share" else -room)
        raise PlacementError(f"sensitivity.budget.{key}: {value:g} cannot be met; the best that this model can is {best:.4g}")
    paid = [name for name in wanted if costs[name] > 0]
    chosen: dict[str, Level] = {name: "float" for name in (*free, *_knapsack(paid, scores, costs, max(room, 0.0)))}
    planned, value = measurements.measure({}), measurements.measure(chosen)
    steps = (Step(levels={}, value=planned), Step(levels=chosen, value=value))
    return Search(goal=goal, limit=None, steps=steps, chosen=chosen, value=value, met=True)


class _Sets:
    """Measured sets, each of them once. A value is the drop beyond what is allowed: 0 or less is within the limit."""

    def __init__(self, measurements: Measurements, reference: float, max_drop: float) -> None:
        self._measurements, self._reference, self._max_drop = measurements, reference, max_drop
        self._known: dict[frozenset[tuple[str, Level]], Step] = {}

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._known.values())

    def measured(self, levels: Mapping[str, Level]) -> float:
        key = frozenset(levels.items())
        if key not in self._known:
            self._known[key] = Step(levels=dict(levels), value=self._measurements.measure(levels))
        return self._known[key].value

    def value(self, levels: Mapping[str, Level]) -> float:
        beyond = self._measurements.drop(self._reference, self.measured(levels)) - self._max_drop
        return 0.0 if abs(beyond) <= _ROUNDING * max(1.0, abs(self._reference)) else beyond

    def best_addition(self, levels: Mapping[str, Level], candidates: Sequence[str], level: Level) -> dict[str, Level]:
        """`levels` with the one candidate that gains most."""
        missing = [(name, level) for name in candidates if frozenset({**levels, name: level}.items()) not in self._known]
        if missing:
            found = self._measurements.sweep(missing, levels)
            for name, _ in missing:
                grown = {**levels, name: level}
                self._known[frozenset(grown.items())] = Step(levels=grown, value=found[name, level])
        return min(({**levels, name: level} for name in candidates), key=self.value)


def _smallest(sets: _Sets, ranked: Sequence[Unit], level: Level, base: Mapping[str, Level]) -> dict[str, Level]:
    """A small set of units at `level`, beside those of `base`, that is within the limit; all of them if none is."""
    names = [unit.name for unit in ranked]

    def prefix(count: int) -> dict[str, Level]:
        return {**base, **dict.fromkeys(names[:count], level)}

    low, high = 0, len(names)  # `low` is beyond the limit, `high` within it as far as anything is
    if sets.value(prefix(high)) > 0:
        return prefix(high)
    count = 1
    while count < high and sets.value(prefix(count)) > 0:  # doubling first: the answer is small more often than not
        low, count = count, 2 * count
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sets.value(prefix(middle)) <= 0 else (middle, high)
    found = _pruned(sets, names, prefix(high), base)
    added = sum(found[name] != base.get(name) for name in found)
    return _grown(sets, names, level, base, added) or found


def _pruned(sets: _Sets, names: Sequence[str], levels: dict[str, Level], base: Mapping[str, Level]) -> dict[str, Level]:
    """The set less the units that it does not need, the least sensitive ones tried first."""
    for name in [name for name in reversed(names) if name in levels and levels[name] != base.get(name)]:
        without = {**{key: value for key, value in levels.items() if key != name}, **({name: base[name]} if name in base else {})}
        if sets.value(without) <= 0:
            levels = without
    return levels


def _grown(sets: _Sets, names: Sequence[str], level: Level, base: Mapping[str, Level], size: int) -> dict[str, Level] | None:
    """A set of fewer than `size` further units within the limit, built greedily; None if that finds none."""
    levels = dict(base)
    candidates = list(names[: max(_CANDIDATES, 2 * size)])
    for _ in range(size - 1):
        rest = [name for name in candidates if levels.get(name) != level]
        if not rest:
            return None
        levels = sets.best_addition(levels, rest, level)
        if sets.value(levels) <= 0:
            return levels
    return None


def _knapsack(names: Sequence[str], scores: Mapping[str, float], costs: Mapping[str, float], room: float) -> list[str]:
    """The names with the largest sum of scores whose costs, rounded up to the grid, fit into `room`."""
    if not names or room <= 0:
        return []
    sizes = [int(np.ceil(costs[name] / room * _GRID - 1e-9)) for name in names]
    best = np.zeros((len(names) + 1, _GRID + 1))
    for row, (name, size) in enumerate(zip(names, sizes, strict=True), start=1):
        best[row] = best[row - 1]
        if size <= _GRID:
            best[row, size:] = np.maximum(best[row - 1, size:], best[row - 1, : _GRID + 1 - size] + scores[name])
    chosen, left = [], _GRID
    for row in range(len(names), 0, -1):
        if best[row, left] > best[row - 1, left]:
            chosen.append(names[row - 1])
            left -= sizes[row - 1]
    return chosen[::-1]
