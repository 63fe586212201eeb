"""Whole exports: one small network per kind of layer, run literally by ONNX Runtime and compared with the quantized Keras model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError, NotCalibratedError

# name -> (input shape, the layers, the placement's settings)
Build = Callable[[Any], list[Any]]
NETWORKS: dict[str, tuple[tuple[int, ...], Build]] = {
    "conv with bias and activation": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, activation="relu", name="op")]),
    "conv without bias": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, use_bias=False, name="op")]),
    "conv, same padding": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, padding="same", name="op")]),
    "conv, same padding, stride 2, odd size": ((7, 9, 3), lambda k: [k.Conv2D(6, 3, strides=2, padding="same", name="op")]),
    "conv, same padding, stride 2, even size": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, strides=2, padding="same", name="op")]),
    "conv, valid padding, stride 2": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, strides=2, name="op")]),
    "conv, dilation 2": ((9, 9, 3), lambda k: [k.Conv2D(6, 3, dilation_rate=2, padding="same", name="op")]),
    "conv with softmax": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, activation="softmax", name="op")]),
    "conv 1x3": ((8, 8, 3), lambda k: [k.Conv2D(6, (1, 3), name="op")]),
    "conv, grouped": ((8, 8, 4), lambda k: [k.Conv2D(6, 3, groups=2, name="op")]),
    "depthwise": ((8, 8, 5), lambda k: [k.DepthwiseConv2D(3, padding="same", name="op")]),
    "depthwise, multiplier 2": ((8, 8, 5), lambda k: [k.DepthwiseConv2D(3, depth_multiplier=2, name="op")]),
    "depthwise, stride 2": ((8, 8, 5), lambda k: [k.DepthwiseConv2D(3, strides=2, padding="same", name="op")]),
    "depthwise, dilation 2": ((9, 9, 5), lambda k: [k.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="op")]),
    "depthwise, one channel": ((8, 8, 1), lambda k: [k.DepthwiseConv2D(3, name="op")]),
    "Dense": ((7,), lambda k: [k.Dense(5, name="op")]),
    "Dense without bias": ((7,), lambda k: [k.Dense(5, use_bias=False, name="op")]),
    "Dense with activation": ((7,), lambda k: [k.Dense(5, activation="relu", name="op")]),
    "Dense on a sequence": ((4, 7), lambda k: [k.Dense(5, name="op")]),
    "AveragePooling2D before a conv": ((8, 8, 3), lambda k: [k.AveragePooling2D(2, name="pool"), k.Conv2D(6, 3, name="op")]),
    "AveragePooling2D, same padding": (
        (7, 7, 3),
        lambda k: [k.AveragePooling2D(3, strides=2, padding="same", name="pool"), k.Conv2D(6, 3, name="op")],
    ),
    "MaxPooling2D before a conv": ((8, 8, 3), lambda k: [k.MaxPooling2D(2, name="pool"), k.Conv2D(6, 3, name="op")]),
    "pooling, Flatten, Dense": ((8, 8, 3), lambda k: [k.MaxPooling2D(2, name="pool"), k.Flatten(name="flat"), k.Dense(5, name="op")]),
    "conv, BatchNorm": ((8, 8, 3), lambda k: [k.Conv2D(6, 3, name="op"), k.BatchNormalization(name="bn")]),
    "conv, grouped, BatchNorm": ((8, 8, 4), lambda k: [k.Conv2D(6, 3, groups=2, name="op"), k.BatchNormalization(name="bn")]),
    "conv, BatchNorm without scale and centre": (
        (8, 8, 3),
        lambda k: [k.Conv2D(6, 3, name="op"), k.BatchNormalization(scale=False, center=False, name="bn")],
    ),
    "depthwise, multiplier 2, BatchNorm": (
        (8, 8, 5),
        lambda k: [k.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="op"), k.BatchNormalization(epsilon=0.01, name="bn")],
    ),
}


def network(shape: tuple[int, ...], build: Build, seed: int = 0) -> Any:
    """The layers in a row, all weights random: BatchNorms with gammas of both signs and one that is zero."""
    import tf_keras

    tensor = image = tf_keras.Input(shape, name="image")
    for layer in build(tf_keras.layers):
        tensor = layer(tensor)
    model = tf_keras.Model(image, tensor, name="net")
    randomize(model, seed)
    return model


def randomize(model: Any, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(size=weight.shape)
        if "variance" in weight.name:
            value = rng.uniform(0.05, 2.0, weight.shape)
        if "gamma" in weight.name:
            value.flat[2] = 0.0
        weight.assign(value)


def data(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(16, *shape)).astype(np.float32)


def calibrated(model: Any, quantization: Any = "selective") -> Any:
    import tfqat

    qmodel = tfqat.quantize_model(model, quantization)
    tfqat.calibrate(qmodel, [data(model.input_shape[1:])], batches=1)
    return qmodel


def literal(path: Path, inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(str(path), full_check=True)
    return runtime.run_batches(runtime.session(path, literal=True), [inputs])


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def assert_same_function(qmodel: Any, path: Path) -> None:
    """Outputs within 1e-5 of the largest one; the quantized model computes something else than the float model."""
    inputs = data(qmodel.input_shape[1:])
    wanted, found = qmodel(inputs, training=False).numpy(), literal(path, inputs)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("shape", "build"), NETWORKS.values(), ids=NETWORKS)
def test_every_kind_of_layer_exports_to_the_same_function(shape: tuple[int, ...], build: Build, tmp_path: Path) -> None:
    import tfqat

    model = network(shape, build)
    qmodel = calibrated(model)
    report = tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert_same_function(qmodel, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    (operation,) = (node for node in graph.node if node.op_type in ("Conv", "MatMul"))
    assert (operation.name, report.operations) == ("op", {"op": operation.op_type})
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert report.kept_batch_norms == ()
    weight = "depthwise_kernel" if "depthwise" in type(model.get_layer("op")).__name__.lower() else "kernel"
    (codes,) = (array for array in initializers(tmp_path / "model.onnx").values() if array.dtype == np.int8 and array.ndim)
    assert codes.size == np.prod(getattr(model.get_layer("op"), weight).shape)
    (producer,) = (node for node in graph.node if operation.input[1] in node.output)
    assert (producer.op_type, producer.name) == ("DequantizeLinear", f"op/{weight}/DQ")
    # It is the quantized function that is exported, which is not the float one.
    inputs = data(shape)
    assert np.abs(literal(tmp_path / "model.onnx", inputs) - model(inputs, training=False).numpy()).max() > 1e-4


@pytest.mark.parametrize("opset", range(13, 24))
def test_opsets_13_to_23(opset: int, tiny_quantized: Any, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    import tfqat

    report = tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", opset=opset)
    proto = onnx.load(tmp_path / "model.onnx")
    assert report.opset == opset
    assert [(one.domain, one.version) for one in proto.opset_import if one.domain in ("", "ai.onnx")] == [("", opset)]
    assert {one.key: one.value for one in proto.metadata_props}["tfqat.opset"] == str(opset)
    inputs = next(iter(tiny_data("calibration")))[0].numpy()
    wanted = tiny_quantized(inputs, training=False).numpy()
    # Two codes of 64 images may lie at a tie; a step of the last layers' grid is far below 1% of the largest logit.
    assert np.abs(literal(tmp_path / "model.onnx", inputs) - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", [12, 24])
def test_an_opset_out_of_range_is_an_error_and_writes_nothing(opset: int, tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(ExportError, match=rf"opset {opset} is out of range: .* 13 to 23; 17 is the default"):
        tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_ranges_is_an_error_and_writes_nothing(tiny_float: Any, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(NotCalibratedError, match=r"11 of 11 quantizers .* call tfqat.calibrate"):
        tfqat.export_onnx(tfqat.quantize_model(tiny_float), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_report_and_the_file_of_the_tiny_network(tiny_quantized: Any, tiny_float: Any, tmp_path: Path) -> None:
    import tfqat
    from tfqat.export.onnx import export_float_onnx

    report = tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", metadata={"tfqat.recipe_hash": "abc"})
    float_size = export_float_onnx(tiny_float, tmp_path / "float.onnx")
    assert (report.activations, report.weights, report.opset) == (6, 5, 17)
    assert report.size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert report.size_bytes < 0.5 * float_size == 0.5 * (tmp_path / "float.onnx").stat().st_size
    assert [result.folded for result in report.batch_norms] == [True] * 4
    proto = onnx.load(tmp_path / "model.onnx")
    metadata = {one.key: one.value for one in proto.metadata_props}
    assert metadata["tfqat.recipe_hash"] == "abc"
    assert metadata["tfqat.version"] == tfqat.__version__
    assert proto.producer_name == "tfqat"
    names = {"stem": "Conv", "depthwise": "Conv", "project": "Conv", "head": "Conv", "logits": "MatMul"}
    assert report.operations == names
    assert {node.name: node.op_type for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")} == names


def test_quantizers_are_named_after_points(tiny_quantized: Any, tiny_onnx: Path) -> None:
    from tfqat.quantize import state

    handles = state.handles(tiny_quantized)
    wanted = {f"{name}/DQ" for name in handles} | {f"{name}/Q" for name, handle in handles.items() if handle.weight is None}
    found = [node.name for node in onnx.load(tiny_onnx).graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert set(found) == wanted
    assert len(found) == len(wanted) == 17


def test_weights_are_int8_codes_of_the_model_and_nothing_large_is_float(tiny_quantized: Any, tiny_onnx: Path) -> None:
    from tfqat.proof.expected import expected_of

    stored = initializers(tiny_onnx)
    shapes = {}
    for weight in expected_of(tiny_quantized).weights:
        found = stored[f"{weight.layer}/{weight.weight}"]
        shapes[weight.layer] = found.shape
        assert found.dtype == np.int8
        np.testing.assert_array_equal(np.abs(found.astype(int)), np.abs(weight.codes.astype(int)))
        assert np.abs(found.astype(int)).max() == 127
    assert shapes == {
        "stem": (16, 1, 3, 3),
        "depthwise": (16, 1, 3, 3),
        "project": (16, 16, 1, 1),
        "head": (24, 16, 3, 3),
        "logits": (24, 4),
    }
    assert max(array.size for array in stored.values() if array.dtype == np.float32) == 24


def test_a_negative_gamma_negates_the_codes_of_its_channel(tiny_quantized: Any, tiny_onnx: Path) -> None:
    from tfqat.quantize import state

    codes, _ = state.weight_codes(state.handles(tiny_quantized)["depthwise/depthwise_kernel"])
    gamma = tiny_quantized.get_layer("depthwise_bn").gamma.numpy()
    assert {-1.0, 1.0} == set(np.sign(gamma))
    wanted = codes.transpose(2, 3, 0, 1).reshape(16, 1, 3, 3) * np.sign(gamma).astype(np.int8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(initializers(tiny_onnx)["depthwise/depthwise_kernel"], wanted)


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_batch_size_is_dynamic(batch: int, tiny_onnx: Path) -> None:
    inputs = data((12, 12, 1))[:1].repeat(batch, axis=0)
    outputs = literal(tiny_onnx, inputs)
    assert outputs.shape == (batch, 4)
    np.testing.assert_allclose(outputs, np.repeat(literal(tiny_onnx, inputs[:1]), batch, axis=0), rtol=1e-5, atol=1e-6)


def test_four_bit_weights_lie_within_seven(tmp_path: Path) -> None:
    import tfqat

    model = network((8, 8, 3), lambda k: [k.Conv2D(16, 3, name="op"), k.BatchNormalization(name="bn")])
    qmodel = calibrated(model, {"preset": "selective", "weights": {"num_bits": 4}})
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    codes = initializers(tmp_path / "model.onnx")["op/kernel"]
    assert (codes.dtype, codes.min(), codes.max()) == (np.int8, -7, 7)
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_weights_per_tensor(tmp_path: Path) -> None:
    import tfqat

    model = network((8, 8, 3), lambda k: [k.Conv2D(6, 3, name="first"), k.ReLU(name="relu"), k.Conv2D(4, 3, name="second")])
    qmodel = calibrated(model, {"preset": "selective", "weights": {"granularity": "per_tensor"}})
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert initializers(tmp_path / "model.onnx")["first/kernel/scale"].shape == ()
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_a_channel_of_zeros_exports_with_positive_scales(tmp_path: Path) -> None:
    import tfqat

    model = network((8, 8, 3), lambda k: [k.Conv2D(6, 3, name="op"), k.BatchNormalization(name="bn")])
    kernel = model.get_layer("op").kernel
    kernel.assign(kernel.numpy() * (np.arange(6) != 1))
    qmodel = calibrated(model)
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    stored = initializers(tmp_path / "model.onnx")
    assert np.all(stored["op/kernel/scale"] > 0)
    assert not stored["op/kernel"][1].any() and stored["op/kernel"][0].any()
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_fold_batchnorm_off_keeps_the_nodes_and_the_function(tmp_path: Path) -> None:
    import tfqat

    qmodel = calibrated(network((8, 8, 3), lambda k: [k.Conv2D(6, 3, name="op"), k.BatchNormalization(name="bn")]))
    report = tfqat.export_onnx(qmodel, tmp_path / "model.onnx", fold_batchnorm=False)
    assert {result.reason for result in report.batch_norms} == {"folding is switched off"}
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node].count("BatchNormalization") == 1
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_a_convolution_read_twice_keeps_its_batch_norm_and_says_so(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    import tfqat

    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, name="op")(image)
    y = layers.Concatenate(name="concat")([layers.BatchNormalization(name="bn")(x), x])
    model = tf_keras.Model(image, y, name="net")
    randomize(model)
    qmodel = calibrated(model)
    report = tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    (kept,) = report.kept_batch_norms
    assert (kept.node, kept.reason) == ("bn", "the output of op is read elsewhere too")
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_a_batch_norm_without_a_convolution_stays_and_says_so(tmp_path: Path) -> None:
    import tfqat

    qmodel = calibrated(network((8, 8, 3), lambda k: [k.ReLU(name="relu"), k.BatchNormalization(name="bn"), k.Conv2D(4, 3, name="op")]))
    report = tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert [(result.folded, result.reason) for result in report.batch_norms] == [
        (False, "relu before it has no quantized weight, and its output is read as int8 codes")
    ]
    assert_same_function(qmodel, tmp_path / "model.onnx")


def test_two_inputs_and_two_outputs(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    import tfqat

    left, right = tf_keras.Input((8, 8, 3), name="left"), tf_keras.Input((5,), name="right")
    pooled = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(6, 3, activation="relu", name="conv")(left))
    both = layers.Concatenate(name="concat")([pooled, right])
    model = tf_keras.Model([left, right], [layers.Dense(4, name="one")(both), layers.Dense(2, name="two")(both)], name="net")
    randomize(model)
    inputs = (data((8, 8, 3)), data((5,)))
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [(inputs,)], batches=1)
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    found = runtime.run_batches(runtime.session(tmp_path / "model.onnx", literal=True), [inputs])
    assert [one.name for one in onnx.load(tmp_path / "model.onnx").graph.input] == ["left", "right"]
    for one, other in zip(found, qmodel(list(inputs), training=False), strict=True):
        assert np.abs(one - other.numpy()).max() <= 1e-5 * np.abs(other.numpy()).max()


def test_fake_quantization_of_the_users_own_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    import tfqat

    @tf_keras.utils.register_keras_serializable("tests")
    class Own(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_args(inputs, -1, 1)

    qmodel = calibrated(network((8, 8, 3), lambda k: [Own(name="own"), k.Conv2D(4, 3, name="op")]))
    with pytest.raises(ExportError, match="belongs to the model itself"):
        tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_without_an_onnx_counterpart_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    import tfqat

    @tf_keras.utils.register_keras_serializable("tests")
    class Unknown(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return tf.math.igamma(tf.abs(inputs) + 1.0, tf.abs(inputs))

    qmodel = calibrated(network((8, 8, 3), lambda k: [k.Conv2D(4, 3, name="op"), Unknown(name="unknown")]))
    with pytest.raises(ExportError, match="Igamma"):
        tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_model_as_it_was(tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat

    before = [weight.numpy().copy() for weight in tiny_quantized.weights]
    tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx")
    for old, new in zip(before, tiny_quantized.weights, strict=True):
        np.testing.assert_array_equal(new.numpy(), old)


def test_two_exports_of_one_model_hold_the_same_numbers_and_operations(tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    import tfqat

    tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx")
    first, second = onnx.load(tiny_onnx), onnx.load(tmp_path / "model.onnx")
    a, b = initializers(tiny_onnx), initializers(tmp_path / "model.onnx")
    named = [name for name in a if name.rpartition("/")[2] in ("kernel", "depthwise_kernel", "scale", "bias")]
    assert len(named) == 5 + 11 + 4
    for name in named:
        np.testing.assert_array_equal(a[name], b[name])
    assert [node.op_type for node in first.graph.node] == [node.op_type for node in second.graph.node]


def test_a_folder_that_cannot_be_written_is_an_error(tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat
    from tfqat.errors import RunDirectoryError

    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*Not a directory"):
        tfqat.export_onnx(tiny_quantized, tmp_path / "file" / "model.onnx")
