"""The state of quantizers by point id: what is found, set and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras

import tfqat
from tfqat.errors import NotCalibratedError, PlacementError
from tfqat.quantize import state

SHAPES = {
    "image": (),
    "stem/kernel": (6,),
    "stem_relu": (),
    "dw/depthwise_kernel": (6, 1),
    "dw_relu": (),
    "project/kernel": (6,),
    "add": (),
    "pool": (),
    "fc/kernel": (5,),
}


def test_handles(net: Any) -> None:
    handles = state.handles(tfqat.quantize_model(net))
    assert {name: tuple(handle.amax.shape) for name, handle in handles.items()} == SHAPES
    assert {name for name, handle in handles.items() if handle.weight is not None} == {name for name in SHAPES if "/" in name}
    assert not any(bool(handle.enabled) for handle in handles.values())
    assert not any(handle.amax.trainable or handle.enabled.trainable for handle in handles.values())
    assert np.array_equal(handles["fc/kernel"].weight.numpy(), net.get_layer("fc").kernel.numpy())


def test_ranges_are_given_back_as_they_were_set(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    ranges = {name: np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32) for name, shape in SHAPES.items()}
    state.set_ranges(qmodel, ranges)
    back = state.ranges(qmodel)
    assert sorted(back) == sorted(ranges)
    assert all(np.array_equal(back[name], amax) for name, amax in ranges.items())


def test_a_quantizer_without_a_range_is_named(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    state.set_ranges(qmodel, {name: np.ones(shape) for name, shape in SHAPES.items() if name not in ("dw_relu", "fc/kernel")})
    with pytest.raises(NotCalibratedError) as caught:
        state.ranges(qmodel)
    assert str(caught.value) == (
        "2 of 9 quantizers of model 'net' have no range, the first is 'dw_relu': call tfqat.calibrate(qmodel, dataset) first"
    )


WRONG = {
    "unknown id": ({"image": 1.0, "stem_rel": 1.0}, "model 'net' has no quantization point 'stem_rel'; did you mean 'stem_relu'?"),
    "another shape": (
        {"image": 1.0, "fc/kernel": np.ones(6)},
        "quantization point 'fc/kernel' of model 'net' takes an amax of shape (5,); got (6,): these ranges are of another placement",
    ),
}


@pytest.mark.parametrize(("ranges", "message"), WRONG.values(), ids=WRONG)
def test_wrong_ranges_are_refused_and_none_is_set(net: Any, ranges: dict[str, Any], message: str) -> None:
    qmodel = tfqat.quantize_model(net)
    with pytest.raises(PlacementError) as caught:
        state.set_ranges(qmodel, ranges)
    assert str(caught.value) == message
    assert not bool(state.handles(qmodel)["image"].enabled)


def test_set_enabled(net: Any, with_ranges: Callable[[Any], Any]) -> None:
    handles = state.handles(qmodel := with_ranges(tfqat.quantize_model(net)))
    for enabled in (False, True):
        state.set_enabled(qmodel, enabled)
        assert {bool(handle.enabled) for handle in handles.values()} == {enabled}


def test_weight_codes(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    handle = state.handles(qmodel)["fc/kernel"]
    handle.weight.assign(np.array([[1, 0.5, 0, 2, -1]] + [[-1, 0.25, 0, 0, 0]] * 5, np.float32))
    state.set_ranges(qmodel, {"fc/kernel": [1, 0.5, 0, 1, 2]})
    codes, scale = state.weight_codes(handle)
    assert codes.tolist() == [[127, 127, 0, 127, -64], *[[-127, 64, 0, 0, 0]] * 5]
    assert np.array_equal(scale, np.maximum(np.array([1, 0.5, 0, 1, 2], np.float32), np.float32(1e-12)) / np.float32(127))


def test_activation_inputs_are_what_enters_the_quantizers(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel = tfqat.quantize_model(net)
    inputs = state.activation_inputs(qmodel)
    assert sorted(inputs) == ["add", "dw_relu", "image", "pool", "stem_relu"]
    seen = tf_keras.Model(qmodel.inputs, inputs)(images)
    expected = tf_keras.Model(net.inputs, {name: net.get_layer(name).output for name in inputs})(images)
    assert all(np.array_equal(seen[name].numpy(), expected[name].numpy()) for name in inputs)


def test_float_model_has_no_quantizers(net: Any) -> None:
    with pytest.raises(PlacementError, match=r"^model 'net' has no quantizers: make it with tfqat\.quantize_model$"):
        state.handles(net)
