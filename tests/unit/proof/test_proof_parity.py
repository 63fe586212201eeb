"""What a comparison of codes says: exact counts, the limits, and the words of each failure."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tfqat.proof.differences import CodeDifference, OutputParity
from tfqat.proof.parity import ParityReport, PointParity
from tfqat.proof.structure import StructureCheck


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


def test_between_counts_distances() -> None:
    difference = CodeDifference.between(codes(0, 5, -128, 127, 7, 7), codes(0, 6, 127, -128, 7, 9))
    assert difference.histogram == {0: 2, 1: 1, 2: 1, 255: 2}  # int8 would have wrapped 255 to 1
    assert (difference.codes, difference.max_difference) == (6, 255)
    assert difference.equal == pytest.approx(2 / 6)
    assert difference.to_dict() == {"equal": 2 / 6, "max_difference": 255, "codes": 6, "histogram": {"0": 2, "1": 1, "2": 1, "255": 2}}


def test_between_takes_any_rank() -> None:
    first = np.zeros((2, 3, 4), np.int8)
    second = first.copy()
    second[1, 2, 3] = -4
    assert CodeDifference.between(first, second).histogram == {0: 23, 4: 1}


def test_ties_to_both_sides_are_no_difference() -> None:
    ties = np.array([True, True, True, False, False, True])
    difference = CodeDifference.between(codes(0, 5, 4, 7, 7, 2), codes(1, 4, 4, 8, 7, 4), ties)
    assert (difference.ties_up, difference.ties_down) == (1, 1)
    assert (difference.different, difference.unexplained) == (4, 2)  # one apart without a tie, two apart at one
    assert difference.agreeing == pytest.approx(1 - 2 / 6)
    assert difference.to_dict()["at_ties"] == 2


def test_ties_to_one_side_are_another_rounding() -> None:
    up = CodeDifference(histogram={0: 900, 1: 100}, ties_up=96, ties_down=4)
    assert up.unexplained == 100 and up.diverges()
    both = CodeDifference.total([up, CodeDifference(histogram={1: 4}, ties_down=4)])
    assert (both.ties_up, both.ties_down, both.unexplained) == (96, 8, 0) and not both.diverges()


def test_total_adds_and_sorts() -> None:
    parts = [CodeDifference(histogram={3: 1, 0: 5}), CodeDifference(histogram={0: 2, 1: 4})]
    total = CodeDifference.total(parts)
    assert list(total.histogram.items()) == [(0, 7), (1, 4), (3, 1)]
    assert parts[0].histogram == {3: 1, 0: 5}


def test_nothing_compared_is_equal() -> None:
    assert (CodeDifference().equal, CodeDifference().max_difference, CodeDifference().codes) == (1.0, 0, 0)
    assert CodeDifference.total([]) == CodeDifference()


def test_outputs_between() -> None:
    first = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    second = np.array([[1.0, 2.5], [0.0, 3.0], [0.0, 1.0]])
    parity = OutputParity.between(first, second)
    assert parity.max_abs_difference == 3.0
    assert parity.top1_agreement == pytest.approx(2 / 3)
    assert parity.cosine == pytest.approx((1 + 5 + 0 + 1) / (np.sqrt(15) * np.sqrt(17.25)))


def test_outputs_of_zeros() -> None:
    wanted = OutputParity(max_abs_difference=0.0, cosine=1.0, top1_agreement=1.0)
    assert OutputParity.between(np.zeros((2, 3)), np.zeros((2, 3))) == wanted


def difference(equal: int, *apart: int) -> CodeDifference:
    """`equal` equal codes, and one code at each of the given distances."""
    return CodeDifference.total([CodeDifference(histogram={0: equal}), *(CodeDifference(histogram={distance: 1}) for distance in apart)])


def report(
    *,
    local: CodeDifference | None = None,
    whole: CodeDifference | None = None,
    floor: CodeDifference | None = None,
    compiled: CodeDifference | None = None,
    top1: float = 1.0,
) -> ParityReport:
    """Two points: `good` agrees throughout, `other` as given; 20,000 codes together."""
    same = difference(10_000)
    points = (
        PointParity(id="good", local=same, end_to_end=same, noise_floor=same, compiled=same),
        PointParity(id="other", local=local or same, end_to_end=whole or same, noise_floor=floor or same, compiled=compiled or same),
    )
    return ParityReport(
        examples=10,
        structure=(StructureCheck(rule="scales are positive", passed=True, detail=""),),
        points=points,
        outputs=OutputParity(max_abs_difference=0.0, cosine=1.0, top1_agreement=top1),
        local_output_difference=0.0,
    )


PASSES = {
    "all equal": report(),
    "local at the limit: 99.99% and 1": report(local=difference(9_998, 1, 1)),
    "end to end at 1.5 times the floor": report(floor=difference(9_880, *[4] * 120), whole=difference(9_820, *[6] * 180)),
    "end to end at 1.5 times what XLA differs by": report(
        floor=difference(9_940, *[2] * 60), compiled=difference(9_880, *[4] * 120), whole=difference(9_820, *[6] * 180)
    ),
    "end to end without any floor: a hundred codes of few": report(whole=difference(9_900, *[1] * 100)),
    "top-1 at the limit": report(top1=0.998),
}


@pytest.mark.parametrize("parity", PASSES.values(), ids=PASSES)
def test_within_the_limits(parity: ParityReport) -> None:
    assert parity.failures == ()
    assert parity.passed


FAILS = {
    "local, too many": (
        report(local=difference(9_997, 1, 1, 1)),
        "local: 99.98500% equal, largest difference 1; worst at 'other' (99.97000%)",
    ),
    "local, too far": (report(local=difference(9_999, 2)), "local: 99.99500% equal, largest difference 2; worst at 'other' (99.99000%)"),
    "end to end, too many": (
        report(floor=difference(9_880, *[4] * 120), whole=difference(9_819, *[4] * 181)),
        "end to end: 99.0950% equal, largest difference 4; noise floor 99.4000%, 4 (float64), "
        "100.0000%, 0 (XLA), 100.0000%, 0 (rounding noise); 1.5 times the largest is allowed",
    ),
    "end to end, too far": (
        report(floor=difference(9_980, *[4] * 20), whole=difference(9_980, *[7] * 20)),
        "end to end: 99.9000% equal, largest difference 7; noise floor 99.9000%, 4 (float64), "
        "100.0000%, 0 (XLA), 100.0000%, 0 (rounding noise); 1.5 times the largest is allowed",
    ),
    "top-1": (report(top1=0.9979), "outputs: the largest entry is the same on 99.79%, expected 99.8%"),
    "a rule of the structure": (
        replace(report(), structure=(StructureCheck(rule="scales are positive", passed=False, detail="stem/DQ"),)),
        "structure: scales are positive: stem/DQ",
    ),
    "behind the last point": (
        replace(report(), local_output_difference=1.1e-4),
        "local: from the same codes the outputs are 1.10e-04 of the largest one apart, expected at most 1e-04: look behind the last point",
    ),
    "NaN behind the last point": (
        replace(report(), local_output_difference=float("nan")),
        "local: from the same codes the outputs are nan of the largest one apart, expected at most 1e-04: look behind the last point",
    ),
}


@pytest.mark.parametrize(("parity", "failure"), FAILS.values(), ids=FAILS)
def test_out_of_a_limit(parity: ParityReport, failure: str) -> None:
    assert parity.failures == (failure,)
    assert not parity.passed


def test_several_failures_are_all_named() -> None:
    parity = report(local=difference(9_000, *[3] * 1000), whole=difference(9_000, *[3] * 1000), top1=0.5)
    assert [failure.partition(":")[0] for failure in parity.failures] == ["local", "local", "end to end", "outputs"]


def test_a_small_point_that_is_all_wrong_is_named_beside_millions_of_equal_codes() -> None:
    points = (
        PointParity(id="large", local=difference(20_000_000), end_to_end=difference(1), noise_floor=difference(1)),
        PointParity(id="small", local=difference(0, *[1] * 900), end_to_end=difference(1), noise_floor=difference(1)),
    )
    parity = replace(report(), points=points)
    assert parity.local.equal > 0.9999
    assert parity.failures == ("local: 0.00000% of the codes of 'small' are equal, expected 99.9%",)


def test_a_handful_of_ties_in_a_small_point_is_allowed() -> None:
    points = (
        PointParity(id="large", local=difference(20_000_000), end_to_end=difference(1), noise_floor=difference(1)),
        PointParity(id="small", local=difference(95, *[1] * 5), end_to_end=difference(1), noise_floor=difference(1)),
    )
    assert replace(report(), points=points).failures == ()


def test_one_class_agrees_and_several_outputs_give_the_worst() -> None:
    one = OutputParity.between(np.array([[1.0], [2.0]]), np.array([[1.5], [2.0]]))
    assert (one.max_abs_difference, one.top1_agreement) == (0.5, 1.0)
    other = OutputParity.between(np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.0], [0.0, 1.0]]))
    assert (other.max_abs_difference, other.top1_agreement) == (3.0, 0.5)
    worst = OutputParity.worst([one, other])
    assert (worst.max_abs_difference, worst.cosine, worst.top1_agreement) == (3.0, min(one.cosine, other.cosine), 0.5)


def test_the_json_object() -> None:
    data = json.loads(json.dumps(report(local=difference(9_997, 1, 1, 1)).to_dict()))
    assert data["passed"] is False
    assert len(data["failures"]) == 1
    assert data["limits"] == {
        "local_equal": 0.9999,
        "local_max_difference": 1,
        "local_output_difference": 1e-4,
        "local_point_equal": 0.999,
        "fused_equal": 0.99,
        "fused_max_difference": 1,
        "noise_floor_factor": 1.5,
        "top1_agreement": 0.998,
    }
    assert data["local"] == {"equal": 0.99985, "max_difference": 1, "codes": 20_000, "histogram": {"0": 19_997, "1": 3}}
    assert [point["id"] for point in data["points"]] == ["good", "other"]
    assert data["points"][1]["local_equal"] == 0.9997
    assert data["structure"] == [{"rule": "scales are positive", "passed": True, "detail": ""}]
    assert set(data["outputs"]) == {"max_abs_difference", "cosine", "top1_agreement"}


@pytest.mark.parametrize(
    ("histogram", "words"),
    [
        ({0: 9_900, 1: 100}, ""),
        (
            {0: 9_899, 1: 101},
            "fused: ONNX Runtime's kernels give 98.9900% of the literal graph's codes, largest difference 1",
        ),
        (
            {0: 9_999, 2: 1},
            "fused: ONNX Runtime's kernels give 99.9900% of the literal graph's codes, largest difference 2",
        ),
    ],
)
def test_fused_kernels_may_be_one_step_apart_on_one_code_in_a_hundred(histogram: dict[int, int], words: str) -> None:
    found = report()
    points = (replace(found.points[0], fused=CodeDifference(histogram=histogram)), *found.points[1:])
    failures = replace(found, points=points).failures
    assert [failure.startswith(words) for failure in failures] == ([True] if words else [])


def test_the_worst_of_several_outputs_keeps_what_is_no_number() -> None:
    good = OutputParity(max_abs_difference=0.0, cosine=1.0, top1_agreement=1.0)
    bad = OutputParity.between(np.ones((2, 1)), np.full((2, 1), np.nan))
    worst = OutputParity.worst([good, bad])
    assert np.isnan(worst.cosine) and np.isnan(worst.max_abs_difference)
    assert OutputParity.between(np.zeros((2, 1)), np.ones((2, 1))).cosine == 0.0
