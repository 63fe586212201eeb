"""The onnxruntime target: the int8 grid as uint8, code for code, on kernels that add in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tfqat.engines import onnxruntime as runtime
from tfqat.export.unsigned import saturating_products
from tfqat.form import Form
from tfqat.proof.verify import verify_structure

FOR_ONNXRUNTIME = Form(target="onnxruntime")


@pytest.fixture(scope="module")
def planned(tiny_float: Any, tiny_data: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The tiny network planned and calibrated for the target, and its graph."""
    import tfqat

    qmodel = tfqat.quantize_model(tiny_float, {"target": "onnxruntime"})
    tfqat.calibrate(qmodel, tiny_data("calibration"), batches=4)
    path = tmp_path_factory.mktemp("unsigned") / "model.onnx"
    report = tfqat.export_onnx(qmodel, path, form=FOR_ONNXRUNTIME)
    assert report.saturating == ()
    return qmodel, path


def constants(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def test_weights_that_meet_both_signs_have_7_bits_and_the_branch_is_quantized(planned: tuple[Any, Path]) -> None:
    from tfqat.quantize.apply import placement_of

    points = {point.id: point for point in placement_of(planned[0]).points}
    assert {name: point.spec.num_bits for name, point in points.items() if point.kind == "weight"} == {
        "stem/kernel": 7,  # reads the image, which may be anything
        "depthwise/depthwise_kernel": 8,
        "project/kernel": 8,
        "head/kernel": 7,  # reads the sum, whose branch has no ReLU
        "logits/kernel": 8,
    }
    assert {name: point.non_negative for name, point in points.items() if point.kind == "activation"} == {
        "image": False,
        "stem_relu": True,
        "depthwise_relu": True,
        "add:1": False,
        "add": False,
        "head_relu": True,
        "pool": True,
    }


def test_the_graph_is_proven_literally_and_fused(planned: tuple[Any, Path], tiny_data: Callable[[str], Any]) -> None:
    import tfqat

    report = tfqat.verify(*planned, tiny_data("validation"), examples=500)
    assert report.failures == ()
    assert report.fused.codes > 1_000_000 and report.fused.max_difference <= 1


def test_limits_take_the_place_of_activations_and_zero_points_are_those_of_the_signs(planned: tuple[Any, Path]) -> None:
    graph = onnx.load(planned[1]).graph
    known = constants(planned[1])
    zero = {node.name: int(known[node.input[2]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zero == {"image/Q": 128, "stem_relu/Q": 0, "depthwise_relu/Q": 0, "add:1/Q": 128, "add/Q": 128, "head_relu/Q": 0, "pool/Q": 0}
    limits = {node.name: int(known[node.input[2]]) for node in graph.node if node.op_type == "Clip"}
    six = {name: min(127, int(np.rint(np.float32(6) / known[f"{name}/scale"]))) for name in ("stem_relu", "depthwise_relu", "head_relu")}
    assert limits == {**{f"{name}/limit": code for name, code in six.items()}, "pool/limit": 127}
    assert not {"Relu", "Transpose"} & {node.op_type for node in graph.node}


def test_every_product_runs_in_int8(planned: tuple[Any, Path], tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(planned[1]), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("QLinearConv") == 4 and kinds.count("QLinearAdd") == 1
    assert not {"Conv", "FusedConv", "Add", "MatMul", "Gemm"} & set(kinds), " ".join(kinds)


def test_values_beyond_the_range_are_clipped_at_127(planned: tuple[Any, Path], tiny_data: Callable[[str], Any]) -> None:
    """uint8 has room for 255 there, which the model was not trained with, and which would saturate."""
    from tfqat.proof.cut import OpenGraph

    images = 10 * next(iter(tiny_data("validation")))[0].numpy()
    _, codes = OpenGraph.observed(planned[1], ["stem_relu", "head_relu", "add"])({"image": images})
    assert codes["stem_relu"].max() == 127 and codes["stem_relu"].min() == 0 and codes["head_relu"].max() == 127


def test_a_model_that_was_planned_for_tensorrt_saturates(
    tiny_quantized: Any, tiny_data: Callable[[str], Any], planned: tuple[Any, Path], tmp_path: Path
) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    assert tfqat.export_onnx(tiny_quantized, path, form=FOR_ONNXRUNTIME).saturating == ("stem", "head")
    rule = "16-bit sums of two products do not saturate"
    broken = {check.rule: check.detail for check in verify_structure(tiny_quantized, path) if not check.passed}
    assert set(broken) == {rule} and broken[rule].startswith("stem: two products add up to 64770, more than 32767; plan the model")
    assert saturating_products(ir.load(planned[1]).graph) == {}
    for form in (Form(target="onnxruntime", weights="float"), Form(target="onnxruntime", remainder="float16")):
        tfqat.export_onnx(tiny_quantized, path, form=form)
        assert set(saturating_products(ir.load(path).graph)) == {"stem", "head"}


def test_one_scale_for_a_weight_that_is_written_as_floats(tiny_float: Any, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    """Its zero point is a scalar like those of activations, and of another type."""
    import tfqat

    qmodel = tfqat.quantize_model(tiny_float, {"target": "onnxruntime", "weights": {"granularity": "per_tensor"}})
    tfqat.calibrate(qmodel, tiny_data("calibration"), batches=4)
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx", form=Form(target="onnxruntime", weights="float"))
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", tiny_data("validation"), examples=50).failures == ()


def put_zero_point(path: Path, name: str, value: Any) -> None:
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(value), "other"))
    next(node for node in proto.graph.node if node.name == name).input[2] = "other"
    onnx.save(proto, str(path))


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (np.uint8(0), "add/Q has the zero point 0, expected uint8 128"),
        (np.int8(0), "add/Q has the zero point 0, expected uint8 128"),
    ],
)
def test_another_zero_point_is_found(value: Any, detail: str, planned: tuple[Any, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(planned[1].read_bytes())
    put_zero_point(path, "add/Q", value)
    found = {check.rule: check.detail for check in verify_structure(planned[0], path) if not check.passed}
    assert list(found.values()) == [detail]


def test_max_pooling_and_padding_come_after_the_quantizer(tmp_path: Path) -> None:
    """ResNet's stem: a float pooling between convolution and Q would keep the convolution in float."""
    import tf_keras
    from tf_keras import layers

    import tfqat

    image = tf_keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(image)
    x = layers.MaxPool2D(3, 2, name="max")(layers.ZeroPadding2D(1, name="pad")(x))
    x = layers.Conv2D(8, 3, name="next")(x)
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Model(image, layers.Flatten()(x))
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    qmodel = tfqat.quantize_model(model, {"target": "onnxruntime"})
    tfqat.calibrate(qmodel, [images], batches=1)
    path = tmp_path / "model.onnx"
    tfqat.export_onnx(qmodel, path, form=FOR_ONNXRUNTIME)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    at = kinds.index("QuantizeLinear", 1)
    assert kinds[at - 1 : at + 5] == ["Conv", "QuantizeLinear", "Clip", "Pad", "MaxPool", "DequantizeLinear"]
    report = tfqat.verify(qmodel, path, [images])
    assert report.failures == () and report.local.codes > 10_000


def test_a_channel_that_batchnorm_multiplies_by_zero_gets_a_usual_scale(
    tiny_float: Any, tiny_data: Callable[[str], Any], tmp_path: Path
) -> None:
    """Biases of ONNX Runtime are int32 in units of both scales: with the smallest scale the bias would not fit."""
    import tf_keras

    import tfqat

    model = tf_keras.models.clone_model(tiny_float)
    model.set_weights(tiny_float.get_weights())
    norm = model.get_layer("stem_bn")
    norm.gamma.assign(np.where(np.arange(16) == 5, 0.0, norm.gamma.numpy()))
    norm.beta.assign(np.where(np.arange(16) == 5, 2.0, norm.beta.numpy()))
    qmodel = tfqat.quantize_model(model, {"target": "onnxruntime"})
    tfqat.calibrate(qmodel, tiny_data("calibration"), batches=4)
    path = tmp_path / "model.onnx"
    tfqat.export_onnx(qmodel, path, form=FOR_ONNXRUNTIME)
    scale = constants(path)["stem/kernel/scale"]
    assert scale[5] == np.float32(np.median(np.delete(scale, 5)))
    report = tfqat.verify(qmodel, path, tiny_data("validation"), examples=100)
    assert report.failures == ()


def test_fused_outputs_are_those_of_the_literal_graph(planned: tuple[Any, Path], tiny_data: Callable[[str], Any]) -> None:
    images = next(iter(tiny_data("validation")))[0].numpy()
    literal, fused = (runtime.run_batches(runtime.session(planned[1], literal=one), [images]) for one in (True, False))
    assert (literal.argmax(axis=1) == fused.argmax(axis=1)).mean() >= 0.99
