"""The pictures of accuracy as SVG: by stage, and over the epochs of training.

They are written by hand, not by matplotlib, so that they take their colours from the page (light or dark), stay small, and
need no font or library to be drawn. A class names what an element is; the page's CSS says how it looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tfqat.report import formats
from tfqat.report.axes import horizontal_axis, horizontal_grid, padded, value_labels, vertical_grid, whole_ticks
from tfqat.report.svg import Scale, element, join, path, picture, spread


def stage_dots(metric: str, values: Mapping[str, float], exported: str | None = None) -> Markup:
    """One dot per stage on a common axis, the float level as a dashed line; `values` maps a label to a value, float first."""
    width, left, right = 440, 118, 66
    bottom = 16.0 + 28 * len(values)
    lo, hi = padded(list(values.values()), 0.15)
    if formats.is_fraction(metric):
        hi = min(hi, max(1.0, *values.values()))
    x = Scale(lo=lo, hi=hi, start=left, end=width - right)
    reference = next(iter(values.values()))
    parts = [vertical_grid(x, value_labels(x, metric), 6.0, bottom)]
    parts.append(element("line", class_="level float", x1=x(reference), x2=x(reference), y1=6, y2=bottom))
    for index, (label, value) in enumerate(values.items()):
        y = 22.0 + 28 * index
        shipped = " shipped" if label == exported else ""
        parts += [
            element("text", label, class_=f"name{shipped}", x=left - 12, y=y + 4, text_anchor="end"),
            element("line", class_="stem", x1=x(reference), x2=x(value), y1=y, y2=y),
            element("circle", class_=f"dot{shipped}", cx=x(value), cy=y, r=6),
            element("text", formats.metric_value(metric, value), class_="value", x=width - right + 10, y=y + 4),
        ]
    return picture(width, int(bottom) + 24, f"{metric} by stage", parts, "dots")


def curves(title: str, series: Mapping[str, Sequence[float]], epochs: Sequence[float], levels: Mapping[str, float]) -> Markup:
    """Lines over epochs with their names at the right end, and dashed level lines, such as the float model's value."""
    width, height, left, right = 330, 200, 48, 66
    drawn = {label: [(e, v) for e, v in zip(epochs, values, strict=True) if math.isfinite(v)] for label, values in series.items()}
    drawn = {label: points for label, points in drawn.items() if points}
    values = [value for points in drawn.values() for _, value in points] + list(levels.values())
    lo, hi = padded(values, 0.08)
    y = Scale(lo=lo, hi=hi, start=height - 26, end=12)
    first, last = min(epochs), max(epochs)
    x = Scale(lo=first - (first == last) * 0.5, hi=last + (first == last) * 0.5, start=left + 6, end=width - right - 6)
    ends = [(label, f"level {label.lower()}", value) for label, value in levels.items()]
    ends += [(label, f"curve {label}", points[-1][1]) for label, points in drawn.items()]
    parts = [horizontal_grid(y, value_labels(y, title), left, width - right), horizontal_axis(x, height - 26, whole_ticks(x))]
    parts += [element("line", class_=f"level {label.lower()}", x1=left, x2=width - right, y1=y(v), y2=y(v)) for label, v in levels.items()]
    parts += [_curve(label, [(x(epoch), y(value)) for epoch, value in points]) for label, points in drawn.items()]
    heights = spread([y(value) for _, _, value in ends], 13, 12, height - 26)
    parts += [
        element("text", label, class_=f"end {class_}", x=width - right + 6, y=place + 4)
        for (label, class_, _), place in zip(ends, heights, strict=True)
        if len(drawn) > 1 or label in levels
    ]
    return picture(width, height, f"{title} by epoch", parts, "curves")


def _curve(label: str, points: Sequence[tuple[float, float]]) -> Markup:
    dots = [element("circle", class_=f"curve {label}", cx=x, cy=y, r=2.5) for x, y in points] if len(points) <= 40 else []
    return join([element("path", class_=f"curve {label}", d=path(points)), *dots])
