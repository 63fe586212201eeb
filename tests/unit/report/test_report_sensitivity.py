"""Sensitivity: how its file is read, its sentences and rows, the bars by layer and the curve of the search."""

from __future__ import annotations

import re

import pytest

from tfqat.report import sensitivity_figures, sensitivity_text
from tfqat.report.sensitivity_view import Sensitivity

EVIL = "<b>&"


def unit(name: str, score: float, **changes: object) -> dict[str, object]:
    fields = {"name": name, "layers": [name], "class_name": "Conv2D", "num_bits": 8, "macs": 100, "latency_ms": None, "score": score}
    return {**fields, "value": 0.9264 - score, **changes}


def step(raised: int, value: float, *names: str) -> dict[str, object]:
    return {"raised": raised, "levels": dict.fromkeys(names, "float"), "value": value}


def search(**changes: object) -> dict[str, object]:
    steps = [step(0, 0.91), step(1, 0.92, "a"), step(1, 0.915, "b"), step(2, 0.925, "a", "b")]
    fields = {"goal": {"max_drop": 0.005}, "limit": 0.9214, "steps": steps, "chosen": {"a": "float", "b": "int8"}}
    return {**fields, "value": 0.925, "met": True, **changes}


def sensitivity(**changes: object) -> Sensitivity:
    fields: dict[str, object] = {
        "method": "leave_one_in",
        "metric": "accuracy",
        "higher_is_better": True,
        "examples": 10000,
        "float": 0.9264,
        "quantized": 0.91,
        "seconds": 12.3,
        "evaluations": 23,
        "units": [unit("a", 0.01, layers=["a", "a_add"], macs=300), unit("b", 0.005), unit("c", -0.001, value=None)],
        "search": search(),
        "recipe": "quantization:\n",
    }
    return Sensitivity.from_dict({**fields, **changes})


def scored(*scores: float, **changes: object) -> Sensitivity:
    return sensitivity(units=[unit(f"u{index}", score) for index, score in enumerate(scores)], search=None, **changes)


