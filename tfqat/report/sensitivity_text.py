"""What the section on sensitivity says: its sentences, the words and the unit of its scores, and the rows of its table."""

from __future__ import annotations

from tfqat.report import formats
from tfqat.report.sensitivity_view import Search, Sensitivity, Unit
from tfqat.spec import MAX_BITS

METHODS = {
    "fast": "gradients estimate how far the outputs move when a layer is quantized",
    "leave_one_in": "one layer at a time is quantized, all others stay float",
    "leave_one_out": "one layer at a time stays float, all others are quantized",
}


def words(name: str) -> str:
    """`output_error` -> `output error`."""
    return name.replace("_", " ")


def summary(found: Sensitivity) -> str:
    """How sensitivity was measured, and between which values of the metric."""
    how = f" ({METHODS[found.method]})" if found.method in METHODS else ""
    low, high = (formats.metric_value(found.metric, value) for value in (found.float_value, found.quantized_value))
    evaluations = f"{formats.integer(found.evaluations)} evaluation{'s' if found.evaluations != 1 else ''}"
    return (
        f"Method {found.method}{how}. Metric {words(found.metric)} on {formats.integer(found.examples)} examples: "
        f"float {low}, quantized {high}. {evaluations} in {formats.seconds(found.seconds)}."
    )


def goal(found: Sensitivity, search: Search) -> str:
    """What the search was to reach: `at most 0.50 points below float, which is 92.14%`."""
    texts = []
    for name, value in search.goal.items():
        if name == "max_drop":
            amount = f"{100 * value:.2f} points" if formats.is_fraction(found.metric) else formats.number(value)
            texts.append(f"at most {amount} {'below' if found.higher_is_better else 'above'} float")
        elif name == "int8_share":
            texts.append(f"at least {formats.percent(value)} of multiply-accumulates in INT8")
        elif name == "latency_ms":
            texts.append(f"at most {formats.milliseconds(value)} for a batch of 1")
        else:
            texts.append(f"{words(name)} {formats.number(value)}")
    limit = f", which is {formats.metric_value(found.metric, search.limit)}" if search.limit is not None else ""
    return " and ".join(texts) + limit


def outcome(found: Sensitivity, search: Search) -> str:
    """What the search chose: `2 of 23 layers are left at higher precision: accuracy 92.19%`."""
    count = len(search.chosen)
    value = f": {words(found.metric)} {formats.metric_value(found.metric, search.value)}" if search.value is not None else ""
    return f"{count or 'None'} of {len(found.units)} layers {'is' if count == 1 else 'are'} left at higher precision{value}"


def in_points(found: Sensitivity) -> bool:
    """Whether scores are percentage points: those of a measured share; an estimate is not in the unit of the metric."""
    return found.method != "fast" and formats.is_fraction(found.metric)


def score(found: Sensitivity, value: float) -> str:
    """A score in its unit: 0.0043 of accuracy -> `0.43`."""
    return formats.number((100 if in_points(found) else 1) * value + 0.0, 3)  # + 0.0 makes 0 of -0


def score_meaning(found: Sensitivity) -> str:
    """The title of the axis of scores."""
    if found.method == "fast":
        return "estimated error of the outputs when the layer is quantized"
    alone_float = found.method == "leave_one_out"
    change = "rise" if found.higher_is_better == alone_float else "drop"
    return f"{change} of {words(found.metric)} when only this layer {'stays float' if alone_float else 'is quantized'}" + (
        ", in points" if in_points(found) else ""
    )


def counted(found: Sensitivity) -> str:
    """What the number of units that are not raised counts."""
    return "layers quantized as planned" if found.narrow else "layers in INT8"


def rows(found: Sensitivity) -> list[dict[str, str]]:
    """The table: one row for each unit, the most sensitive first; `level` is empty for what is quantized as planned."""
    macs = sum(unit.macs for unit in found.units)
    return [
        {
            "name": unit.name,
            "level": found.levels.get(unit.name, ""),
            "layers": ", ".join(unit.layers),
            "kind": unit.class_name if unit.num_bits == MAX_BITS else f"{unit.class_name}, int{unit.num_bits}",
            "macs": formats.percent(unit.macs / macs) if macs else formats.NOTHING,
            "latency": _latency(unit),
            "score": score(found, unit.score),
            "value": formats.metric_value(found.metric, unit.value),
        }
        for unit in found.units
    ]


def _latency(unit: Unit) -> str:
    """`0.1 → 0.05`, in float and in INT8, in milliseconds; empty if it was not measured."""
    return " → ".join(formats.number(unit.latency_ms.get(level), 3) for level in ("float", "int8")) if unit.latency_ms else ""
