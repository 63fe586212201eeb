"""Lays a graph out in rows: every node below what it reads, and a lane of its own for every line that passes a row.

Sugiyama's method (Sugiyama, Tagawa and Toda 1981) in its short form: rows by the longest way from the inputs, barycentric order within a
row, then the positions that are nearest to the neighbours' with the order and the gaps kept (least squares, pool adjacent violators).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Item = tuple[str, int]
"""(node, row): the box of a node in its own row; in a later row the lane in which its outputs pass that row."""

_SWEEPS = 8
_PULL = 0.7


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Node -> its row; item -> the x of its centre, the smallest left edge being 0; the width of all."""

    rows: Mapping[str, int]
    centres: Mapping[Item, float]
    width: float

    def above(self, source: str, reader: str) -> Item:
        """Where the line from `source` stands in the row above `reader`."""
        return source, self.rows[reader] - 1


def layered(inputs: Mapping[str, Sequence[str]], *, box: float, lane: float) -> Layout:
    """The layout of a graph.

    Args:
        inputs: node -> the nodes that it reads, in topological order.
        box: the width of a node with the gap to the next.
        lane: the same of a line that passes a row.
    """
    rows: dict[str, int] = {}
    for node, sources in inputs.items():
        rows[node] = 1 + max((rows[source] for source in sources), default=-1)
    above = _above(inputs, rows)
    below: dict[Item, list[Item]] = {item: [] for item in above}
    for item, found in above.items():
        for other in found:
            below[other].append(item)
    widths = {item: box if rows[item[0]] == item[1] else lane for item in above}
    order = _ordered(above, below)
    centres = _centres(order, above, below, widths)
    left = min(centres[item] - widths[item] / 2 for item in centres)
    right = max(centres[item] + widths[item] / 2 for item in centres)
    return Layout(rows=rows, centres={item: x - left for item, x in centres.items()}, width=right - left)


def crossings(upper: Sequence[Item], lower: Sequence[Item], above: Mapping[Item, Sequence[Item]]) -> int:
    """How many pairs of lines between two rows cross."""
    at = {item: position for position, item in enumerate(upper)}
    ends = [(at[source], position) for position, item in enumerate(lower) for source in above[item]]
    return sum((a - c) * (b - d) < 0 for number, (a, b) in enumerate(ends) for c, d in ends[:number])


def nearest_places(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Ascending places, place i + 1 at least `gaps[i]` after place i, with the least weighted sum of squares of the moves from `wanted`."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    blocks: list[tuple[float, float, int]] = []  # mean, weight and number of the places that move together
    for value, weight, offset in zip(wanted, weights, offsets, strict=True):
        block = (value - offset, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, sum_, count = blocks.pop()
            total = sum_ + block[1]
            block = ((mean * sum_ + block[0] * block[1]) / total, total, count + block[2])
        blocks.append(block)
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _above(inputs: Mapping[str, Sequence[str]], rows: Mapping[str, int]) -> dict[Item, list[Item]]:
    """Every item, and the items of the row above that it is linked to."""
    last = dict(rows)  # the last row that the outputs of a node pass
    for node, sources in inputs.items():
        last.update({source: max(last[source], rows[node] - 1) for source in sources})
    found: dict[Item, list[Item]] = {}
    for node, sources in inputs.items():
        found[node, rows[node]] = list(dict.fromkeys((source, rows[node] - 1) for source in sources))
        found.update({(node, row): [(node, row - 1)] for row in range(rows[node] + 1, last[node] + 1)})
    return found


def _ordered(above: Mapping[Item, Sequence[Item]], below: Mapping[Item, Sequence[Item]]) -> list[list[Item]]:
    """The items of every row from left to right: of all orders that the sweeps pass through, the one with the fewest crossings."""
    order: list[list[Item]] = [[] for _ in range(1 + max(row for _, row in above))]
    for item in above:
        order[item[1]].append(item)
    best, fewest = order, _all_crossings(order, above)
    for sweep in range(_SWEEPS):
        order = [list(row) for row in order]
        down = sweep % 2 == 0
        numbers = range(1, len(order)) if down else range(len(order) - 2, -1, -1)
        for number in numbers:
            neighbours = above if down else below
            order[number] = _by_barycentre(order[number], order[number - 1 if down else number + 1], neighbours)
        count = _all_crossings(order, above)
        if count < fewest:
            best, fewest = order, count
    return best


def _by_barycentre(row: Sequence[Item], beside: Sequence[Item], linked: Mapping[Item, Sequence[Item]]) -> list[Item]:
    """The items of a row by the mean position of those that they are linked to in the row beside it."""
    at = {item: position for position, item in enumerate(beside)}
    means = {item: _mean((at[other] for other in linked[item]), position) for position, item in enumerate(row)}
    return sorted(row, key=means.__getitem__)


def _all_crossings(order: Sequence[Sequence[Item]], above: Mapping[Item, Sequence[Item]]) -> int:
    return sum(crossings(upper, lower, above) for upper, lower in itertools.pairwise(order))


def _centres(
    order: Sequence[Sequence[Item]],
    above: Mapping[Item, Sequence[Item]],
    below: Mapping[Item, Sequence[Item]],
    widths: Mapping[Item, float],
) -> dict[Item, float]:
    centres = {item: 0.0 for row in order for item in row}
    heaviest = max(widths.values())
    for sweep in range(2 * _SWEEPS + 1):  # the last one goes down
        linked, rows = (above, order) if sweep % 2 == 0 else (below, order[::-1])
        for row in rows:
            wanted = [_mean((centres[other] for other in linked[item]), centres[item]) for item in row]
            # Where lines meet, a pull to the middle: else each block of a long network would stand further to one side than the one before.
            wanted = [x * _PULL if len(linked[item]) > 1 else x for item, x in zip(row, wanted, strict=True)]
            gaps = [(widths[first] + widths[second]) / 2 for first, second in itertools.pairwise(row)]
            weights = [heaviest / widths[item] for item in row]  # lanes are held straight, boxes give way
            centres.update(zip(row, nearest_places(wanted, weights, gaps), strict=True))
    return centres


def _mean(values: Iterable[float], otherwise: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else otherwise
