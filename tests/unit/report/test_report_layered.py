"""The layered layout: rows by depth, lanes for what passes a row, as few crossings as can be, nothing on top of anything."""

from __future__ import annotations

import itertools

import pytest

from tfqat.report.layered import crossings, layered, nearest_places

RESIDUAL = {"in": (), "conv": ("in",), "bn": ("conv",), "add": ("in", "bn"), "relu": ("add",)}


def test_a_line_that_passes_rows_has_a_lane_beside_the_boxes() -> None:
    layout = layered(RESIDUAL, box=200, lane=18)
    assert layout.rows == {"in": 0, "conv": 1, "bn": 2, "add": 3, "relu": 4}
    assert set(layout.centres) == {("in", 0), ("in", 1), ("in", 2), ("conv", 1), ("bn", 2), ("add", 3), ("relu", 4)}
    assert layout.above("in", "add") == ("in", 2)
    for box in (("conv", 1), ("bn", 2)):
        assert abs(layout.centres[box] - layout.centres["in", box[1]]) >= 109 - 1e-6
    assert layout.centres["in", 1] == pytest.approx(layout.centres["in", 2])  # straight
    assert layout.centres["conv", 1] == pytest.approx(layout.centres["bn", 2])


def test_branches_that_would_cross_change_places() -> None:
    inputs = {"in": (), "a": ("in",), "b": ("in",), "of_b": ("b",), "of_a": ("a",), "join": ("of_b", "of_a")}
    layout = layered(inputs, box=10, lane=2)
    assert (layout.centres["a", 1] < layout.centres["b", 1]) == (layout.centres["of_a", 2] < layout.centres["of_b", 2])
    assert layout.width == 20


def test_a_long_network_stays_in_its_column() -> None:
    inputs: dict[str, tuple[str, ...]] = {"0": ()}
    for block in range(40):
        inputs |= {f"{block}a": (str(block),), f"{block}b": (f"{block}a",), str(block + 1): (str(block), f"{block}b")}
    assert layered(inputs, box=200, lane=18).width < 600


def test_crossings() -> None:
    upper, above = [("a", 0), ("b", 0)], {("c", 1): [("a", 0)], ("d", 1): [("b", 0)], ("e", 1): [("a", 0), ("b", 0)]}
    assert crossings(upper, [("c", 1), ("d", 1)], above) == 0
    assert crossings(upper, [("d", 1), ("c", 1)], above) == 1
    assert crossings(upper, [("e", 1), ("c", 1)], above) == 1


PLACES = {
    "far enough apart": ([0, 10], [1, 1], [5], [0, 10]),
    "too near: both give way": ([0, 0], [1, 1], [4], [-2, 2]),
    "the heavier gives way less": ([0, 0], [3, 1], [4], [-1, 3]),
    "in the wrong order": ([9, 0, 30], [1, 1, 1], [1, 1], [4, 5, 30]),
}


@pytest.mark.parametrize(("wanted", "weights", "gaps", "expected"), PLACES.values(), ids=PLACES)
def test_nearest_places(wanted: list[float], weights: list[float], gaps: list[float], expected: list[float]) -> None:
    assert nearest_places(wanted, weights, gaps) == pytest.approx(expected)


def test_no_two_items_of_a_row_overlap() -> None:
    inputs: dict[str, tuple[str, ...]] = {"0": ()}
    for number in range(1, 30):  # every node reads the one before it and another one further up
        inputs[str(number)] = (str(number - 1), str(number // 2))
    layout = layered(inputs, box=50, lane=6)
    for row in range(30):
        found = sorted((x, 50 if layout.rows[node] == row else 6) for (node, at), x in layout.centres.items() if at == row)
        assert all(b - a >= (wa + wb) / 2 - 1e-6 for (a, wa), (b, wb) in itertools.pairwise(found))
