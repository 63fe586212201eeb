"""How SVG is written: escaped elements, linear and log scales, round ticks, and labels pushed apart. Colours live in the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A map from values in [lo, hi] to pixels in [start, end], linear or by logarithm."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`; a value outside [lo, hi] goes to the nearer end."""
        lo, hi, value = (math.log10(v) if self.log else v for v in (self.lo, self.hi, min(max(value, self.lo), self.hi)))
        return self.start + (self.end - self.start) * (value - lo) / (hi - lo)


def element(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """An element; `class_` writes `class`, `text_anchor` writes `text-anchor`, numbers get one decimal, text is escaped."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{pairs}>{escape(content)}</{name}>")


def join(elements: Iterable[Markup]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(elements)


def picture(width: int, height: int, label: str, elements: Iterable[Markup], class_: str = "", description: str = "") -> Markup:
    """An `svg` of this coordinate size that fills the width it is given; a screen reader says `label`, and `description` on request."""
    content = join([element("desc", description), *elements] if description else elements)
    return element("svg", content, class_=class_, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def path(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a line through the points."""
    return "M" + "L".join(f"{_value(x)} {_value(y)}" for x, y in points)


def steps(edges: Sequence[float], tops: Sequence[float], floor: float) -> str:
    """The `d` of a filled staircase: bar i from `edges[i]` to `edges[i + 1]` with its top at `tops[i]`."""
    parts = [f"M{_value(edges[0])} {_value(floor)}"]
    parts += [f"V{_value(top)}H{_value(right)}" for top, right in zip(tops, edges[1:], strict=True)]
    return "".join([*parts, f"V{_value(floor)}Z"])


def ticks(lo: float, hi: float, count: int = 4) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten apart) within [lo, hi]."""
    raw = (hi - lo) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """The positions moved as little as is simple so that each is `gap` from the next and all lie in [lowest, highest]."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = list(positions)
    below = lowest - gap
    for index in order:
        placed[index] = below = max(placed[index], below + gap)
    above = highest + gap
    for index in reversed(order):
        placed[index] = above = min(placed[index], above - gap)
    return placed


def _value(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.1f}".removesuffix(".0")
    return str(value)
