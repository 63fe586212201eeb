"""Observation in the graph: the counts equal those of NumPy, for any order and split of the data, on one device or several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.calibration import observers
from tfqat.calibration.histogram import BINS, Histogram, lower_edges
from tfqat.calibration.observers import observe
from tfqat.errors import DataError


def watch(batches: list[Any]) -> Histogram:
    """What `observe` counts of batches of shape (n, any)."""
    given = tf_keras.Input((None,), name="given")
    return observe(tf_keras.Model(given, given), {"x": given}, [np.asarray(batch, np.float32) for batch in batches]).histograms["x"]


def brute_force(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The counts by comparison with the edges of all bins, not by bits."""
    magnitudes = np.abs(values.astype(np.float64)).ravel()
    places = np.searchsorted(lower_edges(np.arange(BINS)), magnitudes, side="right") - 1
    return np.bincount(places, minlength=BINS), float(magnitudes.max())


RNG = np.random.default_rng(11)
DATA = {
    "gaussian": RNG.normal(0, 1, 4096),
    "laplace": RNG.laplace(0, 3, 4096),
    "heavy tails": RNG.standard_t(1.5, 4096),
    "after relu": np.maximum(RNG.normal(0, 1, 4096), 0),
    "after relu6": np.clip(RNG.normal(3, 4, 4096), 0, 6),
    "all zeros": np.zeros(4096),
    "constant": np.full(4096, -2.75),
    "range grows": RNG.normal(0, 1, 4096) * np.exp2(np.arange(4096) // 512),
    "zeros first": np.concatenate([np.zeros(1024), RNG.normal(0, 1, 3072)]),
    "huge": RNG.normal(0, 1e37, 4096),
    "small": RNG.normal(0, 1e-30, 4096),
    "huge and small": np.concatenate([[3.4028234e38], RNG.normal(0, 1e-30, 4095)]),
    "on the edges of bins": RNG.integers(0, 8192, 4096) * 2.0**-10,
    "just below the edges": np.nextafter(np.float32(RNG.integers(1, 8192, 4096) * 2.0**-10), np.float32(0)),
}


@pytest.mark.parametrize("name", DATA)
def test_equals_a_numpy_histogram_for_any_order_and_split(name: str) -> None:
    values = np.float32(DATA[name])
    counts, largest = brute_force(values)
    splits = {
        "as it is": [values[None]],
        "4 batches": list(values.reshape(4, 8, -1)),
        "one example alone": [values[None, :7], *np.split(values[7:].reshape(-1, 1), [1, 2, 100])],
        "4 batches, last first": list(values.reshape(4, 8, -1)[::-1]),
        "unequal batches": [values[None, :1], values[None, 1:1000], values[None, 1000:]],
        "shuffled": list(RNG.permutation(values).reshape(8, 2, -1)),
    }
    for split, batches in splits.items():
        found = watch(batches)
        assert (found.largest, found.total) == (largest, 4096), split
        assert np.array_equal(found.counts, counts), split


def test_subnormals_count_into_the_first_bins() -> None:
    tiny = np.float32([[1e-45, -1e-40, 5e-39, 0.0]])
    found = [watch([tiny]), watch([tiny[:, :2], tiny[:, 2:]]), watch([tiny[:, 2:], tiny[:, :2]])]
    for histogram in found:
        assert histogram.total == 4 and histogram.counts[:512].sum() == 4
        assert histogram.largest == found[0].largest <= 5.1e-39  # TensorFlow may take subnormals for 0


def test_counts_batches_and_examples_and_each_tensor_by_its_name() -> None:
    given = tf_keras.Input((3,), name="given")
    doubled, shifted = given * 2.0, given - 10.0
    model = tf_keras.Model(given, shifted)
    values = np.float32([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    seen = observe(model, {"b": shifted, "a": doubled, "also a": doubled}, [values[:2], values[2:]])
    histograms = seen.histograms
    assert (seen.batches, seen.examples, seen.workers) == (2, 3, 1)
    assert list(histograms) == ["b", "a", "also a"]
    assert {name: histogram.largest for name, histogram in histograms.items()} == {"b": 10.0, "a": 16.0, "also a": 16.0}
    assert all(histogram.total == 9 for histogram in histograms.values())


def test_memory_does_not_grow_and_nothing_is_retraced() -> None:
    traces = []

    @tf_keras.utils.register_keras_serializable("test_observers")
    class Traced(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            traces.append(1)
            return inputs

    given = tf_keras.Input((4,))
    out = Traced()(given)
    before = len(traces)
    observe(tf_keras.Model(given, out), {"x": out}, (tf.ones((8 - number % 5, 4)) for number in range(20)))
    assert len(traces) - before <= 2  # once symbolically by Keras, once by TensorFlow


NOT_FINITE = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf}


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", NOT_FINITE)
def test_one_value_that_is_not_finite_names_tensor_and_batch(name: str, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        bad = np.ones((1, size), np.float32)
        bad[0, place] = NOT_FINITE[name]
        given = tf_keras.Input((size,), name="given")
        clean = tf.where(tf.math.is_finite(given), given, 0.0)
        tensors = {"block1_relu": clean, "block2_add:shortcut": given}
        with pytest.raises(DataError, match=r"calibration batch 2: tensor 'block2_add:shortcut' holds NaN or Inf"):
            observe(tf_keras.Model(given, given), tensors, [np.ones((1, size), np.float32)] * 2 + [bad])


def test_a_bad_batch_does_not_stop_the_counting_of_a_good_tensor_in_the_graph() -> None:
    """Bincount must not fail on NaN: the tensor is named by us, also if others before it are sound."""
    given = tf_keras.Input((2,), name="given")
    with pytest.raises(DataError, match=r"calibration batch 0: tensor 'bad' holds NaN or Inf"):
        observe(tf_keras.Model(given, given), {"good": tf.ones_like(given), "bad": given}, [np.float32([[np.nan, 1.0]])])


def test_more_values_than_32_bits_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "MOST", 11)
    watch([np.ones((1, 11))])
    with pytest.raises(DataError, match="calibration batch 1: tensor 'x' has 12 values; expected at most 11: give smaller batches"):
        watch([np.ones((1, 11)), np.ones((1, 12))])


def test_inputs_by_name_and_a_fixed_batch_size() -> None:
    small, large = tf_keras.Input((2,), name="z"), tf_keras.Input((2,), name="a")
    seen = observe(tf_keras.Model([small, large], small), {"z": small, "a": large}, [{"a": np.full((3, 2), 9.0), "z": np.ones((3, 2))}])
    assert {name: histogram.largest for name, histogram in seen.histograms.items()} == {"z": 1.0, "a": 9.0}
    fixed = tf_keras.Input((2,), batch_size=1)
    assert observe(tf_keras.Model(fixed, fixed), {"x": fixed}, [np.ones((1, 2))] * 3).histograms["x"].total == 6


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("examples", [1, 2, 3, 7, 8])
def test_parts_hold_every_example_once_and_are_of_one_size(examples: int, replicas: int) -> None:
    batch = [tf.range(examples) * 10, tf.reshape(tf.range(examples * 2), (-1, 2))]
    parts = observers._parts(batch, replicas, False)
    assert len(parts) == replicas and len({int(part[0].shape[0]) for part, _ in parts}) == 1
    assert int(parts[0][0][0].shape[0]) >= 2
    for number in range(2):
        assert np.array_equal(np.concatenate([part[number][:used] for part, used in parts]), batch[number])


def test_one_example_alone_gives_the_values_that_it_has_in_a_batch() -> None:
    """TensorFlow's CPU convolution sums in another order for one example: without the filling up this differs."""
    tf_keras.utils.set_random_seed(1)
    given = tf_keras.Input((14, 14, 24))
    out = tf_keras.layers.Conv2D(40, 3, padding="same")(given)
    images = np.float32(RNG.normal(0, 1, (16, 14, 14, 24)))
    model = tf_keras.Model(given, out)
    found = [observe(model, {"x": out}, np.split(images, parts)).histograms["x"] for parts in (1, 2, 16)]
    for histogram in found[1:]:
        assert histogram.largest == found[0].largest and np.array_equal(histogram.counts, found[0].counts)
