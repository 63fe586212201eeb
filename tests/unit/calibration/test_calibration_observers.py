"""Observation in the graph: the counts equal a NumPy histogram of the final width, for any order and split of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.calibration.histogram import BINS, Histogram, exponent_for
from tfqat.calibration.observers import observe
from tfqat.errors import DataError


def watch(batches: list[Any]) -> Histogram:
    """What `observe` counts of batches of shape (n, any)."""
    given = tf_keras.Input((None,), name="given")
    histograms, _, _ = observe(tf_keras.Model(given, given), {"x": given}, [np.asarray(batch, np.float32) for batch in batches])
    return histograms["x"]


def brute_force(values: np.ndarray) -> tuple[np.ndarray, int, float]:
    magnitudes = np.abs(values.astype(np.float64)).ravel()
    exponent = exponent_for(float(magnitudes.max()))
    return np.histogram(magnitudes, bins=BINS, range=(0.0, BINS * 2.0**exponent))[0], exponent, float(magnitudes.max())


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
    counts, exponent, largest = brute_force(values)
    splits = {
        "as it is": [values[None]],
        "4 batches": list(values.reshape(4, 8, -1)),
        "4 batches, last first": list(values.reshape(4, 8, -1)[::-1]),
        "unequal batches": [values[None, :1], values[None, 1:1000], values[None, 1000:]],
        "shuffled": list(RNG.permutation(values).reshape(8, 2, -1)),
    }
    for split, batches in splits.items():
        found = watch(batches)
        assert (found.exponent, found.largest, found.total) == (exponent, largest, 4096), split
        assert np.array_equal(found.counts, counts), split


def test_subnormals_count_into_the_first_bin() -> None:
    tiny = np.float32([[1e-45, -1e-40, 5e-39, 0.0]])
    found = [watch([tiny]), watch([tiny[:, :2], tiny[:, 2:]]), watch([tiny[:, 2:], tiny[:, :2]])]
    for histogram in found:
        assert (histogram.exponent, histogram.occupied().tolist()) == (-120, [4])
        assert histogram.largest == found[0].largest <= 5.1e-39  # TensorFlow may take subnormals for 0
    with_one = watch([tiny, np.float32([[1.0]])])
    assert with_one.largest == 1.0 and np.flatnonzero(with_one.counts).tolist() == [0, 4096]


def test_counts_batches_and_examples_and_each_tensor_by_its_name() -> None:
    given = tf_keras.Input((3,), name="given")
    doubled, shifted = given * 2.0, given - 10.0
    model = tf_keras.Model(given, shifted)
    values = np.float32([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    histograms, batches, examples = observe(model, {"b": shifted, "a": doubled, "also a": doubled}, [values[:2], values[2:]])
    assert (batches, examples) == (2, 3)
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
    observe(tf_keras.Model(given, out), {"x": out}, (tf.ones((8, 4)) for _ in range(20)))
    assert len(traces) - before <= 2


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