def rects(picture: str) -> list[tuple[str, float, float]]:
    """Class, x and width of each bar."""
    found = re.findall(r'<rect class="([a-z0-9 -]+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    return [(style, float(x), float(width)) for style, x, width in found]


def texts(picture: str, style: str) -> list[str]:
    return [re.sub(r"<[^>]+>", "", text) for text in re.findall(rf'<text class="{style}"[^>]*>(.*?)</text>', picture)]


def circles(picture: str, style: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(rf'<circle class="{style}" cx="([\d.]+)" cy="([\d.]+)"', picture)]


def test_curve_is_the_best_of_each_number_of_quantized_units():
    assert sensitivity().curve() == [(1, 0.925), (2, 0.92), (3, 0.91)]
    assert sensitivity(higher_is_better=False).curve() == [(1, 0.925), (2, 0.915), (3, 0.91)]
    assert sensitivity(search=search(steps=[step(1, float("nan")), step(2, 0.9)])).curve() == [(1, 0.9)]
    assert sensitivity(search=None).curve() == []


def test_units_that_are_quantized_as_planned_are_not_raised():
    assert sensitivity(search=search(chosen={"a": "float", "b": "planned"})).levels == {"a": "float"}
    assert sensitivity(search=None).levels == {}


LEAST = {"method": "fast", "metric": "m", "higher_is_better": True, "examples": 1, "float": 1, "quantized": 1, "seconds": 1}
LEAST |= {"evaluations": 1, "units": []}


@pytest.mark.parametrize("key", LEAST)
def test_missing_key_is_an_error(key):
    assert Sensitivity.from_dict(LEAST).search is None
    with pytest.raises(KeyError, match=key):
        Sensitivity.from_dict({name: value for name, value in LEAST.items() if name != key})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "Method leave_one_in (one layer at a time is quantized, all others stay float). Metric accuracy on 10,000 examples: "
            "float 92.64%, quantized 91.00%. 23 evaluations in 12.3 s.",
        ),
        (
            {"method": "fast", "metric": "output_error", "float": 0.0, "quantized": 0.0123, "evaluations": 1, "seconds": 90},
            "Method fast (gradients estimate how far the outputs move when a layer is quantized). Metric output error on 10,000 examples: "
            "float 0, quantized 0.0123. 1 evaluation in 1 min 30 s.",
        ),
        ({"method": "new"}, "Method new. Metric accuracy on 10,000 examples: float 92.64%, quantized 91.00%. 23 evaluations in 12.3 s."),
    ],
)
def test_summary(changes, expected):
    assert sensitivity_text.summary(sensitivity(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "goal", "limit", "expected"),
    [
        ({}, {"max_drop": 0.005}, 0.9214, "at most 0.50 points below float, which is 92.14%"),
        ({"metric": "loss", "higher_is_better": False}, {"max_drop": 0.02}, 0.26, "at most 0.02 above float, which is 0.26"),
        ({}, {"int8_share": 0.9}, None, "at least 90.00% of multiply-accumulates in INT8"),
        ({}, {"latency_ms": 1.5}, None, "at most 1.5 ms for a batch of 1"),
        ({}, {"a_new_one": 2}, None, "a new one 2"),
    ],
)
def test_goal(changes, goal, limit, expected):
    found = sensitivity(search=search(goal=goal, limit=limit), **changes)
    assert sensitivity_text.goal(found, found.search) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "2 of 3 layers are left at higher precision: accuracy 92.50%"),
        ({"chosen": {"a": "float"}, "value": None}, "1 of 3 layers is left at higher precision"),
        ({"chosen": {}, "value": 0.91}, "None of 3 layers are left at higher precision: accuracy 91.00%"),
    ],
)
def test_outcome(changes, expected):
    found = sensitivity(search=search(**changes))
    assert sensitivity_text.outcome(found, found.search) == expected


@pytest.mark.parametrize(
    ("changes", "meaning", "score"),
    [
        ({}, "drop of accuracy when only this layer is quantized, in points", "0.43"),
        ({"method": "leave_one_out"}, "rise of accuracy when only this layer stays float, in points", "0.43"),
        ({"metric": "loss", "higher_is_better": False}, "rise of loss when only this layer is quantized", "0.0043"),
        (
            {"metric": "loss", "higher_is_better": False, "method": "leave_one_out"},
            "drop of loss when only this layer stays float",
            "0.0043",
        ),
        ({"method": "fast"}, "estimated error of the outputs when the layer is quantized", "0.0043"),
    ],
)
def test_scores_of_a_measured_share_are_points(changes, meaning, score):
    found = sensitivity(**changes)
    assert (sensitivity_text.score_meaning(found), sensitivity_text.score(found, 0.0043)) == (meaning, score)


def test_score_of_minus_zero_has_no_sign():
    assert sensitivity_text.score(sensitivity(), -0.0) == "0"
    assert sensitivity_text.score(sensitivity(), -1e-9) == "−1×10⁻⁷"


def test_rows():
    units = [unit("a", 0.01, layers=["a", "a_add"], macs=300, latency_ms={"float": 0.1, "int8": 0.05}), unit("b", 0.0, num_bits=4)]
    units.append(unit("c", -0.001, value=None, class_name="Dense", latency_ms={"float": 0.25}))
    rows = [list(row.values()) for row in sensitivity_text.rows(sensitivity(units=units))]
    assert rows == [
        ["a", "float", "a, a_add", "Conv2D", "60.00%", "0.1 → 0.05", "1", "91.64%"],
        ["b", "int8", "b", "Conv2D, int4", "20.00%", "", "0", "92.64%"],
        ["c", "", "c", "Dense", "20.00%", "0.25 → –", "−0.1", "–"],
    ]


