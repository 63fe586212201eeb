"""The pictures: what is drawn, where, and how it is named."""

from __future__ import annotations

import re

import pytest

from tfqat.report import axes, figures, svg


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


def test_picture_says_its_description_first():
    picture = svg.picture(2, 1, "a & b", [svg.element("g")], "c", "d < e")
    assert picture == '<svg class="c" viewBox="0 0 2 1" role="img" aria-label="a &amp; b"><desc>d &lt; e</desc><g></g></svg>'


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (0.5, 1000, {1: "1", 10: "10", 100: "10²", 1000: "10³"}),
        (1e-4, 0.05, {1e-4: "10⁻⁴", 1e-3: "0.001", 1e-2: "0.01"}),
        (1, 1e7, {1: "1", 100: "10²", 1e4: "10⁴", 1e6: "10⁶"}),
    ],
)
def test_decades_are_labelled(lo, hi, expected):
    labels = axes.decade_labels(svg.Scale(lo=lo, hi=hi, start=0, end=1, log=True))
    assert list(labels.values()) == list(expected.values())
    assert list(labels) == pytest.approx(list(expected))


def test_log_scale_takes_a_value_below_its_range_to_the_end():
    scale = svg.Scale(lo=0.5, hi=5000, start=100, end=0, log=True)
    assert (scale(0), scale(5000), scale(50)) == (100, 0, pytest.approx(50))
