"""Average pooling between scales whose ratio is a simple fraction: one in 40 of its values is an exact half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tf_keras

import tfqat
from tfqat.quantize import state

layers = tf_keras.layers


def test_exact_ties_do_not_fail_the_proof(tmp_path: Path) -> None:
    tf_keras.utils.set_random_seed(1)
    image = layers.Input((8, 8, 16), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(image)
    qmodel = tfqat.quantize_model(tf_keras.Model(image, layers.Dense(16, name="logits")(x)))
    images = np.random.default_rng(0).gamma(1.0, 1.0, (400, 8, 8, 16)).astype(np.float32)
    tfqat.calibrate(qmodel, [images], batches=1)
    # The scales of a model on which the proof once failed: 5/24 apart, so that 64 codes add up to 3/40 of a step each.
    state.set_ranges(qmodel, {**state.ranges(qmodel), "image": np.float32(279 / 64), "pool": np.float32(465 / 512)})
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    report = tfqat.verify(qmodel, tmp_path / "model.onnx", [images], examples=400)
    pool = next(point for point in report.points if point.id == "pool").local
    assert pool.ties_up + pool.ties_down > 0.002 * pool.codes  # more than a point may have of other differences
    assert pool.unexplained == 0 and report.local.max_difference == 1
    assert not [failure for failure in report.failures if failure.startswith(("local", "first divergence"))]
