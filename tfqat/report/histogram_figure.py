"""The picture of a calibrated range: how often each |x| occurs, and the amax that each calibrator proposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tfqat.report import formats
from tfqat.report.axes import decade_labels, horizontal_axis, horizontal_grid
from tfqat.report.calibration_view import CalibratedPoint
from tfqat.report.svg import Scale, element, join, picture, steps, ticks
from tfqat.spec import METHODS

DRAWN_BINS = 160
WIDTH, LEFT, PLOT = 340, 34, 136.0
ROW = 13.0
LABEL = 24
"""Characters of a row of a label: so many have room on one side of a line, wherever it stands."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """One amax, and the calibrators that propose it: those whose values would be written alike, so that their lines coincide."""

    names: tuple[str, ...]
    amax: float
    chosen: str | None = None

    @property
    def style(self) -> str:
        """The classes of its line: the chosen calibrator, else the one that it is of, else `several`."""
        kinds = {kind(name) for name in ([self.chosen] if self.chosen else self.names)}
        return f"{kinds.pop() if len(kinds) == 1 else 'several'}{' chosen' if self.chosen else ''}"

    @property
    def text(self) -> str:
        """The label: `percentile 99.99, mse 5.1`."""
        return f"{', '.join(self.names)} {formats.number(self.amax)}"


def kind(name: str) -> str:
    """The class of a calibrator, which gives its colour: `percentile` for `percentile 99.9`, `fixed` for what is none."""
    first = name.split()[0]
    return first if first in METHODS else "fixed"


def histogram(point: CalibratedPoint) -> Markup:
    """Counts of |x| on a log axis, a labelled line for the amax of every calibrator, the chosen one solid and bold.

    The range beyond the chosen amax, which is clipped, is shaded. A point without a histogram gives an empty string.
    """
    if point.histogram is None:
        return Markup("")
    found = ranges(point)
    counts, largest = point.histogram.uniform(DRAWN_BINS).tolist(), point.histogram.largest
    reach = max(largest, *(line.amax for line in found)) or 1.0  # a dead tensor has nothing but zeros
    x = Scale(lo=0, hi=reach * 1.01, start=LEFT, end=WIDTH - 8)
    rows, lines = _amax_lines(found, x)
    top = 6 + ROW * rows
    bottom = top + PLOT
    y = Scale(lo=0.5, hi=10 ** math.ceil(math.log10(max(*counts, 10))), start=bottom, end=top, log=True)
    chosen = next(line for line in found if line.chosen)
    edges = np.linspace(0, largest, DRAWN_BINS + 1).tolist()
    parts = [
        horizontal_grid(y, decade_labels(y), LEFT, WIDTH - 8),
        element("rect", class_="clipped", x=x(chosen.amax), y=top, width=x.end - x(chosen.amax), height=PLOT),
        element("path", class_="bars", d=steps([x(edge) for edge in edges], [y(count) for count in counts], bottom)),
        horizontal_axis(x, bottom, ticks(0, x.hi, 5)),
        lines,
    ]
    label = f"{point.id}: histogram of |x|, chosen amax {formats.number(chosen.amax)}"
    return picture(WIDTH, int(bottom) + 22, label, parts, "histogram", "amax: " + "; ".join(line.text for line in found))


def ranges(point: CalibratedPoint) -> list[Range]:
    """The lines of a point, of which exactly one is chosen; an amax that no candidate gave is one more."""
    named, chosen = dict(point.candidates or {}), point.calibrator
    # amax is stored as float32, the candidates are not.
    if not math.isclose(named.get(chosen, math.inf), point.amax[0], rel_tol=1e-5):
        chosen = "chosen" if chosen in named else chosen
        named[chosen] = point.amax[0]
    alike: dict[str, list[str]] = {}
    for name, amax in named.items():
        alike.setdefault(formats.number(amax), []).append(name)
    return [
        Range(names=tuple(names), amax=named[chosen if chosen in names else names[0]], chosen=chosen if chosen in names else None)
        for names in alike.values()
    ]


def _amax_lines(found: Sequence[Range], x: Scale) -> tuple[int, Markup]:
    """The rows that all labels take, and a line per range from the row of its label down, with the label at its left or its right side.

    Rows go to the right-hand labels from the smallest amax up, then to the left-hand labels from the largest down, so that a
    line hardly ever runs through the label of another. The chosen line is drawn over the others, the labels over all lines.
    """
    labels = {line.text: _rows(line) for line in found}
    total = sum(len(rows) for rows in labels.values())
    right = sorted((line for line in found if x(line.amax) < 6 * _length(labels[line.text]) + LEFT), key=lambda line: line.amax)
    left = sorted((line for line in found if line not in right), key=lambda line: -line.amax)
    lines, texts, row = [], [], 0
    for line in [*right, *left]:
        anchor, offset = ("start", 5) if line in right else ("end", -5)
        place, y = x(line.amax), 6 + ROW * row
        drawn = element("line", class_=f"amax {line.style}", x1=place, x2=place, y1=y, y2=6 + ROW * total + PLOT)
        lines.append((line.chosen is not None, drawn))
        for pieces in labels[line.text]:
            texts.append(_label_row(pieces, place + offset, 15 + ROW * row, anchor))
            row += 1
    return total, join([line for _, line in sorted(lines, key=lambda item: item[0])] + texts)


def _rows(line: Range) -> list[list[tuple[str, str]]]:
    """The label as rows of (text, classes), broken between names; a percentile after another drops the word."""
    rows: list[list[tuple[str, str]]] = []
    for index, name in enumerate(line.names):
        again = index and kind(name) == kind(line.names[index - 1]) == "percentile"
        end = "," if index + 1 < len(line.names) else f" {formats.number(line.amax)}"
        piece = (name.removeprefix("percentile ") if again else name) + end
        if not rows or _length([[*rows[-1], (piece, "")]]) > LABEL:
            rows.append([])
        rows[-1].append((piece, f"{kind(name)}{' chosen' if name == line.chosen else ''}"))
    return rows


def _length(rows: Sequence[Sequence[tuple[str, str]]]) -> int:
    """Characters of the longest row."""
    return max(len(" ".join(text for text, _ in row)) for row in rows)


def _label_row(pieces: Sequence[tuple[str, str]], x: float, y: float, anchor: str) -> Markup:
    if len(pieces) == 1:
        return element("text", pieces[0][0], class_=f"range {pieces[0][1]}", x=x, y=y, text_anchor=anchor)
    names = Markup(" ").join(element("tspan", text, class_=style) for text, style in pieces)
    return element("text", names, class_="range", x=x, y=y, text_anchor=anchor)
