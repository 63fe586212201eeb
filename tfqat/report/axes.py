"""The axes of a picture: the range that is shown, grid lines, and the texts at them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tfqat.report import formats
from tfqat.report.svg import Scale, element, join, ticks


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """The range of the values with `share` of it added on both sides; never empty."""
    lo, hi = min(values), max(values)
    margin = (hi - lo) * share or abs(hi) * share or 1.0
    return lo - margin, hi + margin


def value_labels(scale: Scale, metric: str) -> dict[float, str]:
    """About five round values of a metric within the scale, and their texts: percentages for a share."""
    fraction = formats.is_fraction(metric)
    return {value: f"{round(100 * value, 6):g}%" if fraction else formats.number(value, 6) for value in ticks(scale.lo, scale.hi, 5)}


def decade_labels(scale: Scale) -> dict[float, str]:
    """The powers of ten within the scale (every second or third where there are many), and their texts."""
    lowest, highest = math.ceil(math.log10(scale.lo) - 1e-9), math.floor(math.log10(scale.hi) + 1e-9)
    exponents = range(lowest, highest + 1, 1 + (highest - lowest) // 5)
    return {10.0**e: formats.number(10.0**e) if -4 < e < 2 else f"10{formats.superscript(e)}" for e in exponents}


def vertical_grid(x: Scale, labels: Mapping[float, str], top: float, bottom: float) -> Markup:
    """A line per label from `top` to `bottom`, with the text below it."""
    lines = [element("line", class_="grid", x1=x(value), x2=x(value), y1=top, y2=bottom) for value in labels]
    texts = [element("text", text, class_="tick", x=x(value), y=bottom + 16, text_anchor="middle") for value, text in labels.items()]
    return join([*lines, *texts])


def horizontal_grid(y: Scale, labels: Mapping[float, str], left: float, right: float) -> Markup:
    """A line per label from `left` to `right`, with the text left of it."""
    lines = [element("line", class_="grid", x1=left, x2=right, y1=y(value), y2=y(value)) for value in labels]
    texts = [element("text", text, class_="tick", x=left - 6, y=y(value) + 4, text_anchor="end") for value, text in labels.items()]
    return join([*lines, *texts])


def horizontal_axis(x: Scale, y: float, values: Sequence[float]) -> Markup:
    """The axis itself, with the numbers below it."""
    axis = element("line", class_="axis", x1=min(x.start, x(x.lo)), x2=x.end, y1=y, y2=y)
    texts = [element("text", formats.number(v), class_="tick", x=x(v), y=y + 15, text_anchor="middle") for v in values]
    return join([axis, *texts])


def whole_ticks(x: Scale) -> list[float]:
    """At most about six whole numbers within the scale."""
    return [value for value in ticks(x.lo, x.hi, min(6, max(1, round(x.hi - x.lo)))) if value == round(value)]
