"""The report's pictures as SVG: accuracy by stage, histograms of |x| with the candidate ranges, and training curves.

They are written by hand, not by matplotlib, so that they take their colours from the page (light or dark), stay small, and
need no font or library to be drawn. A class names what an element is; the page's CSS says how it looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tfqat.report import formats
from tfqat.report.svg import Scale, element, join, path, picture, spread, steps, ticks
from tfqat.report.view import CalibratedPoint, Histogram
from tfqat.spec import METHODS

DRAWN_BINS = 160
_ROW = 13.0


def stage_dots(metric: str, values: Mapping[str, float], exported: str | None = None) -> Markup:
    """One dot per stage on a common axis, the float level as a dashed line; `values` maps a label to a value, float first."""
    width, left, right = 440, 118, 66
    bottom = 16.0 + 28 * len(values)
    lo, hi = _padded(list(values.values()), 0.15)
    if formats.is_fraction(metric):
        hi = min(hi, max(1.0, *values.values()))
    x = Scale(lo=lo, hi=hi, start=left, end=width - right)
    reference = next(iter(values.values()))
    parts = [_vertical_grid(x, 6.0, bottom, formats.is_fraction(metric))]
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


def histogram(point: CalibratedPoint) -> Markup:
    """Counts of |x| on a log axis, one line per candidate amax (each labelled in a row of its own), the chosen one solid and bold.

    The range beyond the chosen amax, which is clipped, is shaded. A point without a histogram gives an empty string.
    """
    if point.histogram is None:
        return Markup("")
    width, height, left = 340, 216, 34
    lines = _candidates(point)
    top, bottom = 6 + _ROW * len(lines), height - 22.0
    edges, counts = rebin(point.histogram, DRAWN_BINS)
    largest = max(edges[-1], *(amax for _, amax, _ in lines)) or 1.0  # a dead tensor has nothing but zeros
    x = Scale(lo=0, hi=largest * 1.01, start=left, end=width - 8)
    y = Scale(lo=0.5, hi=10 ** math.ceil(math.log10(max(*counts, 10))), start=bottom, end=top, log=True)
    chosen = next(amax for _, amax, is_chosen in lines if is_chosen)
    parts = [
        _decades(y, left, width - 8),
        element("rect", class_="clipped", x=x(chosen), y=top, width=max(0.0, x(x.hi) - x(chosen)), height=bottom - top),
        element("path", class_="bars", d=steps([x(edge) for edge in edges], [y(count) for count in counts], bottom)),
        _horizontal_axis(x, bottom, ticks(0, x.hi, 5)),
        _amax_lines(lines, x, bottom),
    ]
    return picture(width, height, f"{point.id}: histogram of |x|, chosen amax {formats.number(chosen)}", parts, "histogram")


def curves(title: str, series: Mapping[str, Sequence[float]], epochs: Sequence[float], levels: Mapping[str, float]) -> Markup:
    """Lines over epochs with their names at the right end, and dashed level lines, such as the float model's value."""
    width, height, left, right = 330, 200, 48, 66
    drawn = {label: [(e, v) for e, v in zip(epochs, values, strict=True) if math.isfinite(v)] for label, values in series.items()}
    drawn = {label: points for label, points in drawn.items() if points}
    values = [value for points in drawn.values() for _, value in points] + list(levels.values())
    lo, hi = _padded(values, 0.08)
    y = Scale(lo=lo, hi=hi, start=height - 26, end=12)
    first, last = min(epochs), max(epochs)
    x = Scale(lo=first - (first == last) * 0.5, hi=last + (first == last) * 0.5, start=left + 6, end=width - right - 6)
    ends = [(label, f"level {label.lower()}", value) for label, value in levels.items()]
    ends += [(label, f"curve {label}", points[-1][1]) for label, points in drawn.items()]
    whole = [epoch for epoch in ticks(x.lo, x.hi, min(6, max(1, round(x.hi - x.lo)))) if epoch == round(epoch)]
    parts = [_value_axis(title, y, left, width - right), _horizontal_axis(x, height - 26, whole)]
    parts += [element("line", class_=f"level {label.lower()}", x1=left, x2=width - right, y1=y(v), y2=y(v)) for label, v in levels.items()]
    parts += [_curve(label, [(x(epoch), y(value)) for epoch, value in points]) for label, points in drawn.items()]
    heights = spread([y(value) for _, _, value in ends], 13, 12, height - 26)
    parts += [
        element("text", label, class_=f"end {class_}", x=width - right + 6, y=place + 4)
        for (label, class_, _), place in zip(ends, heights, strict=True)
        if len(drawn) > 1 or label in levels
    ]
    return picture(width, height, f"{title} by epoch", parts, "curves")


