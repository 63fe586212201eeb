"""The pictures of sensitivity: what each layer costs, and the metric against the number of quantized layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from tfqat.report import formats, sensitivity_text
from tfqat.report.axes import decade_labels, horizontal_axis, horizontal_grid, padded, value_labels, vertical_grid, whole_ticks
from tfqat.report.sensitivity_view import Sensitivity, Step, Unit
from tfqat.report.svg import Scale, element, join, path, picture, spread, ticks

SHOWN = 40
DECADES = 6
"""The most decades of a log axis: a bar that is smaller still has no length."""
_ROW = 18
HEAD, TAIL = 14, 23
"""Characters of a long name that are shown: its beginning and its end."""


def bars(found: Sensitivity) -> Markup:
    """A horizontal bar for each of the first SHOWN units, those that the search left at higher precision coloured and labelled.

    The axis is logarithmic if all scores are positive and span more than two decades, else linear with a line at zero.
    """
    units = [unit for unit in found.units[:SHOWN] if math.isfinite(unit.score)]
    if not units:
        return Markup("")
    width, left, bottom = 760, 262, 12.0 + _ROW * len(units)
    x = _score_scale([unit.score for unit in units], left, width - 96)
    zero = x(x.lo if x.log else 0.0)
    parts = [
        vertical_grid(x, _score_labels(found, x), 6, bottom),
        *(_bar(found, unit, x, zero, 9.0 + _ROW * row) for row, unit in enumerate(units)),
        element("line", class_="axis", x1=zero, x2=zero, y1=6, y2=bottom),
    ]
    title = sensitivity_text.score_meaning(found) + (" (logarithmic)" if x.log else "")
    parts.append(element("text", title, class_="tick", x=(x.start + x.end) / 2, y=bottom + 34, text_anchor="middle"))
    extremes = f"from {sensitivity_text.score(found, units[0].score)} ({units[0].name}) to {sensitivity_text.score(found, units[-1].score)}"
    return picture(width, int(bottom) + 40, "Sensitivity by layer", parts, "sensitivity", f"{title}, {extremes} ({units[-1].name})")


def left_out(found: Sensitivity) -> str:
    """What the bars do not show: `160 less sensitive layers are left out, 1 of them at higher precision`; empty if they show all."""
    rest = found.units[SHOWN:]
    if not rest:
        return ""
    raised = sum(unit.name in found.levels for unit in rest)
    text = f"{len(rest)} less sensitive layer{'s are' if len(rest) > 1 else ' is'} left out"
    return f"{text}, {raised} of them at higher precision" if raised else text


def curve(found: Sensitivity) -> Markup:
    """A dot for each step of the search at its number of quantized layers, a line through the best of each number, and the levels.

    Levels are the float value and the worst that is allowed. Without a step the picture is empty.
    """
    steps = [step for step in found.search.steps if math.isfinite(step.value)] if found.search else []
    if found.search is None or not steps:
        return Markup("")
    width, height, left, right = 520, 264, 62, 62
    total, chosen = len(found.units), found.search.value
    counts = [total - step.raised for step in steps] + ([total - len(found.search.chosen)] if chosen is not None else [])
    levels = {"Float": found.float_value} | ({"limit": found.search.limit} if found.search.limit is not None else {})
    lo, hi = padded([*(step.value for step in steps), *levels.values(), *([chosen] if chosen is not None else [])], 0.08)
    y = Scale(lo=lo, hi=hi, start=height - 44, end=10)
    alone = 0.5 * (min(counts) == max(counts))
    x = Scale(lo=min(counts) - alone, hi=max(counts) + alone, start=left + 8, end=width - right - 8)
    parts = [
        horizontal_grid(y, value_labels(y, found.metric), left, width - right),
        horizontal_axis(x, height - 44, whole_ticks(x)),
        *(element("line", class_=f"level {name.lower()}", x1=left, x2=width - right, y1=y(v), y2=y(v)) for name, v in levels.items()),
        element("path", class_="curve best", d=path([(x(count), y(value)) for count, value in found.curve()])),
        *(_dot(found, step, x, y) for step in steps),
    ]
    if chosen is not None:
        ring = element("title", f"chosen: {formats.metric_value(found.metric, chosen)}")
        parts.append(element("circle", ring, class_="chosen", cx=x(total - len(found.search.chosen)), cy=y(chosen), r=7))
    names = spread([y(value) for value in levels.values()], 13, 12, height - 44)
    parts += [
        element("text", name, class_=f"end level {name.lower()}", x=width - right + 6, y=place + 4)
        for name, place in zip(levels, names, strict=True)
    ]
    title = f"{sensitivity_text.counted(found)}, of {total}"
    parts.append(element("text", title, class_="tick", x=(x.start + x.end) / 2, y=height - 10, text_anchor="middle"))
    said = "; ".join(f"{count}: {formats.metric_value(found.metric, value)}" for count, value in found.curve())
    label = f"{sensitivity_text.words(found.metric)} by the number of {sensitivity_text.counted(found)}"
    return picture(width, height, label, parts, "search", f"best by number: {said}")


def _score_scale(scores: Sequence[float], start: float, end: float) -> Scale:
    lo, hi = min(scores), max(scores)
    if lo > 0 and hi > 100 * lo:
        lowest = max(math.floor(math.log10(lo)), math.floor(math.log10(hi)) - DECADES)
        return Scale(lo=10.0**lowest, hi=hi, start=start, end=end, log=True)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    return Scale(lo=lo, hi=hi if hi > lo else 1.0, start=start, end=end)


def _score_labels(found: Sensitivity, x: Scale) -> dict[float, str]:
    """Round values in the unit of the scores, by the score."""
    factor = 100 if sensitivity_text.in_points(found) else 1
    shown = Scale(lo=x.lo * factor, hi=x.hi * factor, start=x.start, end=x.end, log=x.log)
    labels = decade_labels(shown) if x.log else {value: formats.number(value) for value in ticks(shown.lo, shown.hi, 5)}
    return {value / factor: text for value, text in labels.items()}


def _bar(found: Sensitivity, unit: Unit, x: Scale, zero: float, y: float) -> Markup:
    level, score = found.levels.get(unit.name, ""), sensitivity_text.score(found, unit.score)
    name = unit.name if len(unit.name) <= HEAD + TAIL + 1 else f"{unit.name[:HEAD]}…{unit.name[-TAIL:]}"
    said = element("title", f"{unit.name}: {score}" + (f", left at {level}" if level else ""))
    start, end = sorted([zero, x(unit.score)])
    style = f"unit kept-{level}" if level else "unit"
    value = [Markup.escape(score), element("tspan", level, class_=f"kept-{level}")] if level else [Markup.escape(score)]
    return join(
        [
            element("text", name, class_="name", x=x.start - 8, y=y + 9, text_anchor="end"),
            element("rect", said, class_=style, x=start, y=y, width=max(1.0, end - start), height=11),
            element("text", Markup(" ").join(value), class_="value", x=end + 6, y=y + 9),
        ]
    )


def _dot(found: Sensitivity, step: Step, x: Scale, y: Scale) -> Markup:
    """A step, with what it leaves at higher precision as a tooltip."""
    count = len(found.units) - step.raised
    names = [f"{name} ({level})" for name, level in step.levels.items()]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    said = f"{count} {sensitivity_text.counted(found)}: {formats.metric_value(found.metric, step.value)}"
    said += f"; {', '.join(names[:5])}{more}" if names else ""
    return element("circle", element("title", said), class_="step", cx=x(count), cy=y(step.value), r=3)
