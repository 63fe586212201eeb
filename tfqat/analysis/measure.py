"""Measures what single units, and sets of them, lose: one pass over the data for each, less what it has in common with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfqat.analysis.bench import Bench, Change, Level, Levels
from tfqat.analysis.executors import Executor
from tfqat.analysis.meters import Meter
from tfqat.errors import DataError


def checked(meter: Meter, value: float, where: str = "") -> float:
    """A measure.

    Raises:
        DataError: it is NaN or Inf.
    """
    if not math.isfinite(value):
        raise DataError(f"sensitivity: {meter.name} is {value}{where}: look at the labels and at the outputs of the model")
    return value


@dataclass
class Measurements:
    """Measures a model on data that stay the same, and counts how often.

    Args:
        bench: the model.
        batches: of inputs, or of (inputs, labels, ...).
        meter: what is measured.
        executor: computes the outputs.
        advance: called after each batch of each measurement.
    """

    bench: Bench
    batches: Sequence[Any]
    meter: Meter
    executor: Executor
    advance: Callable[[], None] = lambda: None
    count: int = 0
    _known: dict[tuple[Level, ...], float] = field(default_factory=dict, repr=False)
    _references: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)

    def sweep(self, changes: Sequence[Change], base: Levels, *, others: Level = "planned") -> dict[Change | None, float]:
        """The measure with each single change to `base`, and with none (key None)."""
        if not self.meter.needs_labels and not self._references:
            self._references = {number: outputs for number, _, outputs in self.executor.outputs((), {}, "float")}
        states: dict[Change | None, Any] = {change: self.meter.start() for change in (None, *changes)}
        for number, change, outputs in self.executor.outputs(changes, base, others):
            batch = self.batches[number]
            targets = batch[1:] if isinstance(batch, tuple) else ()
            states[change] = self.meter.add(states[change], outputs, self._references.get(number, []), targets)
            self.advance()
        self.count += len(states)
        values = {change: self._checked(change, self.meter.value(state)) for change, state in states.items()}
        for change, value in values.items():
            self._known[self._resolved({**base, **dict([change] if change else [])}, others)] = value
        return values

    def measure(self, levels: Levels, *, others: Level = "planned") -> float:
        """The measure with units at these levels."""
        key = self._resolved(levels, others)
        if key not in self._known:
            self.sweep((), levels, others=others)
        return self._known[key]

    def _resolved(self, levels: Levels, others: Level) -> tuple[Level, ...]:
        """What identifies a state of the model: the level of every unit; `int8` is as planned where that has the most bits there are."""
        found: list[Level] = []
        for unit in self.bench.units:
            level = levels.get(unit.name, others)
            found.append("planned" if level == "int8" and unit.num_bits == unit.max_bits else level)
        return tuple(found)

    def _checked(self, change: Change | None, value: float) -> float:
        return checked(self.meter, value, f" with unit {change[0]!r} at {change[1]}" if change else "")

    def drop(self, reference: float, value: float) -> float:
        """How much worse `value` is than `reference`."""
        return reference - value if self.meter.higher_is_better else value - reference
