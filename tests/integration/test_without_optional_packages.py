"""The core without the packages that are optional: everything is imported, and a model is quantized, calibrated, exported and proven."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = (
    "matplotlib",
    "tensorrt",
    "tensorrt_bindings",
    "tensorrt_libs",
    "tensorrt_rtx_bindings",
    "tensorrt_rtx_libs",
    "ray",
    "tensorboard",
    "skimage",
    "pycocotools",
    "pandas",
    "sklearn",
    "torch",
    "PIL",
)
CODE = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())

import numpy as np
import tfqat, tfqat_cli
for package in (tfqat, tfqat_cli):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):  # it runs the command line
            importlib.import_module(found.name)
for name in tfqat.__all__:
    getattr(tfqat, name)

import tf_keras
from tf_keras import layers
x = tf_keras.Input((8, 8, 3))
y = layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, activation="relu")(x)))
qmodel = tfqat.quantize_model(tf_keras.Model(x, y))
batches = [np.random.default_rng(seed).random((4, 8, 8, 3), np.float32) for seed in (0, 1)]
import tensorflow as tf
data = tf.data.Dataset.from_tensor_slices(np.concatenate(batches)).batch(4)
tfqat.calibrate(qmodel, data, batches=2)
tfqat.export_onnx(qmodel, sys.argv[1])
assert tfqat.verify(qmodel, sys.argv[1], data).passed
report = tfqat.compile_engine(sys.argv[1])
print("proven; engine:", report.status)
print("imported:", sorted(set({OPTIONAL!r}) & set(sys.modules)))
"""


def test_core_without_optional_packages(tmp_path: object) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, f"{tmp_path}/m.onnx"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["proven; engine: not_run", "imported: []"]
