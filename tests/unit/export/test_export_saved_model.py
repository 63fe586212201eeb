"""A SavedModel of a quantized model: what TensorFlow serves, what plain tf2onnx makes of it, and that tfqat finds the model in it again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError, NotCalibratedError


@pytest.fixture(scope="module")
def folder(tiny_quantized: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tfqat

    path = tmp_path_factory.mktemp("saved") / "model"
    tfqat.export_saved_model(tiny_quantized, path)
    return path


@pytest.fixture(scope="module")
def images(tiny_data: Callable[[str], Any]) -> np.ndarray:
    return next(iter(tiny_data("validation")))[0].numpy()


def test_tensorflow_serves_it(folder: Path, tiny_quantized: Any, images: np.ndarray) -> None:
    import tensorflow as tf

    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    outputs = signature(image=tf.constant(images))
    assert list(outputs) == ["logits"]
    wanted = tiny_quantized(images).numpy()
    # A value at the edge of two codes may fall to the other one: a step of the last layers' grid.
    assert np.abs(outputs["logits"].numpy() - wanted).max() < 0.01 * np.abs(wanted).max()


def test_plain_tf2onnx_makes_the_same_graph(folder: Path, tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--opset", "17", "--output", str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 11 and not kinds["BatchNormalization"]
    theirs, ours = (runtime.run_batches(runtime.session(path, literal=True), [images]) for path in (tmp_path / "m.onnx", tiny_onnx))
    assert np.array_equal(theirs, ours)


def test_tfqat_makes_the_exact_graph_of_it(folder: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    from tfqat.export_run import export_source

    export_source(folder, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == tiny_onnx.read_bytes()


def test_an_existing_folder_and_a_model_without_ranges(folder: Path, tiny_quantized: Any, tiny_float: Any, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(ExportError, match="exists; choose another folder"):
        tfqat.export_saved_model(tiny_quantized, folder)
    with pytest.raises(NotCalibratedError, match="11 of 11 quantizers"):
        tfqat.export_saved_model(tfqat.quantize_model(tiny_float), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
