"""Exports of tensors and layers that share: one scale on several quantizers, one weight behind several operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tf_keras
from onnx import numpy_helper
from tf_keras import layers

import tfqat
from tfqat import numerics
from tfqat.quantize import state
from tfqat.spec import QuantSpec

RNG = np.random.default_rng(8)
DATA = RNG.normal(size=(24, 8, 8, 3)).astype(np.float32)


def random(model: Any, seed: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) if "variance" in weight.name else rng.normal(size=weight.shape))
    return model


def exported(model: Any, path: Path, data: Any, quantization: Any = "selective") -> tuple[Any, Any, onnx.GraphProto]:
    """The quantized model, the report and the graph, which are proven to be equal."""
    qmodel = tfqat.quantize_model(model, quantization)
    tfqat.calibrate(qmodel, [data], batches=1)
    report = tfqat.export_onnx(qmodel, path)
    proof = tfqat.verify(qmodel, path, [data], examples=24)
    assert proof.failures == ()
    return qmodel, report, onnx.load(path).graph


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


def scales(graph: onnx.GraphProto) -> dict[str, float]:
    """Point id -> scale, of the activations, as their QuantizeLinear reads it."""
    stored = constants(graph)
    return {node.name.removesuffix("/Q"): float(stored[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}


# --- one scale ---


def inception() -> Any:
    image = tf_keras.Input((8, 8, 3), name="image")
    a = layers.Conv2D(4, 1, activation="relu", name="a")(image)
    b = layers.Conv2D(5, 3, padding="same", activation="relu", name="b")(image)
    p = layers.MaxPooling2D(3, 1, padding="same", name="p")(image)
    x = layers.Concatenate(name="cat")([a, b, p])
    return tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(x), name="net")


@pytest.mark.parametrize("method", ["max", "percentile", "entropy", "mse"])
def test_a_concatenation_has_one_scale_in_the_model_and_in_the_file(method: str, tmp_path: Path) -> None:
    qmodel, _, graph = exported(random(inception()), tmp_path / "m.onnx", DATA, {"activations": {"calibrator": method}})
    ranges = state.ranges(qmodel)
    together = {"a", "b", "p", "cat", "image"}  # the max pooling connects the image with its own output
    assert {point.point.scale_group for name, point in state.handles(qmodel).items() if name in together} == {"image"}
    assert len({float(ranges[name]) for name in together}) == 1
    found = scales(graph)
    assert set(found) == together
    assert set(found.values()) == {float(numerics.scale_from_amax(ranges["cat"], QuantSpec()))}


def test_scales_are_apart_where_nothing_connects_the_tensors(tmp_path: Path) -> None:
    image = tf_keras.Input((8, 8, 3), name="image")
    a = layers.Conv2D(4, 1, name="a")(image)
    model = tf_keras.Model(image, layers.Conv2D(2, 1, name="b")(layers.AveragePooling2D(2, name="pool")(a)), name="net")
    _, _, graph = exported(random(model), tmp_path / "m.onnx", DATA)
    assert set(scales(graph)) == {"image", "a", "pool"}
    assert len(set(scales(graph).values())) == 3


def test_the_second_quantizer_of_a_group_changes_no_code(tmp_path: Path) -> None:
    """Behind Concat and MaxPool every value is on the grid already: the file without those Q/DQ computes the same, bit for bit."""
    from tfqat.engines import onnxruntime as runtime

    image = tf_keras.Input((8, 8, 3), name="image")
    a, b = layers.Conv2D(4, 1, name="a")(image), layers.Conv2D(4, 3, padding="same", name="b")(image)
    pool = layers.MaxPooling2D(2, name="pool")(layers.Concatenate(name="cat")([a, b]))
    model = tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(pool), name="net")
    _, _, graph = exported(random(model), tmp_path / "m.onnx", DATA)
    assert set(scales(graph)) == {"image", "a", "b", "pool"}
    (before,) = runtime.session(tmp_path / "m.onnx", literal=True).run(None, {"image": DATA})
    proto = onnx.load(tmp_path / "m.onnx")
    nodes = {node.name: node for node in proto.graph.node}
    quantize, dequantize = nodes["pool/Q"], nodes["pool/DQ"]
    for node in proto.graph.node:
        node.input[:] = [quantize.input[0] if name == dequantize.output[0] else name for name in node.input]
    proto.graph.node.remove(quantize)
    proto.graph.node.remove(dequantize)
    onnx.checker.check_model(proto, full_check=True)
    (after,) = runtime.session(proto.SerializeToString(), literal=True).run(None, {"image": DATA})
    np.testing.assert_array_equal(after, before)


# --- padding ---


def test_padding_is_behind_its_quantizer(tmp_path: Path) -> None:
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.Conv2D(2, 3, strides=2, name="b")(layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x))
    _, _, graph = exported(random(tf_keras.Model(image, x, name="net")), tmp_path / "m.onnx", DATA)
    assert set(scales(graph)) == {"image", "a"}
    producers = {output: node for node in graph.node for output in node.output}
    (second,) = (node for node in graph.node if node.name == "b")
    source = second.input[0]
    between = []
    while not producers[source].op_type.startswith("Dequantize"):
        between.append(producers[source].op_type)
        source = producers[source].input[0]
    assert producers[source].name == "a/DQ"
    assert set(between) <= {"Pad", "Transpose"}


# --- one weight ---


def twice(kind: str) -> Any:
    """A layer of each kind that is called for two inputs."""
    made = {
        "Conv2D": lambda: layers.Conv2D(4, 3, name="op"),
        "Conv2D, same padding and stride": lambda: layers.Conv2D(4, 3, strides=2, padding="same", name="op"),
        "grouped": lambda: layers.Conv2D(6, 3, groups=3, name="op"),
        "depthwise": lambda: layers.DepthwiseConv2D(3, name="op"),
        "Dense": lambda: layers.Dense(4, name="op"),
    }
    op, norm = made[kind](), layers.BatchNormalization(name="bn")
    inputs = [tf_keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    outputs = [layers.ReLU(name=f"relu{number}")(norm(op(x))) for number, x in enumerate(inputs)]
    return random(tf_keras.Model(inputs, layers.Subtract(name="sub")(outputs), name="net"))


@pytest.mark.parametrize("kind", ["Conv2D", "Conv2D, same padding and stride", "grouped", "depthwise", "Dense"])
def test_a_shared_layer_exports_one_weight_for_all_its_calls(kind: str, tmp_path: Path) -> None:
    data = {"left": DATA, "right": 2 * DATA[::-1]}
    qmodel, report, graph = exported(twice(kind), tmp_path / "m.onnx", data)
    assert (report.weights, report.activations) == (1, 2)
    assert [(result.node, result.folded) for result in report.batch_norms] == [("bn", True)]
    assert set(report.operations) == {"op"}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    weights = [array for array in constants(graph).values() if array.dtype == np.int8 and array.ndim]
    assert len(weights) == 1
    operations = [node for node in graph.node if node.name in ("op", "op@2")]
    assert len(operations) == 2 and len({node.input[1] for node in operations}) == 1
    assert scales(graph) == {name: float(numerics.scale_from_amax(state.ranges(qmodel)[name], QuantSpec())) for name in ("left", "right")}
    assert scales(graph)["right"] == pytest.approx(2 * scales(graph)["left"], rel=0.05)


def test_a_layer_that_is_called_three_times_in_a_row(tmp_path: Path) -> None:
    image = tf_keras.Input((8, 8, 3), name="image")
    conv, x = layers.Conv2D(3, 3, padding="same", activation="tanh", name="step"), image
    for _ in range(3):
        x = conv(x)
    _, report, graph = exported(random(tf_keras.Model(image, x, name="net")), tmp_path / "m.onnx", DATA)
    assert (report.weights, report.activations) == (1, 3)
    assert set(scales(graph)) == {"image", "step", "step@2"}
    steps = [node for node in graph.node if node.op_type == "Conv"]
    assert [node.name for node in steps] == ["step", "step@2", "step@3"]
    assert len({node.input[1] for node in steps}) == 1


def test_a_shared_layer_per_tensor_and_one_that_is_skipped(tmp_path: Path) -> None:
    data = {"left": DATA, "right": DATA}
    _, report, graph = exported(twice("Conv2D"), tmp_path / "a.onnx", data, {"weights": {"granularity": "per_tensor"}})
    assert report.weights == 1
    model = twice("Conv2D")
    head = tf_keras.Model(model.inputs, layers.Conv2D(2, 1, name="head")(model.output), name="net")
    _, report, graph = exported(head, tmp_path / "b.onnx", data, {"skip": ["op@2"]})
    assert (report.weights, set(scales(graph))) == (1, {"sub"})
    assert [(result.folded, result.reason) for result in report.batch_norms] == [(False, "op before it has no quantized weight")]