def rebin(histogram: Histogram, bins: int) -> tuple[list[float], list[float]]:
    """The histogram in at most `bins` bins, empty bins beyond the largest value dropped: edges (n + 1) and counts (n).

    >>> rebin(Histogram(bin_width=0.5, counts=(4, 2, 1, 1, 1, 0), max=2.4), 3)
    ([0.0, 1.0, 2.0, 3.0], [6, 2, 1])
    """
    counts = list(histogram.counts)
    while len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    group = -(-len(counts) // bins)
    merged = [sum(counts[start : start + group]) for start in range(0, len(counts), group)]
    return [index * group * histogram.bin_width for index in range(len(merged) + 1)], merged


def _candidates(point: CalibratedPoint) -> list[tuple[str, float, bool]]:
    """(name, amax, chosen) for each candidate; a range that none of the four gave is one more, so that exactly one is chosen."""
    name = point.method.split()[0]
    known = {method: point.candidates[method] for method in METHODS if point.candidates and method in point.candidates}
    if name not in known:
        known[name] = point.amax[0]
    return [(method, amax, method == name) for method, amax in known.items()]


def _amax_lines(lines: Sequence[tuple[str, float, bool]], x: Scale, bottom: float) -> Markup:
    """A line per candidate from a row of its own down, with its label left of it, or right of it where there is no room.

    Rows go to the right-hand labels from the smallest amax up, then to the left-hand labels from the largest down, so that a
    line hardly ever runs through the label of another. The chosen line is drawn over the others, the labels over all lines.
    """
    named = [(f"{method} {formats.number(amax)}", method, amax, chosen) for method, amax, chosen in lines]
    right = sorted((item for item in named if x(item[2]) < 7 * len(item[0]) + 8), key=lambda item: item[2])
    left = sorted((item for item in named if item not in right), key=lambda item: -item[2])
    drawn, labels = [], []
    for row, (text, method, amax, chosen) in enumerate([*right, *left]):
        style = f"{method if method in METHODS else 'fixed'}{' chosen' if chosen else ''}"
        anchor, offset = ("start", 5) if row < len(right) else ("end", -5)
        place, y = x(amax), 6 + _ROW * row
        drawn.append((chosen, element("line", class_=f"amax {style}", x1=place, x2=place, y1=y, y2=bottom)))
        labels.append(element("text", text, class_=f"range {style}", x=place + offset, y=y + 9, text_anchor=anchor))
    return join([line for _, line in sorted(drawn, key=lambda item: item[0])] + labels)


def _curve(label: str, points: Sequence[tuple[float, float]]) -> Markup:
    dots = [element("circle", class_=f"curve {label}", cx=x, cy=y, r=2.5) for x, y in points] if len(points) <= 40 else []
    return join([element("path", class_=f"curve {label}", d=path(points)), *dots])


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """The range of the values with `share` of it added on both sides; never empty."""
    lo, hi = min(values), max(values)
    margin = (hi - lo) * share or abs(hi) * share or 1.0
    return lo - margin, hi + margin


def _vertical_grid(x: Scale, top: float, bottom: float, fraction: bool) -> Markup:
    values = ticks(x.lo, x.hi, 5)
    texts = [f"{round(100 * value, 6):g}%" if fraction else formats.number(value) for value in values]
    lines = [element("line", class_="grid", x1=x(value), x2=x(value), y1=top, y2=bottom) for value in values]
    labels = [
        element("text", text, class_="tick", x=x(value), y=bottom + 16, text_anchor="middle")
        for value, text in zip(values, texts, strict=True)
    ]
    return join([*lines, *labels])


def _horizontal_axis(x: Scale, y: float, values: Sequence[float]) -> Markup:
    axis = element("line", class_="axis", x1=min(x.start, x(x.lo)), x2=x.end, y1=y, y2=y)
    labels = [element("text", formats.number(v), class_="tick", x=x(v), y=y + 15, text_anchor="middle") for v in values]
    return join([axis, *labels])


def _value_axis(name: str, y: Scale, left: float, right: float) -> Markup:
    values = ticks(y.lo, y.hi, 5)
    fraction = formats.is_fraction(name)
    texts = [f"{round(100 * value, 6):g}%" if fraction else formats.number(value, 6) for value in values]
    lines = [element("line", class_="grid", x1=left, x2=right, y1=y(value), y2=y(value)) for value in values]
    labels = [
        element("text", text, class_="tick", x=left - 7, y=y(value) + 4, text_anchor="end")
        for value, text in zip(values, texts, strict=True)
    ]
    return join([*lines, *labels])


def _decades(y: Scale, left: float, right: float) -> Markup:
    """A grid line per power of ten (every second or third where there are many)."""
    highest = round(math.log10(y.hi))
    parts = []
    for exponent in range(0, highest + 1, 1 + highest // 5):
        place = y(10.0**exponent)
        text = formats.number(10**exponent) if exponent < 2 else f"10{formats.superscript(exponent)}"
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=place, y2=place))
        parts.append(element("text", text, class_="tick", x=left - 5, y=place + 4, text_anchor="end"))
    return join(parts)
