"""Networks with what has gone wrong in conversion before: each goes from float to a proven graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def conv(x: Any, name: str, **settings: Any) -> Any:
    from tf_keras import layers

    return layers.Conv2D(8, 3, padding="same", name=name, **settings)(x)


def image() -> Any:
    import tf_keras

    return tf_keras.Input((8, 8, 4), name="image")


def two_equal_heads() -> Any:
    """Both heads start at zero on the same tensor: an optimizer would make one of them."""
    import tf_keras
    from tf_keras import layers

    x = layers.GlobalAveragePooling2D(name="pool")(conv(given := image(), "a"))
    return tf_keras.Model(given, [layers.Dense(3, kernel_initializer="zeros", name=name)(x) for name in ("h1", "h2")])


def convolution_times_constant() -> Any:
    """TensorFlow's optimizer would multiply the constant into the kernel."""
    import tf_keras
    from tf_keras import layers

    x = layers.Rescaling(0.3, name="scaled")(conv(given := image(), "a", use_bias=False))
    return tf_keras.Model(given, layers.ReLU(name="relu")(x))


def names_that_begin_alike() -> Any:
    import tf_keras

    x = conv(conv(conv(given := image(), "a"), "a/b"), "a_1")
    return tf_keras.Model(given, conv(x, "a.b"), name="a")


def one_tensor_read_through_dropout() -> Any:
    """At inference both convolutions read the same tensor, with the same range."""
    import tf_keras
    from tf_keras import layers

    x = layers.ReLU(name="relu")(conv(given := image(), "first"))
    return tf_keras.Model(given, layers.Add(name="add")([conv(x, "left"), conv(layers.Dropout(0.5, name="drop")(x), "right")]))


def kept_batch_norm() -> Any:
    """The convolution is read twice, so its BatchNorm cannot be folded."""
    import tf_keras
    from tf_keras import layers

    x = conv(given := image(), "a", use_bias=False)
    y = layers.BatchNormalization(name="bn", gamma_initializer="random_normal")(x)
    return tf_keras.Model(given, [conv(layers.ReLU(name="relu")(y), "b"), layers.ReLU(name="other")(x)])


def grouped_dilated_and_depthwise() -> Any:
    import tf_keras
    from tf_keras import layers

    x = conv(given := image(), "dilated", dilation_rate=2)
    x = conv(x, "grouped", groups=2)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="depthwise")(x)
    return tf_keras.Model(given, layers.Dense(5, name="dense")(layers.Flatten(name="flat")(x)))


NETWORKS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder
    for builder in (
        two_equal_heads,
        convolution_times_constant,
        names_that_begin_alike,
        one_tensor_read_through_dropout,
        kept_batch_norm,
        grouped_dilated_and_depthwise,
    )
}


def batches() -> list[np.ndarray]:
    return list(np.random.default_rng(3).normal(size=(2, 40, 8, 8, 4)).astype(np.float32))


def exported(build: Callable[[], Any], folder: Path, **settings: Any) -> tuple[Any, Any]:
    import tf_keras

    import tfqat

    tf_keras.utils.set_random_seed(5)
    qmodel = tfqat.quantize_model(build())
    tfqat.calibrate(qmodel, batches(), batches=2)
    return qmodel, tfqat.export_onnx(qmodel, folder / "model.onnx", **settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_proven(name: str, tmp_path: Path) -> None:
    import tfqat

    qmodel, report = exported(NETWORKS[name], tmp_path)
    parity = tfqat.verify(qmodel, tmp_path / "model.onnx", batches())
    assert parity.failures == ()
    assert report.weights == sum(1 for node in onnx.load(tmp_path / "model.onnx").graph.node if node.name.endswith("kernel/DQ"))
    assert set(report.operations) >= {layer.name for layer in qmodel.layers if isinstance(layer, tfqat.QuantizeWrapper)}


def test_a_batch_norm_that_was_not_to_be_folded_stays_and_the_graph_is_proven(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    import tfqat

    def build() -> Any:
        x = layers.BatchNormalization(name="bn")(conv(given := image(), "a", use_bias=False))
        return tf_keras.Model(given, conv(layers.ReLU(name="relu")(x), "b"))

    qmodel, report = exported(build, tmp_path, fold_batchnorm=False)
    assert {result.reason for result in report.batch_norms} == {"folding is switched off"}
    assert "BatchNormalization" in [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", batches()).failures == ()


def test_a_batch_norm_that_is_kept_says_why(tmp_path: Path) -> None:
    _, report = exported(kept_batch_norm, tmp_path)
    assert [result.reason for result in report.kept_batch_norms] == ["the output of a is read elsewhere too"]


def test_a_change_in_the_second_output_is_found(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    import tfqat

    def build() -> Any:
        x = layers.GlobalAveragePooling2D(name="pool")(conv(given := image(), "a"))
        return tf_keras.Model(given, [layers.Dense(3, name=name)(x) for name in ("h1", "h2")])

    qmodel, _ = exported(build, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    scale = next(one for one in model.graph.initializer if one.name == "h2/kernel/scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(7), scale.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    parity = tfqat.verify(qmodel, tmp_path / "other.onnx", batches())
    assert any("look behind the last point" in failure for failure in parity.failures)
    assert parity.outputs.max_abs_difference > 0.1


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        exported(grouped_dilated_and_depthwise, tmp_path / run)
        contents.append((tmp_path / run / "model.onnx").read_bytes())
    assert contents[0] == contents[1]
