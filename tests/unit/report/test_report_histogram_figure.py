"""The picture of a range: an amax line for every calibrator, its label, and what is clipped."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tfqat.calibration.histogram import BINS, SHIFT, Histogram
from tfqat.report.calibration_view import CalibratedPoint
from tfqat.report.histogram_figure import histogram, ranges

CANDIDATES = {"max": 10.0, "percentile 99.9": 8.0, "percentile 99.99": 9.0, "entropy": 6.0, "mse": 7.0}


def counted(values: object, counts: object = 1) -> Histogram:
    """The histogram of `counts` values at each of `values`."""
    values = np.asarray(values, np.float32)
    found = np.zeros(BINS, np.int64)
    np.add.at(found, values.view(np.int32) >> SHIFT, counts)
    return Histogram(counts=found, largest=float(values.max()))


def calibrated(method: str = "percentile 99.9", **changes: object) -> CalibratedPoint:
    fields = {
        "id": "stem_relu",
        "amax": (CANDIDATES.get(method.removeprefix("best: "), 5.0),),
        "method": method,
        "candidates": CANDIDATES,
        "histogram": counted(np.linspace(0, 10, 10001)),
    }
    return CalibratedPoint(**{**fields, **changes})


def amax_lines(picture: str) -> list[tuple[str, float]]:
    """The amax lines of a picture in the order in which they are drawn: class and x."""
    return [(name, float(x)) for name, x in re.findall(r'<line class="amax ([a-z ]+)" x1="([\d.]+)"', picture)]


def labels(picture: str) -> list[str]:
    """The texts of the rows of all labels, from the top down."""
    return [re.sub(r"<[^>]+>", "", text) for text in re.findall(r'<text class="range[^>]*>(.*?)</text>', picture)]


def test_every_candidate_has_a_line_where_its_value_is_and_the_chosen_one_is_drawn_last():
    # The axis runs from 34 to 332 over 0 to 10.1, 1 % beyond the largest value.
    assert amax_lines(histogram(calibrated())) == [
        ("max", 329.0),
        ("percentile", 299.5),
        ("mse", 240.5),
        ("entropy", 211.0),
        ("percentile chosen", 270.0),
    ]


@pytest.mark.parametrize(
    "method", ["max", "percentile 99.9", "percentile 99.99", "entropy", "mse", "best: entropy", "best: percentile 99.9"]
)
def test_only_the_chosen_line_and_its_label_are_emphasised(method):
    picture, name = histogram(calibrated(method)), method.removeprefix("best: ")
    assert [style for style, _ in amax_lines(picture) if "chosen" in style] == [f"{name.split()[0]} chosen"]
    assert re.findall(r'<text class="range [a-z]+ chosen"[^>]*>(.*?)</text>', picture) == [f"{name} {CANDIDATES[name]:g}"]


def test_labels_name_calibrator_and_value():
    assert labels(histogram(calibrated())) == ["max 10", "percentile 99.99 9", "percentile 99.9 8", "mse 7", "entropy 6"]


def test_lines_that_coincide_are_one_with_all_names_and_the_chosen_one_bold():
    same = {"max": 10.0, "percentile 99.9": 8.0, "percentile 99.99": 10.0, "percentile 99.999": 10.0, "entropy": 10.0, "mse": 8.00001}
    picture = histogram(calibrated("entropy", amax=(10.0,), candidates=same))
    assert amax_lines(picture) == [("several", 270.0), ("entropy chosen", 329.0)]
    assert labels(picture) == ["max, percentile 99.99,", "99.999, entropy 10", "percentile 99.9, mse 8"]
    assert '<tspan class="percentile">99.999,</tspan> <tspan class="entropy chosen">entropy 10</tspan>' in picture
    assert picture.count('chosen"') == 2


def test_lines_of_percentiles_that_coincide_keep_their_colour():
    found = ranges(calibrated("max", candidates={"max": 10.0, "percentile 99.9": 8.0, "percentile 99.99": 8.0}))
    assert [(line.names, line.style) for line in found] == [
        (("max",), "max chosen"),
        (("percentile 99.9", "percentile 99.99"), "percentile"),
    ]


def test_label_moves_to_the_right_of_a_line_at_the_left_edge():
    picture = histogram(calibrated("entropy", amax=(0.2,), candidates={**CANDIDATES, "entropy": 0.2}))
    assert 'class="range entropy chosen" x="44.9" y="15" text-anchor="start"' in picture
    assert 'class="range max" x="324" y="28" text-anchor="end"' in picture


def test_range_beyond_the_chosen_amax_is_shaded():
    assert 'class="clipped" x="270" y="71" width="62" height="136"' in histogram(calibrated())


def test_picture_grows_with_the_rows_of_its_labels():
    assert 'viewBox="0 0 340 229"' in histogram(calibrated())
    assert 'viewBox="0 0 340 177"' in histogram(calibrated("max", candidates={"max": 10.0}))


def test_range_that_no_calibrator_gave_is_a_line_of_its_own():
    assert [line.names for line in ranges(calibrated("fixed")) if line.chosen] == [("fixed",)]
    assert ("fixed chosen", 181.5) in amax_lines(histogram(calibrated("fixed")))
    # Another amax than the calibrator's own candidate.
    assert labels(histogram(calibrated("max", amax=(5.0,))))[-1] == "chosen 5"


def test_point_without_candidates_has_its_own_line():
    assert amax_lines(histogram(calibrated("max", candidates=None))) == [("max chosen", 329.0)]


def test_a_description_lists_every_amax():
    description = "amax: max 10; percentile 99.9 8; percentile 99.99 9; entropy 6; mse 7"
    assert f"<desc>{description}</desc>" in histogram(calibrated())


def test_texts_are_escaped():
    picture = histogram(calibrated("<b>", id="<i>"))
    assert "<b>" not in picture
    assert "<i>" not in picture
    assert "&lt;b&gt; 5" in labels(picture)


def test_point_without_histogram_has_no_picture():
    assert histogram(calibrated(histogram=None)) == ""


def test_dead_tensor_has_a_picture():
    dead = calibrated("max", amax=(0.0,), candidates=dict.fromkeys(CANDIDATES, 0.0), histogram=counted([0.0], 9))
    picture = histogram(dead)
    assert amax_lines(picture) == [("max chosen", 34.0)]
    assert labels(picture) == ["max, percentile 99.9,", "99.99, entropy, mse 0"]


def test_histogram_is_drawn_in_160_bars_and_stays_small():
    picture = histogram(calibrated(histogram=counted(np.linspace(1e-6, 81.92, 50000), 5)))
    assert picture.count("V") - 1 == 160
    assert len(picture) < 8000


def test_bars_are_the_counts():
    bars = re.search(r'class="bars" d="([^"]*)"', histogram(calibrated("max", histogram=counted([0.01, 9.99], [100, 1]))))[1]
    # The floor is at 207, 100 values are at the top, one value stands log10(2) / log10(200) of the height above the floor.
    assert (bars.split("H")[0], bars.split("V")[-2]) == ("M34 207V71", "189.2H328.8")


@pytest.mark.parametrize(
    ("amax", "expected"),
    [(4.0, 0.0), (3.0, 0.1), (2.0, 0.3), (1.0, 0.5), (1 + 2**-10, 0.4), (0.0, 1.0), (9.0, 0.0)],
)
def test_clipped_share_interpolates_within_a_bin(amax, expected):
    # A bin at 1 is 2**-9 wide, so that amax = 1 + 2**-10 lies in its middle. The last bin ends at the largest value, 3.5.
    found = calibrated("fixed", amax=(amax,), histogram=counted([0.25, 1.0, 2.5, 3.5], [50, 20, 20, 10]))
    assert found.clipped == pytest.approx(expected, abs=1e-12)


def test_nothing_is_clipped_without_values():
    assert calibrated(histogram=None).clipped == 0.0
    assert calibrated(amax=(0.0,), histogram=counted([0.0], 9)).clipped == 0.0
    assert calibrated(histogram=counted([0.0], 0)).clipped == 0.0


def test_point_is_read_from_the_calibration_file():
    data = {"mantissa_bits": 9, "max": 1.5, "bins": [127 << 9, (127 << 9) + 256], "counts": [3, 1]}
    point = CalibratedPoint.from_dict("p", {"amax": 1.5, "method": "best: mse", "candidates": {"mse": 1.5}, "histogram": data})
    assert (point.calibrator, point.candidates, point.histogram.total) == ("mse", {"mse": 1.5}, 4)
    assert point.histogram.occupied().lower.tolist() == [1.0, 1.5]
    assert CalibratedPoint.from_dict("p", {"amax": [[1.0], [2.0]], "method": "max"}).amax == (1.0, 2.0)
