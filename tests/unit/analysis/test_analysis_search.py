"""The search for the smallest set of units at higher precision, against brute force over tables of values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfqat.analysis.search import Search, _knapsack, within_budget, within_drop
from tfqat.analysis.units import Unit
from tfqat.errors import PlacementError

Levels = Mapping[str, str]


class Table:
    """Measures sets by a function of their levels, and writes down which it was asked for."""

    def __init__(self, value: Any, *, higher_is_better: bool = False) -> None:
        self._value = value
        self.meter = SimpleNamespace(higher_is_better=higher_is_better)
        self.asked: list[dict[str, str]] = []

    def measure(self, levels: Levels, *, others: str = "planned") -> float:
        assert others == "planned"
        self.asked.append(dict(levels))
        return float(self._value(levels))

    def sweep(self, changes: Sequence[tuple[str, str]], base: Levels, *, others: str = "planned") -> dict[Any, float]:
        return {None: self._value(base), **{(name, level): self.measure({**base, name: level}) for name, level in changes}}

    def drop(self, reference: float, value: float) -> float:
        return reference - value if self.meter.higher_is_better else value - reference


def unit(name: str, num_bits: int = 8) -> Unit:
    return Unit(
        name=name, layers=(name,), nodes=(name,), class_name="Conv2D", weights=(f"{name}/kernel",), edges=(), num_bits=num_bits, macs=1
    )


def units(names: str, **bits: int) -> list[Unit]:
    return [unit(name, bits.get(name, 8)) for name in names]


def additive(errors: Mapping[str, float], wide: Mapping[str, float] | None = None) -> Any:
    """The sum of the errors of the units that are not float; `wide` are those of 8 bits."""
    of = {"planned": errors, "int8": {**errors, **(wide or {})}}
    return lambda levels: sum(0.0 if levels.get(name) == "float" else of[levels.get(name, "planned")][name] for name in errors)


def found_by(table: Table, ranked: Sequence[Unit], max_drop: float) -> Search:
    return within_drop(table, ranked, 0.0, max_drop)  # type: ignore[arg-type]


def test_nothing_is_raised_where_the_placement_is_within_the_limit() -> None:
    table = Table(additive({"a": 1.0, "b": 2.0}))
    found = found_by(table, units("ba"), 3.0)
    assert (found.chosen, found.value, found.met, table.asked) == ({}, 3.0, True, [{}])
    assert (found.goal, found.limit) == ({"max_drop": 3.0}, 3.0)


def test_the_limit_of_a_metric_where_more_is_better_is_below_the_reference() -> None:
    table = Table(lambda levels: 0.9 if levels.get("a") == "float" else 0.5, higher_is_better=True)
    found = within_drop(table, units("ab"), 0.9, 0.1)  # type: ignore[arg-type]
    assert (found.chosen, found.value, found.met) == ({"a": "float"}, 0.9, True)
    assert found.limit == pytest.approx(0.8)


def test_the_smallest_prefix_is_found_by_bisection() -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    table = Table(additive({name: 26.0 - index for index, name in enumerate(names)}))
    found = found_by(table, units(names), 100.0)  # 351 planned; a to l are 26 + ... + 15 = 246, a to m 260
    assert sorted(found.chosen) == list("abcdefghijklm")
    assert len(set(map(frozenset, table.asked))) == len(table.asked) == len(found.steps)  # each set once
    assert len(table.asked) < 26 * 13


def test_units_of_the_prefix_that_are_not_needed_are_pruned() -> None:
    table = Table(additive({"a": 0.0, "b": 5.0, "c": 0.0, "d": 4.0, "e": 0.1}))
    assert found_by(table, units("abcde"), 0.5).chosen == {"b": "float", "d": "float"}


def test_a_smaller_set_outside_the_pruned_prefix_is_found_greedily() -> None:
    def value(levels: Levels) -> float:
        """Either `d`, or both of `a` and `b`."""
        raised = {name for name in levels if levels[name] == "float"}
        return 0.0 if "d" in raised or {"a", "b"} <= raised else 1.0

    assert found_by(Table(value), units("abcd"), 0.5).chosen == {"d": "float"}


def test_narrow_weights_are_raised_to_8_bits_first() -> None:
    errors, wide = {"a": 5.0, "b": 4.0, "c": 1.0}, {"a": 0.1, "b": 0.1}
    table = Table(additive(errors, wide))
    ranked = units("abc", a=4, b=4)
    assert found_by(table, ranked, 5.5).chosen == {"a": "int8"}
    assert found_by(table, ranked, 2.0).chosen == {"a": "int8", "b": "int8"}
    assert all(level == "int8" for levels in table.asked for level in levels.values())


def test_float_comes_after_8_bits_and_keeps_them_only_where_needed() -> None:
    errors, wide = {"a": 5.0, "b": 4.0, "c": 3.0}, {"a": 2.0, "b": 0.1}
    ranked = units("abc", a=4, b=4)
    assert found_by(Table(additive(errors, wide)), ranked, 0.5).chosen == {"a": "float", "b": "int8", "c": "float"}
    assert found_by(Table(additive({**errors, "b": 0.2}, wide)), ranked, 0.5).chosen == {"a": "float", "c": "float"}


def test_a_limit_that_nothing_meets_is_said_with_everything_float() -> None:
    found = found_by(Table(lambda levels: 1.0), units("ab"), 0.5)
    assert (found.met, found.value, set(found.chosen)) == (False, 1.0, {"a", "b"})


def monotone(rng: np.random.Generator, names: Sequence[str]) -> Any:
    """Errors of units, of pairs of them, and of one layer that hides the others until it is float; more float is never worse."""
    single = rng.exponential(size=len(names)) ** 2
    pair = rng.exponential(size=(len(names), len(names))) * rng.uniform(0, 0.5)

    def value(levels: Levels) -> float:
        planned = np.array([levels.get(name) != "float" for name in names], float)
        return float(planned @ single + planned @ np.triu(pair, 1) @ planned)

    return value


def disturbed(rng: np.random.Generator, names: Sequence[str]) -> Any:
    """The same, with a noise for each set but that of all."""
    smooth, noise = monotone(rng, names), {}

    def value(levels: Levels) -> float:
        key = frozenset(name for name in levels if levels[name] == "float")
        if key not in noise:
            noise[key] = rng.uniform(0.7, 1.3)
        return smooth(levels) * noise[key]

    return value


def ranked_alone(value: Any, names: Sequence[str]) -> list[Unit]:
    alone = {name: value({other: "float" for other in names if other != name}) for name in names}
    return [unit(name) for name in sorted(names, key=lambda name: -alone[name])]


@pytest.mark.parametrize("make", [monotone, disturbed])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_against_brute_force(make: Any, share: float) -> None:
    names = "abcdefgh"
    excess = []
    for seed in range(40):
        value = make(np.random.default_rng(seed), names)
        limit = share * value({})
        found = found_by(Table(value), ranked_alone(value, names), limit)
        assert found.met and found.value == value(found.chosen) <= limit
        sizes = (
            size for size in range(9) for chosen in itertools.combinations(names, size) if value(dict.fromkeys(chosen, "float")) <= limit
        )
        excess.append(len(found.chosen) - next(sizes))
    assert max(excess) <= 1 and min(excess) >= 0
    assert np.mean(np.array(excess) == 0) >= 0.8


def test_the_greedy_search_also_runs_where_all_weights_are_narrow() -> None:
    def value(levels: Levels) -> float:
        """8 bits are not enough; either `d` float, or both of `a` and `b`."""
        raised = {name for name in levels if levels[name] == "float"}
        return 0.0 if "d" in raised or {"a", "b"} <= raised else 1.0

    found = found_by(Table(value), units("abcd", a=4, b=4, c=4, d=4), 0.5)
    assert {name for name, level in found.chosen.items() if level == "float"} == {"d"}


def test_a_drop_of_exactly_the_limit_is_within_it() -> None:
    table = Table(lambda levels: 0.9 if levels.get("a") == "float" else 0.895, higher_is_better=True)
    assert within_drop(table, units("ab"), 0.9, 0.005).chosen == {}  # type: ignore[arg-type]


def test_each_step_is_a_set_that_was_measured() -> None:
    table = Table(additive({"a": 5.0, "b": 4.0, "c": 1.0}))
    found = found_by(table, units("abc"), 0.5)
    assert [dict(step.levels) for step in found.steps] == table.asked
    assert [step.value for step in found.steps] == [additive({"a": 5.0, "b": 4.0, "c": 1.0})(step.levels) for step in found.steps]
    assert found.to_dict() == {
        "goal": {"max_drop": 0.5},
        "limit": 0.5,
        "steps": [{"raised": len(step.levels), "levels": dict(step.levels), "value": step.value} for step in found.steps],
        "chosen": {"a": "float", "b": "float", "c": "float"},
        "value": 0.0,
        "met": True,
    }


def budgeted(scores: Mapping[str, float], costs: Mapping[str, float], room: float) -> Search:
    table = Table(additive(scores))
    return within_budget(table, [unit(name) for name in scores], scores, costs, room, {"latency_ms": 1.0})  # type: ignore[arg-type]


def best_sum(scores: Mapping[str, float], costs: Mapping[str, float], room: float) -> float:
    subsets = itertools.chain.from_iterable(itertools.combinations(scores, size) for size in range(len(scores) + 1))
    return max(sum(scores[name] for name in chosen) for chosen in subsets if sum(costs[name] for name in chosen) <= room)


def test_the_knapsack_against_brute_force() -> None:
    """Costs are rounded up to 1/2000 of the room: at least what a room smaller by one step for each unit would give."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores, costs = ({name: float(value) for name, value in zip("abcdefghij", rng.exponential(size=10), strict=True)} for _ in range(2))
        room = float(rng.uniform(0.05, 1.1)) * sum(costs.values())
        chosen = _knapsack(list(scores), scores, costs, room)
        assert sum(costs[name] for name in chosen) <= room
        reached = sum(scores[name] for name in chosen)
        assert best_sum(scores, costs, room * (1 - 10 / 2000)) - 1e-9 <= reached <= best_sum(scores, costs, room) + 1e-9


