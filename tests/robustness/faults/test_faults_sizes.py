"""Calibration data without end in constant memory, and models of thousands of layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

STREAM = """
import resource, sys

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat

batches = int(sys.argv[1])
image = tf_keras.Input((64, 64, 3))
x = layers.Conv2D(8, 3, strides=4, activation="relu")(image)
qmodel = tfqat.quantize_model(tf_keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
base = np.random.default_rng(0).normal(size=(128, 64, 64, 3)).astype(np.float32)

def stream():
    for number in range(batches):
        base[0, 0, 0, 0] = number
        yield base.copy()

data = tf.data.Dataset.from_generator(stream, output_signature=tf.TensorSpec(base.shape))
found = tfqat.calibrate(qmodel, data, batches=batches)
image_point = next(point for point in found.points.values() if point.histogram is not None)
assert image_point.histogram.total == batches * base.size and image_point.histogram.largest == max(batches - 1, np.abs(base).max())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
BATCH = 128 * 64 * 64 * 3 * 4
GROWTH_MB = 64


def peak_mb(size: float) -> int:
    """The largest memory of a process that calibrates with so many bytes of data, with an allocator that gives back what is freed.

    glibc keeps freed blocks of the size of a batch, up to some 200 MB of them, unless the size from which it maps them is fixed.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", STREAM, str(round(size / BATCH))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("little", "much"), [pytest.param(0.1e9, 0.5e9, id="0.5 GB"), pytest.param(1e9, 10e9, id="10 GB", marks=pytest.mark.robustness)]
)
def test_calibration_data_pass_through(little: float, much: float, measured: dict[str, Any]) -> None:
    one, other = peak_mb(little), peak_mb(much)
    measured[f"peak MB with {little / 1e9:g} and {much / 1e9:g} GB of calibration data"] = [one, other]
    assert other - one < GROWTH_MB


DEEP = """
import json, resource, sys, time

import numpy as np
import tf_keras
from tf_keras import layers

import tfqat

count, folder = int(sys.argv[1]), sys.argv[2]
sys.setrecursionlimit(20_000)  # Keras itself needs it to build the model
image = tf_keras.Input((8, 8, 4), name="image")
x, made, number = image, 4, 0
while made < count:
    before = x
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
    x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization(name=f"bn{number}")(x))
    if number % 2:
        x = layers.Add(name=f"add{number}")([before, x])
    made, number = made + 3 + number % 2, number + 1
model = tf_keras.Model(image, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D(name="pool")(x)))
model.save(f"{folder}/deep.keras")
sys.setrecursionlimit(1000)  # what Python has
seconds = {"layers": len(model.layers)}

def timed(name, call):
    started = time.process_time()
    result = call()
    seconds[name] = round(time.process_time() - started, 1)
    return result

model = timed("load", lambda: tfqat.load_model(f"{folder}/deep.keras"))
placement = timed("plan", lambda: tfqat.plan(model))
qmodel = timed("quantize", lambda: tfqat.quantize_model(model, placement))
data = [np.random.default_rng(seed).normal(size=(4, 8, 8, 4)).astype(np.float32) for seed in range(2)]
timed("calibrate", lambda: tfqat.calibrate(qmodel, data, batches=2))
qmodel.save(f"{folder}/quantized.keras")
qmodel = timed("load quantized", lambda: tfqat.load_model(f"{folder}/quantized.keras"))
report = timed("export", lambda: tfqat.export_onnx(qmodel, f"{folder}/model.onnx"))
assert report.weights == len(placement.weights) and report.activations == len(placement.activations)
assert all(one.folded for one in report.batch_norms)
if "verify" in sys.argv:
    assert timed("verify", lambda: tfqat.verify(qmodel, f"{folder}/model.onnx", data)).passed
seconds["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps(seconds))
"""


@pytest.mark.timeout(6000)
@pytest.mark.robustness
@pytest.mark.parametrize("layers", [1200, 2000])
def test_a_model_of_thousands_of_layers(layers: int, tmp_path: Any, measured: dict[str, Any]) -> None:
    """More than Python lets functions call each other, 1,000; times are of the processor."""
    command = [sys.executable, "-c", DEEP, str(layers), str(tmp_path), *(["verify"] if layers < 2000 else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["layers"] >= layers - 4
    measured[f"seconds of {found['layers']} layers"] = found


HEAVY = """
import json, resource, sys, time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.export.onnx import export_float_onnx

width, folder, seconds = int(sys.argv[1]), Path(sys.argv[2]), {}

def timed(name, call):
    started = time.perf_counter()
    result = call()
    seconds[name] = round(time.perf_counter() - started, 1)
    seconds["peak GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    return result

def computed(path, images):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]

x = given = tf_keras.Input((width,), name="x")
for number in range(6):
    x = layers.Dense(width, activation="relu" if number < 5 else None, name=f"dense{number}")(x)
model = tf_keras.Model(given, x)
seconds["weights GB"] = round(sum(weight.numpy().nbytes for weight in model.weights) / 1e9, 2)
images = np.random.default_rng(0).normal(size=(8, width)).astype(np.float32)
wanted = model(images).numpy()
placement = timed("plan", lambda: tfqat.plan(model))
qmodel = timed("quantize", lambda: tfqat.quantize_model(model, placement))
timed("export float", lambda: export_float_onnx(model, folder / "float.onnx"))
del model
timed("calibrate", lambda: tfqat.calibrate(qmodel, [images], batches=1))
in_keras = qmodel(images).numpy()
report = timed("export", lambda: tfqat.export_onnx(qmodel, folder / "model.onnx", external_data=True))
del qmodel
assert (folder / "model.onnx.data").exists() and report.weights == 6
for name, reference, near in (("float", wanted, 1e-5), ("model", in_keras, 0.02)):
    timed(f"check {name}", lambda: onnx.checker.check_model(str(folder / f"{name}.onnx")))
    found = timed(f"run {name}", lambda: computed(folder / f"{name}.onnx", images))
    assert np.abs(found - reference).max() < near * np.abs(reference).max(), name
print(json.dumps(seconds))
"""


@pytest.mark.timeout(3000)
@pytest.mark.robustness
def test_a_model_of_3_gb_of_weights(tmp_path: Any, measured: dict[str, Any]) -> None:
    """More than a message of TensorFlow's and ONNX's formats holds, 2 GB; it takes 20 GB of memory."""
    done = subprocess.run([sys.executable, "-c", HEAVY, "11200", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights GB"] > 3
    measured["a model of 3 GB, seconds and memory"] = found


def test_a_model_deeper_than_python_lets_functions_call_each_other(tmp_path: Any) -> None:
    """The part of the test above that takes seconds: read from a file and planned, with Python's own limit."""
    import tf_keras

    import tfqat

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        x = image = tf_keras.Input((4,))
        for number in range(1100):
            x = tf_keras.layers.ReLU(name=f"relu{number}")(x)
        tf_keras.Model(image, tf_keras.layers.Dense(2, name="logits")(x)).save(tmp_path / "deep.keras")
    finally:
        sys.setrecursionlimit(before)
    model = tfqat.load_model(tmp_path / "deep.keras")
    assert sys.getrecursionlimit() == before
    assert len(model.layers) == 1102 and tfqat.plan(model).weights[0].given_source == "logits"
    assert len(tfqat.quantize_model(model).layers) > 1102