def test_share_of_no_macs_is_not_known():
    assert sensitivity_text.rows(sensitivity(units=[unit("pool", 0.1, macs=0)]))[0]["macs"] == "–"


def test_bars_run_from_the_zero_line_to_both_sides():
    picture = sensitivity_figures.bars(scored(0.02, 0.01, -0.005))
    # The axis runs from 262 to 664 over -0.005 to 0.02: zero is at 342.4, a unit of 0.01 is 160.8 wide.
    assert rects(picture) == [("unit", 342.4, 321.6), ("unit", 342.4, 160.8), ("unit", 262.0, 80.4)]
    assert '<line class="axis" x1="342.4" x2="342.4"' in picture
    assert texts(picture, "tick")[:-1] == ["−0.5", "0", "0.5", "1", "1.5", "2"]
    assert texts(picture, "value") == ["2", "1", "−0.5"]


def test_bars_are_logarithmic_if_scores_are_positive_and_span_more_than_two_decades():
    picture = sensitivity_figures.bars(scored(1.0, 0.01, 0.001, method="fast"))
    assert rects(picture) == [("unit", 262.0, 402.0), ("unit", 262.0, 134.0), ("unit", 262.0, 1.0)]
    assert texts(picture, "tick") == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "estimated error of the outputs when the layer is quantized (logarithmic)",
    ]


@pytest.mark.parametrize("scores", [(1.0, 0.01), (1.0, 0.001, 0.0), (1.0, 0.001, -0.1)])
def test_bars_are_linear_for_two_decades_and_with_scores_that_are_not_positive(scores):
    assert "(logarithmic)" not in sensitivity_figures.bars(scored(*scores))


def test_log_axis_has_at_most_six_decades():
    picture = sensitivity_figures.bars(scored(1.0, 1e-3, 1e-30, method="fast"))
    assert rects(picture) == [("unit", 262.0, 402.0), ("unit", 262.0, 201.0), ("unit", 262.0, 1.0)]


@pytest.mark.parametrize("scores", [(0.0, 0.0), (-0.1,)])
def test_bars_without_a_positive_score(scores):
    assert len(rects(sensitivity_figures.bars(scored(*scores)))) == len(scores)


def test_bars_leave_out_scores_that_are_no_numbers():
    assert texts(sensitivity_figures.bars(scored(0.2, float("nan"))), "name") == ["u0"]
    assert sensitivity_figures.bars(scored(float("nan"))) == ""
    assert sensitivity_figures.bars(scored()) == ""


def test_bars_of_raised_units_are_coloured_and_labelled():
    picture = sensitivity_figures.bars(sensitivity())
    assert [style for style, _, _ in rects(picture)] == ["unit kept-float", "unit kept-int8", "unit"]
    assert texts(picture, "value") == ["1 float", "0.5 int8", "−0.1"]
    assert re.findall(r"<title>(.*?)</title>", picture) == ["a: 1, left at float", "b: 0.5, left at int8", "c: −0.1"]
    assert "in points, from 1 (a) to −0.1 (c)</desc>" in picture


def test_long_name_keeps_its_beginning_and_its_end():
    name = "backbone/stage3/block12/inverted_residual/expand_conv"
    picture = sensitivity_figures.bars(sensitivity(units=[unit(name, 1.0), unit("x" * 38, 0.5)]))
    assert texts(picture, "name") == ["backbone/stage…ed_residual/expand_conv", "x" * 38]
    assert f"<title>{name}: 100</title>" in picture


def test_200_units_show_40_bars_and_say_how_many_are_left_out():
    found = scored(*(1 / (1 + index) for index in range(200)))
    picture = sensitivity_figures.bars(found)
    assert texts(picture, "name") == [f"u{index}" for index in range(40)]
    assert 'viewBox="0 0 760 772"' in picture
    assert sensitivity_figures.left_out(found) == "160 less sensitive layers are left out"
    assert len(sensitivity_text.rows(found)) == 200


