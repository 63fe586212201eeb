"""`model.fit` of a quantized model under tf.distribute: two replicas train as one does with the whole batch. A process of its own.

Logical devices must be set up before TensorFlow starts.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import numpy as np
import tensorflow as tf
import tf_keras
import tfqat

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
qat = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
X, Y = np.float32(rng.normal(size=(128, 8, 8, 3))), rng.integers(0, 4, 128)
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    tf_keras.utils.set_random_seed(1)
    given = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(given)
    x = tf_keras.layers.ReLU(6.0, name="relu")(tf_keras.layers.BatchNormalization(name="bn")(x))
    return tf_keras.Model(given, tf_keras.layers.Dense(4, name="logits")(tf_keras.layers.GlobalAveragePooling2D(name="pool")(x)))


def trained(strategy):
    training = {"epochs": 20, "batch_size": 64, "learning_rate": 1.0, "steps_per_epoch": 4}
    plan = tfqat.qat_plan(training, {"batchnorm": "freeze", **qat})  # BatchNorm's statistics are those of a replica's part
    with strategy.scope():
        qmodel = tfqat.quantize_model(network())
        tfqat.calibrate(qmodel, [X[:64], X[64:]], batches=2)
        tfqat.qat_compile(qmodel, plan, LOSS, ["accuracy"])
    before = qmodel.get_weights()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    qmodel.fit(data, validation_data=data, epochs=plan.epochs, callbacks=tfqat.qat_callbacks(plan), verbose=0)
    assert {layer.compute_dtype for layer in qmodel.layers} == {"float32"}
    return before, qmodel.get_weights()


before, one = trained(tf.distribute.OneDeviceStrategy("/cpu:0"))
_, two = trained(tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]))
def largest(left, right):
    return max(float(np.max(np.abs(np.float32(a) - np.float32(b)))) for a, b in zip(left, right))
print("RESULT" + json.dumps([largest(before, one), largest(one, two)]))
"""


CASES: dict[str, tuple[dict[str, object], float]] = {
    "frozen": ({}, 1e-6),
    "learned": ({"amax": {"weights": "learned", "activations": "learned"}}, 1e-6),
    "mixed_bfloat16": ({"precision": "mixed_bfloat16"}, 0.02),
    "mixed_float16": ({"precision": "mixed_float16"}, 0.002),
}


@pytest.mark.parametrize(("qat", "limit"), CASES.values(), ids=CASES)
def test_two_replicas_train_as_one(qat: dict[str, object], limit: float) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(qat)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    moved, apart = json.loads(line.removeprefix("RESULT"))
    assert moved > 1e-3 and apart < limit, (moved, apart)
