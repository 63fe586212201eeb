"""Float models of more than 2 GB: weights go past the converter. The limits are lowered here; the robustness suite has 3 GB of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tf_keras

from tfqat.export import form, large
from tfqat.export.onnx import export_float_onnx

layers = tf_keras.layers


def network() -> tf_keras.Model:
    """Every kind of weight that goes apart, one of them read twice."""
    tf_keras.utils.set_random_seed(3)
    image = layers.Input((8, 8, 4), name="image")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = shared(shared(image))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="up")(x)
    x = layers.Flatten(name="flat")(x)
    return tf_keras.Model(image, layers.Dense(5, name="logits")(x))


def run(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


@pytest.mark.parametrize("least", [1, 100 * 4])
def test_the_graph_computes_the_same(least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    export_float_onnx(model, tmp_path / "whole.onnx")
    monkeypatch.setattr(large, "IN_MEMORY", 100)
    monkeypatch.setattr(large, "_LARGE", least)
    export_float_onnx(model, tmp_path / "apart.onnx")
    graph = onnx.load(tmp_path / "apart.onnx").graph
    assert [value.name for value in graph.input] == ["image"]
    made = {value.name for value in graph.initializer if value.name.endswith("/weight")}
    sizes = {"shared/weight": 144, "depthwise/weight": 36, "up/weight": 216, "logits/weight": 5 * 16 * 16 * 6}
    assert made == {name for name, size in sizes.items() if size * 4 >= least}
    np.testing.assert_allclose(run(tmp_path / "apart.onnx", images), run(tmp_path / "whole.onnx", images), rtol=1e-4, atol=1e-5)


def test_a_model_that_fits_goes_whole() -> None:
    model = network()
    assert large.with_large_weights_apart(model) == (model, ())


def test_large_constants_stay_out_of_the_converter_of_opsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    export_float_onnx(model, tmp_path / "whole.onnx", opset=21)
    given: list[int] = []
    convert = form.version_converter.convert_version

    def converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        given.append(proto.ByteSize())
        return convert(proto, opset)

    monkeypatch.setattr(form.version_converter, "convert_version", converted)
    monkeypatch.setattr(form, "_PASSES_BY", 100)
    export_float_onnx(model, tmp_path / "apart.onnx", opset=21)
    assert given[0] < 5 * 16 * 16 * 6 * 4
    np.testing.assert_array_equal(run(tmp_path / "apart.onnx", images), run(tmp_path / "whole.onnx", images))