def test_left_out_layers_at_higher_precision_are_counted():
    units = [unit(f"u{index}", 1.0) for index in range(41)]
    found = sensitivity(units=units, search=search(chosen={"u0": "float", "u40": "float"}))
    assert sensitivity_figures.left_out(found) == "1 less sensitive layer is left out, 1 of them at higher precision"
    assert sensitivity_figures.left_out(sensitivity()) == ""


def test_curve_has_a_dot_for_each_step_and_a_line_through_the_best():
    picture = sensitivity_figures.curve(sensitivity())
    dots = circles(picture, "step")
    # x runs from 70 to 450 over 1 to 3 quantized units; y from 220 to 10.
    assert [x for x, _ in dots] == [450.0, 260.0, 260.0, 70.0]
    line = re.search(r'class="curve best" d="M([^"]*)"', picture)[1]
    assert [tuple(float(part) for part in point.split()) for point in line.split("L")] == [dots[3], dots[1], dots[0]]
    assert dots[1][1] < dots[2][1]  # the better one is higher
    assert texts(picture, "tick")[-1] == "layers in INT8, of 3"


def test_curve_marks_what_was_chosen_the_limit_and_float():
    picture = sensitivity_figures.curve(sensitivity())
    assert circles(picture, "chosen") == [circles(picture, "step")[3]]
    levels = re.findall(r'<line class="level (\w+)" x1="62" x2="458" y1="([\d.]+)"', picture)
    assert [name for name, _ in levels] == ["float", "limit"]
    # 0.91 to 0.9264 with 8 % more on both sides.
    assert [float(y) for _, y in levels] == [24.5, 79.7]
    assert texts(picture, "end level float") == ["Float"]
    assert texts(picture, "end level limit") == ["limit"]


def test_curve_tells_what_each_step_leaves_at_higher_precision():
    many = search(steps=[step(0, 0.91), step(7, 0.92, *"abcdefg")])
    units = [unit(f"u{index}", 1.0) for index in range(9)]
    titles = re.findall(r"<title>(.*?)</title>", sensitivity_figures.curve(sensitivity(search=many, units=units)))
    raised = "a (float), b (float), c (float), d (float), e (float) and 2 more"
    assert titles == ["9 layers in INT8: 91.00%", f"2 layers in INT8: 92.00%; {raised}", "chosen: 92.50%"]


def test_curve_counts_layers_as_planned_where_fewer_bits_are_planned():
    picture = sensitivity_figures.curve(sensitivity(units=[unit("a", 1.0, num_bits=4), unit("b", 0.5), unit("c", 0.1)]))
    assert texts(picture, "tick")[-1] == "layers quantized as planned, of 3"
    assert 'aria-label="accuracy by the number of layers quantized as planned"' in picture


def test_curve_of_one_step_without_limit():
    one = search(goal={"int8_share": 0.9}, limit=None, steps=[step(1, 0.92, "a")], chosen={"a": "float"}, value=None)
    picture = sensitivity_figures.curve(sensitivity(search=one))
    assert circles(picture, "step") == [(260.0, circles(picture, "step")[0][1])]
    assert circles(picture, "chosen") == []
    assert "limit" not in picture


@pytest.mark.parametrize("found", [None, search(steps=[]), search(steps=[step(0, float("nan"))])])
def test_curve_without_a_step_is_empty(found):
    assert sensitivity_figures.curve(sensitivity(search=found)) == ""


def test_names_are_escaped():
    found = sensitivity(
        units=[unit(EVIL, 0.1), unit("b", 0.0)], search=search(steps=[step(0, 0.9, EVIL)], chosen={EVIL: EVIL}), metric=EVIL
    )
    for picture in (sensitivity_figures.bars(found), sensitivity_figures.curve(found)):
        assert "<b>" not in picture
        assert "&lt;b&gt;&amp;" in picture