def test_a_budget_takes_the_knapsack_and_not_the_most_sensitive() -> None:
    found = budgeted({"big": 5.0, "one": 3.0, "two": 3.0}, {"big": 10.0, "one": 4.0, "two": 5.0}, 10.0)
    assert (found.chosen, found.value, found.met, found.limit) == ({"one": "float", "two": "float"}, 5.0, True, None)
    assert [dict(step.levels) for step in found.steps] == [{}, {"one": "float", "two": "float"}]


def test_what_costs_nothing_is_float_if_it_is_sensitive_and_gives_room() -> None:
    scores, costs = {"faster": 1.0, "free": 2.0, "idle": 0.0, "paid": 4.0}, {"faster": -3.0, "free": 0.0, "idle": -1.0, "paid": 3.0}
    assert budgeted(scores, costs, 0.0).chosen == {"faster": "float", "free": "float", "paid": "float"}
    assert budgeted({**scores, "paid": -4.0}, costs, 10.0).chosen == {"faster": "float", "free": "float"}


def test_a_budget_below_what_the_placement_costs_is_refused() -> None:
    with pytest.raises(PlacementError) as caught:
        budgeted({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": -0.25}, -0.5)
    assert str(caught.value) == "sensitivity.budget.latency_ms: 1 cannot be met; the best that this model can is 1.25"


def test_no_room_leaves_everything_as_planned() -> None:
    assert budgeted({"a": 1.0}, {"a": 2.0}, 0.0).chosen == {}


def test_a_room_that_is_negative_by_rounding_is_none() -> None:
    shares = {name: 1 / 7 for name in "abcdefg"}
    assert sum(shares.values()) != 1.0
    assert budgeted(dict.fromkeys(shares, 1.0), shares, sum(shares.values()) - 1.0).chosen == {}
