"""Calibration of a quantized model: which ranges it sets, from which data, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.calibration.calibrate import COMPARED, Calibration, apply, calibrate, recalibrate
from tfqat.calibration.histogram import Histogram
from tfqat.calibration.methods import amax_of
from tfqat.calibration.weights import mse_amax
from tfqat.errors import DataError
from tfqat.quantize import state
from tfqat.quantize.apply import quantize_model
from tfqat.spec import METHODS, Calibrator, QuantSpec

RNG = np.random.default_rng(2)
BATCHES = [np.float32(RNG.normal(0, 1.0 + number, (8, 4))) for number in range(4)]


def network() -> Any:
    """Two Dense layers: points x, a/kernel, a, logits/kernel."""
    tf_keras.utils.set_random_seed(3)
    x = tf_keras.Input((4,), name="x")
    y = tf_keras.layers.Dense(16, activation="relu", name="a")(x)
    return tf_keras.Model(x, tf_keras.layers.Dense(3, name="logits")(y), name="net")


def quantized(**quantization: Any) -> Any:
    return quantize_model(network(), {"activations": {"calibrator": "max"}, **quantization})


def enabled(qmodel: Any) -> dict[str, bool]:
    return {name: bool(handle.enabled) for name, handle in state.handles(qmodel).items()}


def test_sets_exactly_the_ranges_it_returns_and_enables_every_quantizer() -> None:
    qmodel = quantized()
    assert not any(enabled(qmodel).values())
    calibration = calibrate(qmodel, BATCHES, batches=4)
    assert (calibration.batches, calibration.examples) == (4, 32)
    assert set(calibration.points) == {"x", "a/kernel", "a", "logits/kernel"}
    assert all(enabled(qmodel).values())
    ranges = state.ranges(qmodel)
    for name, point in calibration.points.items():
        assert point.amax.dtype == np.float32
        assert np.array_equal(ranges[name], point.amax), name
    assert calibration.points["x"].amax == np.abs(np.concatenate(BATCHES)).max()


def test_activations_are_observed_in_float() -> None:
    model, qmodel = network(), quantized()
    hidden = tf_keras.Model(model.input, model.get_layer("a").output).predict_on_batch(np.concatenate(BATCHES))
    for _ in range(2):  # the second time the quantizers are enabled before
        found = calibrate(qmodel, BATCHES, batches=4).points["a"]
        assert float(found.amax) == pytest.approx(float(hidden.max()), rel=1e-6)
        assert found.histogram is not None and found.histogram.total == hidden.size


def test_weights_get_the_largest_magnitude_of_each_channel() -> None:
    qmodel = quantized()
    kernel = state.handles(qmodel)["a/kernel"].weight
    kernel.assign(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16) * (np.arange(16) != 5))
    points = calibrate(qmodel, BATCHES, batches=1)
    assert np.array_equal(points.points["a/kernel"].amax, np.abs(kernel.numpy()).max(axis=0))
    assert points.points["a/kernel"].method == "max" and points.points["a/kernel"].histogram is None
    assert points.dead_channels == {"a/kernel": 1}


def test_a_weight_with_the_calibrator_mse_gets_the_range_of_least_error(monkeypatch: pytest.MonkeyPatch) -> None:
    qmodel = quantized(weights={"num_bits": 4})
    handles = state.handles(qmodel)
    mse = {name: replace(handle, point=replace(handle.point, calibrator=Calibrator(method="mse"))) for name, handle in handles.items()}
    monkeypatch.setattr(state, "handles", lambda _: mse)
    found = calibrate(qmodel, BATCHES, batches=1).points["a/kernel"]
    kernel, spec = handles["a/kernel"].weight.numpy(), handles["a/kernel"].point.spec
    largest = np.abs(kernel).max(axis=0)
    assert found.method == "mse" and np.array_equal(found.amax, mse_amax(kernel, spec))
    assert np.all(found.amax <= largest) and np.any(found.amax < largest)
    assert np.array_equal(handles["a/kernel"].amax.numpy(), found.amax)


def test_the_calibrator_of_weights_reaches_the_model() -> None:
    found = calibrate(quantized(weights={"calibrator": "mse", "num_bits": 4}), BATCHES, batches=1).points["a/kernel"]
    assert found.method == "mse"


NAMES = ["max", "percentile 99.9", "percentile 99.99", "percentile 99.999", "entropy", "mse"]


def test_each_layer_has_its_own_calibrator_and_all_candidates() -> None:
    overrides = [{"match": "logits", "activations": {"calibrator": "percentile", "percentile": 90.0}}]
    calibration = calibrate(quantized(activations={"calibrator": "mse"}, overrides=overrides), BATCHES, batches=4)
    methods = {name: point.method for name, point in calibration.points.items() if point.histogram}
    assert methods == {"x": "mse", "a": "percentile 90"}
    assert [one.describe() for one in COMPARED] == NAMES
    for name, own in methods.items():
        point = calibration.points[name]
        assert point.histogram is not None and point.candidates is not None
        assert list(point.candidates) == NAMES + (["percentile 90"] if own == "percentile 90" else [])
        for text, candidate in point.candidates.items():
            assert candidate == amax_of(point.histogram, Calibrator.parse(text), QuantSpec()), (name, text)
        assert point.amax == np.float32(point.candidates[own])


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_batches_does_not_matter(method: str) -> None:
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        points = calibrate(quantized(activations={"calibrator": method}), [BATCHES[i] for i in order], batches=4).points
        found.append({name: point.to_dict() for name, point in points.items()})
    assert found[0] == found[1] == found[2]


def test_looks_at_no_more_batches_than_asked() -> None:
    def endless() -> Any:
        yield BATCHES[0]
        yield BATCHES[1]
        raise AssertionError("a third batch was taken")

    assert calibrate(quantized(), endless(), batches=2).examples == 16


def test_takes_labelled_batches_of_a_dataset() -> None:
    labelled = tf.data.Dataset.from_tensor_slices((np.concatenate(BATCHES), np.zeros(32))).batch(8)
    one, other = calibrate(quantized(), labelled, batches=4), calibrate(quantized(), BATCHES, batches=4)
    assert one.to_dict() == other.to_dict()


def not_finite(value: float) -> list[np.ndarray]:
    batches = [batch.copy() for batch in BATCHES]
    batches[2][5, 1] = value
    return batches


REFUSED = {
    "fewer batches": (BATCHES, 5, r"asked for 5 batches, the data held 4: give more data, or set calibration.batches to 4"),
    "no batch": ([], 3, r"asked for 3 batches, the data held 0: .* to 1$"),
    "none asked for": (BATCHES, 0, r"at least 1 batch; got batches=0"),
    "another shape": (
        [BATCHES[0], BATCHES[1][:, :3]],
        2,
        r"calibration batch 1: a batch of shape \(8, 3\), but input 'x' .* takes \(None, 4\)",
    ),
    "another rank": ([BATCHES[0][0]], 1, r"calibration batch 0: a batch of shape \(4,\)"),
    "two inputs": ([(([BATCHES[0], BATCHES[0]]), 0)], 1, r"calibration batch 0: 2 inputs, but model 'net' takes 1"),
    "NaN": (not_finite(np.nan), 4, r"calibration batch 2: tensor 'x' holds NaN or Inf"),
    "Inf": (not_finite(-np.inf), 4, r"calibration batch 2: tensor 'x' holds NaN or Inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_data_leaves_the_quantizers_as_they_were(name: str) -> None:
    data, batches, message = REFUSED[name]
    fresh, calibrated = quantized(), quantized()
    calibrate(calibrated, BATCHES[:1], batches=1)
    before = state.ranges(calibrated)
    for qmodel, expected in ((fresh, False), (calibrated, True)):
        with pytest.raises(DataError, match=message):
            calibrate(qmodel, data, batches=batches)
        assert set(enabled(qmodel).values()) == {expected}
    assert all(np.array_equal(amax, before[name]) for name, amax in state.ranges(calibrated).items())


def test_nan_in_the_input_is_found_even_if_the_first_layer_is_float() -> None:
    # The fused kernel of MatMul, BiasAdd and Relu makes 0 of NaN, so that no later tensor shows it.
    with pytest.raises(DataError, match="calibration batch 2: tensor 'x' holds NaN or Inf"):
        calibrate(quantized(skip=["a"]), not_finite(np.nan), batches=4)


def test_nan_that_arises_in_the_model_names_its_tensor() -> None:
    qmodel = quantized()
    handles = state.handles(qmodel)
    handles["a/kernel"].weight.assign(np.full((4, 16), 3e38, np.float32))
    with pytest.raises(DataError, match="calibration batch 0: tensor 'a' holds NaN or Inf"):
        calibrate(qmodel, [np.full((2, 4), 10.0, np.float32)], batches=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    qmodel = quantized()
    kernel = state.handles(qmodel)["logits/kernel"].weight
    kernel.assign(np.where(np.arange(3) == 1, np.float32(value), kernel.numpy()))
    with pytest.raises(DataError, match="weight 'logits/kernel' holds NaN or Inf in 1 of 3 channels"):
        calibrate(qmodel, BATCHES, batches=1)


def test_json_round_trip_sets_the_same_ranges() -> None:
    qmodel, other = quantized(activations={"calibrator": "percentile"}), quantized()
    calibration = calibrate(qmodel, BATCHES, batches=4)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.to_dict() == calibration.to_dict()
    assert (again.batches, again.examples) == (4, 32)
    apply(other, again)
    for name, amax in state.ranges(qmodel).items():
        assert np.array_equal(state.ranges(other)[name], amax)
    histogram, original = again.points["x"].histogram, calibration.points["x"].histogram
    assert isinstance(histogram, Histogram) and original is not None
    assert np.array_equal(histogram.counts, original.counts) and histogram.largest == original.largest


def concatenated() -> Any:
    """Two Dense layers of unlike size, concatenated before a third: points a, b and cat share one scale, x has its own."""
    tf_keras.utils.set_random_seed(3)
    x = tf_keras.Input((4,), name="x")
    a, b = tf_keras.layers.Dense(6, name="a")(x), tf_keras.layers.Dense(6, name="b")(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="fc")(tf_keras.layers.Concatenate(name="cat")([a, b])), name="net")
    model.get_layer("b").set_weights([value * 10 for value in model.get_layer("b").get_weights()])
    return model


@pytest.mark.parametrize("method", METHODS)
def test_points_that_share_a_scale_get_the_range_of_all_their_values(method: str) -> None:
    qmodel = quantize_model(concatenated(), {"activations": {"calibrator": method}})
    assert {name: handle.point.scale_group for name, handle in state.handles(qmodel).items() if handle.weight is None} == {
        "x": None, "a": "a", "b": "a", "cat": "a"
    }  # fmt: skip
    points = calibrate(qmodel, BATCHES, batches=4).points
    assert float(points["a"].amax) == float(points["b"].amax) == float(points["cat"].amax)
    assert {name: float(value) for name, value in state.ranges(qmodel).items() if name in ("a", "b", "cat")} == dict.fromkeys(
        ("a", "b", "cat"), float(points["a"].amax)
    )
    # Each keeps the histogram of its own values; the range comes from those of all three together.
    histograms = [points[name].histogram for name in ("a", "b", "cat")]
    assert [histogram.total for histogram in histograms] == [192, 192, 384]
    merged = histograms[0].merge(histograms[1]).merge(histograms[2])
    wanted = amax_of(merged, qmodel.get_layer("a.q").point.calibrator, QuantSpec())
    assert float(points["a"].amax) == float(np.float32(wanted))
    assert points["a"].candidates == points["b"].candidates == points["cat"].candidates
    assert points["x"].candidates != points["a"].candidates


def test_a_shared_range_is_that_of_the_wider_tensor() -> None:
    model, qmodel = concatenated(), quantize_model(concatenated(), {"activations": {"calibrator": "max"}})
    points = calibrate(qmodel, BATCHES, batches=4).points
    outputs = tf_keras.Model(model.input, [model.get_layer("a").output, model.get_layer("b").output])(np.concatenate(BATCHES))
    narrow, wide = (float(np.abs(output).max()) for output in outputs)
    assert wide > 3 * narrow
    assert float(points["a"].amax) == pytest.approx(wide, rel=1e-6)


def test_a_shared_range_is_the_same_for_any_order_of_the_batches() -> None:
    found = []
    for batches in (BATCHES, BATCHES[::-1]):
        qmodel = quantize_model(concatenated(), {"activations": {"calibrator": "percentile"}})
        found.append({name: float(np.sum(point.amax)) for name, point in calibrate(qmodel, batches, batches=4).points.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("calibrator", [*COMPARED, Calibrator(method="percentile", percentile=95.0)], ids=Calibrator.describe)
def test_recalibrate_gives_what_that_calibrator_would_have_given(calibrator: Calibrator) -> None:
    settings = {"calibrator": calibrator.method} | ({"percentile": calibrator.percentile} if calibrator.method == "percentile" else {})
    first, other = (quantize_model(concatenated(), {"activations": chosen}) for chosen in ({"calibrator": "max"}, settings))
    kept = Calibration.from_dict(json.loads(json.dumps(calibrate(first, BATCHES, batches=4).to_dict())))
    before = json.dumps(kept.to_dict())
    found = recalibrate(kept, [handle.point for handle in state.handles(first).values()], calibrator)
    assert found.to_dict() == calibrate(other, BATCHES, batches=4).to_dict()
    assert json.dumps(kept.to_dict()) == before
    apply(first, found)
    assert all(np.array_equal(amax, state.ranges(other)[name]) for name, amax in state.ranges(first).items())


def test_recalibrate_refuses_what_it_has_no_histogram_of() -> None:
    qmodel = quantized()
    calibration, points = calibrate(qmodel, BATCHES, batches=1), [handle.point for handle in state.handles(qmodel).values()]
    bare = replace(calibration, points={name: replace(point, histogram=None) for name, point in calibration.points.items()})
    with pytest.raises(DataError, match=r"no histogram of activation 'x'\. Calibrate again"):
        recalibrate(bare, points, Calibrator())
    fewer = replace(calibration, points={name: point for name, point in calibration.points.items() if name != "a"})
    with pytest.raises(DataError, match="no range of point 'a': it is of another placement"):
        recalibrate(fewer, points, Calibrator())


@pytest.mark.parametrize("size", [1, 2, 5, 8, 16, 32])
def test_ranges_are_the_same_for_any_batch_size(size: int) -> None:
    images, found = np.concatenate(BATCHES), []
    for batch, values in ((8, images), (size, images[RNG.permutation(32)])):
        batches = np.split(values, range(batch, 32, batch))
        found.append({name: point.to_dict() for name, point in calibrate(quantized(), batches, batches=len(batches)).points.items()})
    assert found[0] == found[1]
