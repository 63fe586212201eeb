"""What tests share: a tiny network that is trained half-way, data for it, a recipe on disk, and what the library makes of them.

TensorFlow is imported in the fixtures, so that tests which need none start at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # it ignores Ctrl-C, and the commands that tests start and interrupt would do so too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Written beside the tiny recipe. Four classes of 12 x 12 images: stripes in four directions under noise.
DATA_PY = '''\
"""Stripes in four directions, under noise."""

import numpy as np
import tensorflow as tf


def arrays(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    rows, columns = np.mgrid[0:12, 0:12]
    angles = (labels * np.pi / 4)[:, None, None]
    phases, frequencies = rng.uniform(0, 6.28, (count, 1, 1)), rng.uniform(0.8, 1.4, (count, 1, 1))
    waves = 0.5 + 0.5 * np.sin(frequencies * (np.cos(angles) * rows + np.sin(angles) * columns) + phases)
    images = np.clip(waves + rng.normal(0, 0.45, waves.shape), 0, 1)[..., None].astype(np.float32)
    return images, labels.astype(np.int64)


def train():
    return tf.data.Dataset.from_tensor_slices(arrays(768, 1)).batch(64)


def validation():
    return tf.data.Dataset.from_tensor_slices(arrays(1000, 2)).batch(250)


def calibration():
    return tf.data.Dataset.from_tensor_slices(arrays(256, 3)).batch(64)
'''

TINY_RECIPE = """\
version: 1
model: {source: float.keras}
data:
  train: "data.py:train"
  validation: "data.py:validation"
  calibration: "data.py:calibration"
training:
  epochs: 10
  batch_size: 64
  learning_rate: 0.05
  loss: {name: SparseCategoricalCrossentropy, from_logits: true}
  metrics: [accuracy]
calibration: {batches: 4}
qat: {lr_decay_factor: 1.0}
compile: {compute_capabilities: [SM86]}
seed: 7
"""


def build_tiny() -> Any:
    """conv + bn + relu6, depthwise, a residual Add, global pooling, Dense: 4,388 parameters."""
    import tf_keras
    from tf_keras import layers

    def conv_bn(x: Any, layer: Any, *, relu: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=0.8, name=f"{layer.name}_bn")(layer(x))
        return layers.ReLU(6.0, name=f"{layer.name}_relu")(x) if relu else x

    image = tf_keras.Input((12, 12, 1), name="image")
    shortcut = conv_bn(image, layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem"))
    x = conv_bn(shortcut, layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"))
    x = conv_bn(x, layers.Conv2D(16, 1, use_bias=False, name="project"), relu=False)
    x = layers.Add(name="add")([shortcut, x])
    x = conv_bn(x, layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False, name="head"))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(4, name="logits")(x), name="tiny")


@pytest.fixture(autouse=True)
def _no_module_of_another_project() -> Iterator[None]:
    """Data functions of several projects are in files called `data.py`, which others import by that name."""
    yield
    sys.modules.pop("data", None)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yaml`, `data.py` and `float.keras`. Copy it before changing anything in it."""
    import tf_keras

    from tfqat.recipe.references import load_reference

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "data.py").write_text(DATA_PY)
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    arrays = load_reference("data.py:arrays", base=folder)
    tf_keras.utils.set_random_seed(1)
    model = build_tiny()
    model.compile(tf_keras.optimizers.Adam(3e-3), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*arrays(768, 1), batch_size=64, epochs=2, verbose=0)
    gamma = model.get_layer("depthwise_bn").gamma
    gamma.assign(np.where(np.arange(16) % 4 == 0, -1.0, 1.0) * gamma.numpy())  # folding has to negate codes
    trained = build_tiny()
    trained.set_weights(model.get_weights())
    trained.save(folder / "float.keras")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_project: Path) -> Callable[[str], Any]:
    """split -> the data set of that name in the tiny project."""
    from tfqat.recipe.references import load_reference

    return lambda split: load_reference(f"data.py:{split}", base=tiny_project)()


@pytest.fixture(scope="session")
def tiny_float(tiny_project: Path) -> Any:
    """The float model. Not to be changed."""
    import tfqat

    return tfqat.load_model(tiny_project / "float.keras")


@pytest.fixture(scope="session")
def tiny_quantized(tiny_float: Any, tiny_data: Callable[[str], Any]) -> Any:
    """The calibrated model of the preset `selective`. Not to be changed."""
    import tfqat

    qmodel = tfqat.quantize_model(tiny_float)
    tfqat.calibrate(qmodel, tiny_data("calibration"), batches=4)
    return qmodel


@pytest.fixture(scope="session")
def tiny_onnx(tiny_quantized: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported graph of `tiny_quantized`. Not to be changed."""
    import tfqat

    path = tmp_path_factory.mktemp("tiny_onnx") / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_project: Path) -> Any:
    """The RunResult of the tiny recipe: the full run, with fine-tuning and, where TensorRT for RTX is installed, an engine."""
    import tfqat

    return tfqat.run(tiny_project / "tiny.yaml", out=tiny_project / "runs")
