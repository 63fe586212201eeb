"""The pictures: what is drawn, where, and how it is named."""

from __future__ import annotations

import re

import pytest

from tfqat.report import figures, svg
from tfqat.report.view import CalibratedPoint, Histogram

CANDIDATES = {"max": 10.0, "percentile": 8.0, "entropy": 6.0, "mse": 7.0}


def calibrated(method: str = "percentile 99.99", **changes: object) -> CalibratedPoint:
    fields = {
        "id": "stem_relu",
        "amax": (CANDIDATES.get(method.split()[0], 5.0),),
        "method": method,
        "candidates": CANDIDATES,
        "histogram": Histogram(bin_width=0.0625, counts=tuple(1000 - i for i in range(160)), max=10.0),
    }
    return CalibratedPoint(**{**fields, **changes})


def amax_lines(picture: str) -> dict[str, float]:
    """The amax lines of a picture: x by class."""
    return {name: float(x) for name, x in re.findall(r'<line class="amax ([a-z ]+)" x1="([\d.]+)"', picture)}


@pytest.mark.parametrize("method", ["max", "percentile 99.99", "entropy", "mse"])
def test_histogram_has_four_amax_lines_and_only_the_chosen_is_emphasised(method):
    name = method.split()[0]
    lines = amax_lines(figures.histogram(calibrated(method)))
    assert set(lines) == {f"{m} chosen" if m == name else m for m in ("max", "percentile", "entropy", "mse")}


def test_amax_lines_stand_where_their_values_are():
    lines = amax_lines(figures.histogram(calibrated()))
    # The axis runs from 34 to 332 over 0 to 10.1, 1 % beyond the largest value.
    assert lines == {"percentile chosen": 270.0, "max": 329.0, "entropy": 211.0, "mse": 240.5}


def test_chosen_line_is_drawn_last_so_that_no_other_covers_it():
    picture = figures.histogram(calibrated("max"))
    assert re.findall(r'<line class="amax ([a-z ]+)"', picture)[-1] == "max chosen"


def test_labels_name_calibrator_and_value():
    picture = figures.histogram(calibrated())
    assert [text for text in re.findall(r">([a-z]+ [\d.]+)</text>", picture)] == ["max 10", "percentile 8", "mse 7", "entropy 6"]


def test_label_moves_to_the_right_of_a_line_at_the_left_edge():
    picture = figures.histogram(calibrated("entropy", amax=(0.2,), candidates={**CANDIDATES, "entropy": 0.2}))
    assert 'class="range entropy chosen" x="44.9" y="15" text-anchor="start"' in picture
    assert 'class="range max" x="324" y="28" text-anchor="end"' in picture


def test_range_beyond_the_chosen_amax_is_shaded():
    assert 'class="clipped" x="270" y="58" width="62"' in figures.histogram(calibrated())


def test_range_that_no_calibrator_gave_is_a_line_of_its_own():
    lines = amax_lines(figures.histogram(calibrated("fixed")))
    assert set(lines) == {"max", "percentile", "entropy", "mse", "fixed chosen"}


def test_point_without_histogram_has_no_picture():
    assert figures.histogram(calibrated(histogram=None)) == ""


def test_dead_tensor_has_a_picture():
    dead = calibrated(
        "max", amax=(0.0,), candidates=dict.fromkeys(CANDIDATES, 0.0), histogram=Histogram(bin_width=0.0, counts=(9,), max=0.0)
    )
    assert set(amax_lines(figures.histogram(dead)).values()) == {34.0}


def test_histogram_is_drawn_in_at_most_160_bars_and_stays_small():
    picture = figures.histogram(calibrated(histogram=Histogram(bin_width=0.01, counts=(5,) * 8192, max=81.92)))
    assert picture.count("V") - 1 == 158  # 8192 bins in groups of 52
    assert len(picture) < 8000


@pytest.mark.parametrize(
    ("counts", "bins", "expected"),
    [
        ((4, 2, 1, 1, 1, 0), 3, ([0.0, 1.0, 2.0, 3.0], [6, 2, 1])),
        ((4, 2), 160, ([0.0, 0.5, 1.0], [4, 2])),
        ((7, 0, 0, 0), 160, ([0.0, 0.5], [7])),
    ],
)
def test_rebin_adds_neighbours_and_drops_the_empty_tail(counts, bins, expected):
    assert figures.rebin(Histogram(bin_width=0.5, counts=counts, max=2.4), bins) == expected


@pytest.mark.parametrize(
    ("amax", "expected"),
    [(4.0, 0.0), (2.0, 0.3), (1.5, 0.4), (0.0, 1.0), (9.0, 0.0)],
)
def test_share_above_interpolates_within_a_bin(amax, expected):
    histogram = Histogram(bin_width=1.0, counts=(50, 20, 20, 10), max=4.0)
    assert histogram.share_above(amax) == pytest.approx(expected, abs=1e-12)


def test_curves_draw_levels_dashed_and_label_every_line():
    picture = figures.curves("accuracy", {"train": [0.90, 0.92], "validation": [0.90, 0.91]}, [1, 2], {"Float": 0.92, "PTQ": 0.91})
    assert picture.count('<line class="level float"') == 1
    assert picture.count('<line class="level ptq"') == 1
    assert re.findall(r'class="end [a-z ]+" x="270" y="[\d.]+">([A-Za-z]+)<', picture) == ["Float", "PTQ", "train", "validation"]


def test_curves_skip_epochs_without_a_value():
    picture = figures.curves("loss", {"validation": [0.5, float("nan"), 0.3]}, [1, 2, 3], {})
    assert picture.count('<circle class="curve validation"') == 2
    assert "nan" not in picture


def test_curves_of_one_epoch_with_one_value():
    picture = figures.curves("loss", {"train": [0.5]}, [1], {})
    assert picture.count('<circle class="curve train"') == 1
    assert ">1</text>" in picture


def test_stage_dots_mark_the_exported_stage():
    picture = figures.stage_dots("accuracy", {"Float": 0.92, "PTQ": 0.90, "QAT": 0.91}, "QAT")
    assert picture.count("<circle") == 3
    assert picture.count('class="dot shipped"') == 1
    assert 'class="name shipped"' in picture
    assert ">91.00%</text>" in picture


def test_stage_dots_of_equal_values():
    assert figures.stage_dots("accuracy", {"Float": 1.0, "PTQ": 1.0}).count("<circle") == 2


@pytest.mark.parametrize(
    ("lo", "hi", "count", "expected"),
    [(0, 1, 4, [0, 0.5, 1]), (0, 6.06, 5, [0, 2, 4, 6]), (0.918, 0.9195, 3, [0.918, 0.9185, 0.919, 0.9195])],
)
def test_ticks_are_round(lo, hi, count, expected):
    assert svg.ticks(lo, hi, count) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [([50, 50], [50, 60]), ([50, 10], [50, 10]), ([98, 99], [90, 100]), ([-5, 0], [0, 10])],
)
def test_spread_keeps_labels_apart_and_inside(positions, expected):
    assert svg.spread(positions, 10, 0, 100) == expected


def test_element_escapes_text_and_attributes():
    assert svg.element("text", "<b>&", class_='a"b', stroke_width=1.25) == (
        '<text class="a&#34;b" stroke-width="1.2">&lt;b&gt;&amp;</text>'
    )


def test_log_scale_takes_a_value_below_its_range_to_the_end():
    scale = svg.Scale(lo=0.5, hi=5000, start=100, end=0, log=True)
    assert (scale(0), scale(5000), scale(50)) == (100, 0, pytest.approx(50))
