"""How far a graph may differ from its model, and why so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a segment that is fed identical codes may differ by.

    Attributes:
        equal: of all codes, the share that is equal: only a value at a tie can go the other way.
        point_equal: of the codes of one point, as one of few codes hardly counts among all.
        output_difference: of the outputs, which have no codes behind the last point, as a share of the largest.
        rounding: the relative error of one operation.
        tie: how far from a half a value in steps may be, as a share of itself, to count as one. Codes that go the other way there are no
            difference, however many there are: sums of codes can be exact halves.
    """

    equal: float
    point_equal: float
    output_difference: float
    rounding: float
    tie: float


LIMITS: Mapping[str, Limits] = {
    "float32": Limits(equal=0.9999, point_equal=0.999, output_difference=1e-4, rounding=2**-23, tie=2**-19),
    # A value of 100 scales has a float16 that is up to 1/32 of a scale off: a code in 30 of that size goes the other way.
    "float16": Limits(equal=0.99, point_equal=0.96, output_difference=1e-2, rounding=2**-10, tie=0.0),
}
"""By the type of what is not quantized; float32's rounding is a hundredth of what its outputs may differ by."""

FLOAT32 = LIMITS["float32"]
LOCAL_MAX_DIFFERENCE = 1
# A point of few codes hardly counts among all, so each is judged alone too, with room for a handful of ties.
LOCAL_POINT_TIES = 5
TIES_OF_A_SIDE = 0.05
"""The least share of ties that go to either side: fewer, and it is not the last bit that decides."""
# The graph run literally against ONNX Runtime's fused kernels, from identical codes. These round biases to int32, which takes a value
# across a tie now and then, and with it all of a flat background; what saturates is many steps off.
FUSED_EQUAL, FUSED_MAX_DIFFERENCE = 0.99, 1
# End to end a flipped code changes the sums of the next layer. How far that goes is seen on the Keras graph alone: run in float64,
# compiled by XLA, and several times with every tensor that is quantized multiplied by 1 +- up to 2 ** -23. All are right, and
# differ from float32 by rounding. The largest is allowed 1.5 times. (Where a few ties decide, one such figure alone says little: it is
# zero if none of them flips, and a tie that does flip moves thousands of codes behind it.)
FLOOR_FACTOR = 1.5
# On few examples one flipped code, and the codes behind it that it moves, are already more than the shares above.
END_TO_END_TIES = 100
TOP1_AGREEMENT = 0.998
