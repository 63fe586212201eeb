"""ONNX Runtime on an emulated CPU without VNNI, whose int8 kernels add two products in 16 bits: `apt-get install qemu-user`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfqat.engines import onnxruntime as runtime

EMULATOR = shutil.which("qemu-x86_64")
RUN = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
images = np.load(sys.argv[2])
np.save(sys.argv[3], ort.InferenceSession(sys.argv[1], options).run(None, {"image": images})[0])
"""
pytestmark = pytest.mark.skipif(EMULATOR is None, reason="needs qemu-x86_64 (Debian's package qemu-user)")


def emulated(graph: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "images.npy", images)
    command = [str(EMULATOR), "-cpu", "Haswell", os.path.realpath(sys.executable), "-c", RUN]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    given = [graph, folder / "images.npy", folder / "outputs.npy"]
    subprocess.run([*command, *map(str, given)], env=environment, check=True, capture_output=True, timeout=300)
    return np.asarray(np.load(folder / "outputs.npy"))


@pytest.mark.parametrize(("target", "close"), [("onnxruntime", True), ("tensorrt", False)])
def test_what_was_planned_for_it_is_right(
    target: str, close: bool, tiny_float: Any, tiny_data: Callable[[str], Any], tmp_path: Path
) -> None:
    """Planned for TensorRT, with 8-bit weights everywhere, the same graph saturates, and is far off."""
    import tf_keras

    import tfqat
    from tfqat.form import Form

    model = tf_keras.models.clone_model(tiny_float)
    model.set_weights(tiny_float.get_weights())
    kernel = model.get_layer("head").kernel
    kernel.assign(np.abs(kernel.numpy()))  # large neighbours of one sign
    qmodel = tfqat.quantize_model(model, {"target": target})
    tfqat.calibrate(qmodel, tiny_data("calibration"), batches=4)
    path = tmp_path / "model.onnx"
    tfqat.export_onnx(qmodel, path, form=Form(target="onnxruntime"))
    images = next(iter(tiny_data("validation")))[0].numpy()[:50]
    literal = runtime.run_batches(runtime.session(path, literal=True), [images])
    apart = np.abs(emulated(path, images, tmp_path) - literal).max() / np.abs(literal).max()
    assert (apart < 0.01) == close, apart
