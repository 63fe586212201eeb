"""Placement: its two kinds of points, and its JSON form."""

from __future__ import annotations

import json

import pytest

from tfqat.placement.plan import Edge, FloatLayer, Placement, QPoint, point_from_dict, point_to_dict
from tfqat.spec import Calibrator, PerChannel, QuantSpec

ACTIVATION = QPoint(
    id="add:shortcut",
    kind="activation",
    source="split",
    output=1,
    spec=QuantSpec(num_bits=6),
    calibrator=Calibrator(method="percentile", percentile=99.9),
    edges=(Edge(layer="add", index=1), Edge(layer="conv")),
    reason="residual shortcut",
)
WEIGHT = QPoint(
    id="conv/kernel",
    kind="weight",
    source="conv",
    weight="kernel",
    spec=QuantSpec(granularity=PerChannel(axes=(2, 3)), narrow_range=True),
    calibrator=Calibrator(),
    reason="weight of Conv2D",
)
PLACEMENT = Placement(
    preset="selective",
    points=(ACTIVATION, WEIGHT),
    float_layers=(FloatLayer(layer="bn", class_name="BatchNormalization", reason="folded"),),
)


def test_kinds() -> None:
    assert (PLACEMENT.activations, PLACEMENT.weights) == ((ACTIVATION,), (WEIGHT,))


@pytest.mark.parametrize("point", [ACTIVATION, WEIGHT], ids=["activation", "weight"])
def test_point_round_trip_through_json(point: QPoint) -> None:
    assert point_from_dict(json.loads(json.dumps(point_to_dict(point)))) == point


def test_placement_round_trip_through_json() -> None:
    assert Placement.from_dict(json.loads(json.dumps(PLACEMENT.to_dict()))) == PLACEMENT


def test_json_form_of_a_point() -> None:
    assert point_to_dict(ACTIVATION) == {
        "id": "add:shortcut",
        "kind": "activation",
        "source": "split",
        "output": 1,
        "spec": {"num_bits": 6, "axes": [], "narrow_range": False},
        "calibrator": {"method": "percentile", "percentile": 99.9},
        "edges": [{"layer": "add", "index": 1}, {"layer": "conv", "index": 0}],
        "weight": None,
        "reason": "residual shortcut",
        "scale_group": None,
        "non_negative": False,
        "max_bits": 8,
    }


def test_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        point_from_dict({**point_to_dict(WEIGHT), "colour": "red"})
