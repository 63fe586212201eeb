"""The picture of `tfqat bench`: throughput over batch size, a line for each graph and runtime; an SVG file of its own."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tfqat.engines.bench import Timing
from tfqat.report import formats
from tfqat.report.axes import horizontal_grid, vertical_grid
from tfqat.report.svg import Scale, element, path, picture, spread, ticks

_COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#57606a")
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}.grid{stroke:#d0d7de}.tick{fill:#57606a}.line{fill:none;stroke-width:2}"
    ".title{fill:#1f2328;font-weight:600}"
)


def throughput(timings: Sequence[Timing]) -> str:
    """The picture of all timings, at least one."""
    width, height, left, right, bottom = 640, 320, 64, 190, 286
    lines: dict[str, list[Timing]] = {}
    for timing in timings:
        lines.setdefault(f"{timing.model}, {timing.runtime}", []).append(timing)
    sizes = sorted({timing.batch for timing in timings})
    x = Scale(lo=sizes[0] * 0.9, hi=sizes[-1] * 1.1, start=left, end=width - right, log=True)
    y = Scale(lo=0.0, hi=1.1 * max(timing.throughput for timing in timings), start=bottom, end=34)
    parts = [
        element("style", Markup(_STYLE)),
        element("text", "examples per second by batch size", class_="title", x=left, y=20),
        horizontal_grid(y, {value: formats.integer(value) for value in ticks(y.lo, y.hi)}, left, width - right),
        vertical_grid(x, {float(size): str(size) for size in sizes}, 34, bottom),
    ]
    ends = spread([y(found[-1].throughput) for found in lines.values()], 15, 40, bottom)
    for (label, found), colour, end in zip(lines.items(), _COLOURS * len(lines), ends, strict=False):
        points = [(x(timing.batch), y(timing.throughput)) for timing in sorted(found, key=lambda timing: timing.batch)]
        parts.append(element("path", class_="line", stroke=colour, d=path(points)))
        parts += [element("circle", cx=across, cy=up, r=3, fill=colour) for across, up in points]
        parts.append(element("text", label, x=width - right + 10, y=end + 4, fill=colour))
    svg = str(picture(width, height, "throughput by batch size", parts))
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + "\n"
