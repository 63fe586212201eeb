"""QuantSpec: the code range of each width, the axes, what is refused, and the JSON form."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tfqat.spec import METHODS, Calibrator, PerChannel, PerTensor, QuantSpec

RANGES = {2: (-2, -1, 1), 3: (-4, -3, 3), 4: (-8, -7, 7), 5: (-16, -15, 15), 6: (-32, -31, 31), 7: (-64, -63, 63), 8: (-128, -127, 127)}


@pytest.mark.parametrize(("num_bits", "limits"), RANGES.items())
def test_code_range_of_each_width(num_bits: int, limits: tuple[int, int, int]) -> None:
    full, narrow = QuantSpec(num_bits=num_bits), QuantSpec(num_bits=num_bits, narrow_range=True)
    assert (full.lo, narrow.lo, full.hi) == limits
    assert narrow.hi == full.hi


def test_default_is_int8_per_tensor_as_quantizelinear_clamps() -> None:
    assert QuantSpec() == QuantSpec(num_bits=8, granularity=PerTensor(), narrow_range=False)
    assert QuantSpec().axes == ()


@pytest.mark.parametrize("num_bits", [-8, 0, 1, 9, 16])
def test_other_widths_are_refused(num_bits: int) -> None:
    with pytest.raises(ValueError, match=rf"^num_bits must be 2 to 8; got {num_bits}$"):
        QuantSpec(num_bits=num_bits)


@pytest.mark.parametrize("axes", [(3,), (2, 3), (1,), (0, 1, 2)])
def test_axes_per_channel(axes: tuple[int, ...]) -> None:
    assert QuantSpec(granularity=PerChannel(axes=axes)).axes == axes


BAD_AXES = {"none": (), "negative": (-1,), "descending": (3, 2), "twice the same": (1, 1)}


@pytest.mark.parametrize("axes", BAD_AXES.values(), ids=BAD_AXES)
def test_bad_axes_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axes must be distinct, ascending and not negative") as caught:
        PerChannel(axes=axes)
    assert str(axes) in str(caught.value)


SPECS = {
    "int8 per tensor": QuantSpec(),
    "int8 per channel": QuantSpec(granularity=PerChannel(axes=(2, 3)), narrow_range=True),
    "int4 per channel": QuantSpec(num_bits=4, granularity=PerChannel(axes=(3,)), narrow_range=True),
    "int2 per tensor": QuantSpec(num_bits=2, narrow_range=True),
}


@pytest.mark.parametrize(("description", "spec"), SPECS.items(), ids=SPECS)
def test_json_round_trip_and_description(description: str, spec: QuantSpec) -> None:
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.describe() == description


def test_json_form() -> None:
    spec = QuantSpec(num_bits=4, granularity=PerChannel(axes=(2, 3)), narrow_range=True)
    assert spec.to_dict() == {"num_bits": 4, "axes": [2, 3], "narrow_range": True}


def test_specs_cannot_be_changed_or_given_by_position() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().num_bits = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        QuantSpec(8)  # type: ignore[misc]
    assert len({QuantSpec(), QuantSpec(num_bits=8)}) == 1


def test_calibrator_description() -> None:
    assert [Calibrator(method=method).describe() for method in METHODS] == ["max", "percentile 99.99", "entropy", "mse"]
    assert Calibrator(method="percentile", percentile=99.9).describe() == "percentile 99.9"
