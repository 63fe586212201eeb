"""Calibration under tf.distribute: the ranges are bit for bit those of one device. Each case is a process of its own.

Logical devices and workers must be set up before TensorFlow starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import contextlib, json, os, sys
import numpy as np
import tensorflow as tf
import tf_keras
import tfqat

kind, devices, inside = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "inside"
worker = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index")
if kind == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(devices)])
elif kind == "workers":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
scope = contextlib.nullcontext if kind == "plain" else strategy.scope


def quantized():
    tf_keras.utils.set_random_seed(3)
    image = x = tf_keras.Input((12, 12, 16), name="image")
    for name in ("one", "two"):
        x = tf_keras.layers.Conv2D(24, 3, padding="same", use_bias=False, name=name)(x)
        x = tf_keras.layers.ReLU(name=name + "_relu")(tf_keras.layers.BatchNormalization(name=name + "_bn")(x))
    out = tf_keras.layers.Dense(4, name="fc")(tf_keras.layers.GlobalAveragePooling2D(name="pool")(x))
    return tfqat.quantize_model(tf_keras.Model(image, out))


images = np.float32(np.random.default_rng(0).normal(0, 1, (45, 12, 12, 16)))
if "nan" in sys.argv[4:]:
    images[30, 0, 0, 0] = np.nan
batches = [images[:16], images[16:31], images[31:44], images[44:]]
if worker is not None:
    batches = batches[2 * worker : 2 * worker + 2]
with scope() if inside else contextlib.nullcontext():
    qmodel = quantized()
with scope():
    try:
        print("RESULT" + json.dumps(tfqat.calibrate(qmodel, batches, batches=len(batches)).to_dict()), flush=True)
    except tfqat.errors.DataError as error:
        print("RESULT" + json.dumps(str(error)), flush=True)
"""


def start(tmp_path: Path, *arguments: str, config: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    path = tmp_path / "calibrate.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"TF_CONFIG": json.dumps(config)} if config else {})
    command = [sys.executable, str(path), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    lines = [line for line in out.splitlines() if line.startswith("RESULT")]
    assert lines, err[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return result(start(tmp_path_factory.mktemp("plain"), "plain", "1", "outside"))


def workers(tmp_path: Path, *arguments: str) -> list[Any]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]
    cluster = {"worker": addresses}
    started = [
        start(tmp_path, "workers", "1", *arguments, config={"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]
    return [result(process) for process in started]


@pytest.mark.slow
@pytest.mark.parametrize("made", ["inside", "outside"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_replicas_of_one_machine(plain: Any, tmp_path: Path, devices: int, made: str) -> None:
    assert plain["examples"] == 45
    assert result(start(tmp_path, "mirrored", str(devices), made)) == plain


def test_two_replicas(plain: Any, tmp_path: Path) -> None:
    """The quickest of the cases above, so that each run of the tests has one."""
    assert result(start(tmp_path, "mirrored", "2", "outside")) == plain


@pytest.mark.slow
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_two_workers_each_with_its_own_data(plain: Any, tmp_path: Path, made: str) -> None:
    one, other = workers(tmp_path, made)
    assert one == other == plain


@pytest.mark.slow
def test_nan_of_one_worker_stops_both(tmp_path: Path) -> None:
    one, other = workers(tmp_path, "outside", "nan")
    assert one == "calibration batch 1: tensor 'image' holds NaN or Inf. Look at that batch of the calibration data"
    assert other == "calibration stopped on 1 of the other workers: its own message says why"
