"""Where a batch does not fit into memory it is computed in parts: the ranges are the same, and a part that fails is not counted twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.calibration import memory, observers
from tfqat.errors import OutOfMemoryError

IMAGES = np.random.default_rng(0).normal(size=(37, 8, 8, 3)).astype(np.float32)
MORE_THAN_THERE_IS = 2**46


class TooLarge(layers.Layer):
    """Passes its input on, but for more than `most` examples asks TensorFlow for memory that no machine has."""

    most = 10**9

    def call(self, inputs: Any) -> Any:
        wanted = tf.where(tf.shape(inputs, tf.int64)[0] > self.most, tf.constant(MORE_THAN_THERE_IS, tf.int64), 1)
        unknown = tf.cast(tf.math.is_nan(tf.reduce_sum(inputs)), tf.int64)  # 0, which no optimizer of TensorFlow knows
        return inputs + tf.reduce_sum(tf.fill([wanted + unknown], 0.0))


def quantized(batch: int | None = None) -> Any:
    image = tf_keras.Input((8, 8, 3), batch_size=batch)
    x = layers.Conv2D(4, 3, activation="relu", name="first")(image)
    x = TooLarge(name="large")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="second")(x)
    return tfqat.quantize_model(tf_keras.Model(image, layers.Dense(2, name="logits")(layers.Flatten()(x))))


def assert_same(one: Any, other: Any) -> None:
    assert (one.batches, one.examples, list(one.points)) == (other.batches, other.examples, list(other.points))
    for name, point in one.points.items():
        assert np.array_equal(point.amax, other.points[name].amax)
        assert point.histogram is None or np.array_equal(point.histogram.counts, other.points[name].histogram.counts)


SAMPLE = ((10**9, None), (36, 19))  # TensorFlow waits ten seconds for memory before it gives up


@pytest.mark.parametrize(
    ("most", "at_once"), [*SAMPLE, *(pytest.param(*case, marks=pytest.mark.robustness) for case in ((9, 5), (5, 5), (2, 2)))]
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(most: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    qmodel = quantized()
    data = [IMAGES, IMAGES[:30] * 2]
    whole = tfqat.calibrate(qmodel, data, batches=2)
    monkeypatch.setattr(TooLarge, "most", most)
    found = tfqat.calibrate(qmodel, data, batches=2)
    assert_same(found, whole)
    assert found.at_once == at_once
    assert tfqat.Calibration.from_dict(found.to_dict()).at_once == at_once
    assert ("at_once" in found.to_dict()) == (at_once is not None)


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        pytest.param(
            None,
            r"calibration batch 0: 2 examples do not fit into memory \(.*OOM when allocating.*\): calibrate on a machine or a device",
            marks=pytest.mark.robustness,
        ),
        (37, r"calibration batch 0: 37 examples do not fit .*: build the model with a free or a smaller batch size"),
    ],
    ids=["two examples are too many", "a fixed batch size"],
)
def test_what_cannot_be_split_is_an_error(batch: int | None, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TooLarge, "most", 1)
    with pytest.raises(OutOfMemoryError, match=advice):
        tfqat.calibrate(quantized(batch), [IMAGES], batches=1)


@pytest.mark.parametrize(("free", "at_once"), [(None, None), (10**12, None), (0, 2)])
def test_a_batch_is_compared_with_what_is_free(free: int | None, at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    qmodel = quantized()
    whole = tfqat.calibrate(qmodel, [IMAGES], batches=1)
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    found = tfqat.calibrate(qmodel, [IMAGES], batches=1)
    assert_same(found, whole)
    assert found.at_once == at_once


def test_the_bytes_of_an_example() -> None:
    image = tf_keras.Input((8, 8, 3))
    model = tf_keras.Model(image, layers.Flatten()(layers.Conv2D(4, 3)(image)))
    assert memory.bytes_per_example(model) == 4 * (8 * 8 * 3 + 6 * 6 * 4 + 6 * 6 * 4 + 3 * 8 * 8 * 3)


@pytest.mark.parametrize(("examples", "half"), [(64, 32), (37, 19), (3, 2), (2, 2)])
def test_halved(examples: int, half: int) -> None:
    assert memory.halved(examples) == half


LIMITED = """
import resource
from pathlib import Path

from tfqat.calibration.memory import free_bytes

used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
print(free_bytes())
"""


def test_a_limit_of_the_process_counts() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert 200_000_000 < int(done.stdout.splitlines()[-1]) <= 300_000_000


def test_a_container_has_less_than_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("400000\n")
    monkeypatch.setattr(memory, "_CGROUP", ((str(tmp_path / "max"), str(tmp_path / "current")), (str(tmp_path / "no"), "no")))
    assert memory.free_bytes() == 600_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_bytes() != 600_000


@pytest.mark.robustness
def test_nothing_of_a_step_counts_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tensor is counted long before the layer that fails."""
    monkeypatch.setattr(TooLarge, "most", 20)
    qmodel = quantized()
    seen = observers.observe(qmodel, {"image": qmodel.input, "large": qmodel.get_layer("large").output}, [IMAGES])
    assert seen.histograms["image"].total == IMAGES.size
    assert seen.at_once == 19
