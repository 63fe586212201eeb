"""The passes on small hand-made graphs: what matches, what does not and why, and the same numbers before and after in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError
from tfqat.export import passes
from tfqat.export.passes import WeightCodes

EPSILON = 1e-3


def make(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    *,
    inputs: dict[str, Sequence[Any]],
    outputs: dict[str, Sequence[Any]],
) -> ir.Model:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


def run(model: ir.Model, *arrays: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph, every node as it is written, after the checker has seen it."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = runtime.session(proto.SerializeToString(), literal=True)
    return session.run(None, dict(zip([one.name for one in session.get_inputs()], arrays, strict=True)))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def relative(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max() / np.abs(second).max())


# --- cancel_transposes ---


def transposes(*perms: Sequence[int], outputs: Iterable[str] = ("y",)) -> ir.Model:
    """x -> Transpose -> ... -> Relu -> y; `t<i>` is what Transpose number i makes."""
    names = ["x", *(f"t{index}" for index in range(len(perms)))]
    nodes = [
        helper.make_node("Transpose", [before], [after], perm=list(perm), name=after)
        for perm, before, after in zip(perms, names[:-1], names[1:], strict=True)
    ]
    nodes.append(helper.make_node("Relu", [names[-1]], ["y"], name="relu"))
    return make(nodes, {}, inputs={"x": [2, 3, 4, 5]}, outputs={name: [None] * 4 for name in outputs})


def test_two_transposes_that_undo_each_other_are_removed() -> None:
    model = transposes((0, 3, 1, 2), (0, 2, 3, 1))
    (before,) = run(model, images(2, 3, 4, 5))
    assert passes.cancel_transposes(model.graph) == 1
    assert ops(model) == ["Relu"]
    np.testing.assert_array_equal(run(model, images(2, 3, 4, 5))[0], before)


def test_a_chain_of_four_transposes_is_removed() -> None:
    model = transposes((0, 3, 1, 2), (0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 3, 1))
    (before,) = run(model, images(2, 3, 4, 5))
    passes.cancel_transposes(model.graph)
    assert ops(model) == ["Relu"]
    np.testing.assert_array_equal(run(model, images(2, 3, 4, 5))[0], before)


TRANSPOSES_THAT_STAY = {
    "a single one": (((0, 3, 1, 2),), ("y",)),
    "the same way twice": (((0, 3, 1, 2), (0, 3, 1, 2)), ("y",)),
    "the second is an output of the graph": (((0, 3, 1, 2), (0, 2, 3, 1)), ("y", "t1")),
}


@pytest.mark.parametrize(("perms", "outputs"), TRANSPOSES_THAT_STAY.values(), ids=TRANSPOSES_THAT_STAY)
def test_transposes_that_stay(perms: Sequence[Sequence[int]], outputs: Sequence[str]) -> None:
    model = transposes(*perms, outputs=outputs)
    before = run(model, images(2, 3, 4, 5))
    assert passes.cancel_transposes(model.graph) == 0
    assert ops(model) == ["Transpose"] * len(perms) + ["Relu"]
    for old, new in zip(before, run(model, images(2, 3, 4, 5)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_first_transpose_that_is_read_elsewhere_stays() -> None:
    model = transposes((0, 3, 1, 2), (0, 2, 3, 1), outputs=("y", "t0"))
    before = run(model, images(2, 3, 4, 5))
    assert passes.cancel_transposes(model.graph) == 1
    assert ops(model) == ["Transpose", "Relu"]
    for old, new in zip(before, run(model, images(2, 3, 4, 5)), strict=True):
        np.testing.assert_array_equal(new, old)


# --- quantize_weights ---

KERNEL_CODES = np.random.default_rng(2).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
KERNEL_SCALE = np.linspace(0.001, 0.02, 6, dtype=np.float32)
DENSE_CODES = np.random.default_rng(3).integers(-127, 128, (8, 5)).astype(np.int8)
DENSE_SCALE = np.linspace(0.001, 0.02, 5, dtype=np.float32)


def float_conv(weight: np.ndarray, name: str = "net/conv/Conv2D") -> ir.Model:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=name)
    return make([node], {"w": weight}, inputs={"x": [None, 3, 7, 7]}, outputs={"y": [None, 6, 5, 5]})


def conv_codes(layer: str = "conv") -> WeightCodes:
    return WeightCodes(layer=layer, weight="kernel", codes=KERNEL_CODES, scale=KERNEL_SCALE, axis=0)


def conv_weight() -> np.ndarray:
    return KERNEL_CODES.astype(np.float32) * KERNEL_SCALE.reshape(-1, 1, 1, 1)


def test_a_convolution_gets_int8_codes_and_the_same_output() -> None:
    model = float_conv(conv_weight())
    (before,) = run(model, images(2, 3, 7, 7))
    passes.quantize_weights(model.graph, [conv_codes()], prefix="net")
    assert ops(model) == ["DequantizeLinear", "Conv"]
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(constants) == {"conv/kernel", "conv/kernel/scale"}
    np.testing.assert_array_equal(constants["conv/kernel"], KERNEL_CODES)
    assert constants["conv/kernel"].dtype == np.int8
    np.testing.assert_array_equal(constants["conv/kernel/scale"], KERNEL_SCALE)
    dequantize = next(iter(model.graph))
    assert (dequantize.name, dequantize.attributes["axis"].as_int()) == ("conv/kernel/DQ", 0)
    np.testing.assert_array_equal(run(model, images(2, 3, 7, 7))[0], before)


def test_a_matrix_product_has_its_scales_on_axis_1() -> None:
    weight = DENSE_CODES.astype(np.float32) * DENSE_SCALE
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="net/dense/MatMul")
    model = make([node], {"w": weight}, inputs={"x": [None, 8]}, outputs={"y": [None, 5]})
    (before,) = run(model, images(4, 8))
    passes.quantize_weights(
        model.graph, [WeightCodes(layer="dense", weight="kernel", codes=DENSE_CODES, scale=DENSE_SCALE, axis=1)], prefix="net"
    )
    assert ops(model) == ["DequantizeLinear", "MatMul"]
    assert next(iter(model.graph)).attributes["axis"].as_int() == 1
    np.testing.assert_array_equal(run(model, images(4, 8))[0], before)


def test_a_weight_per_tensor_has_a_scalar_scale_and_no_axis() -> None:
    scale = np.float32(0.01)
    model = float_conv(KERNEL_CODES.astype(np.float32) * scale)
    (before,) = run(model, images(2, 3, 7, 7))
    weight = WeightCodes(layer="conv", weight="kernel", codes=KERNEL_CODES, scale=np.asarray(scale), axis=None)
    passes.quantize_weights(model.graph, [weight], prefix="net")
    dequantize = next(iter(model.graph))
    assert dequantize.inputs[1].const_value.numpy().shape == ()
    assert "axis" not in dequantize.attributes
    np.testing.assert_array_equal(run(model, images(2, 3, 7, 7))[0], before)


def test_a_constant_that_differs_in_one_bit_is_an_error() -> None:
    weight = conv_weight()
    weight[2, 1, 0, 0] = np.nextafter(weight[2, 1, 0, 0], np.float32(1))
    with pytest.raises(ExportError, match=r"layer 'conv': the weight that tf2onnx wrote for node 'net/conv/Conv2D' is not the quantized"):
        passes.quantize_weights(float_conv(weight).graph, [conv_codes()], prefix="net")


@pytest.mark.parametrize("name", ["net/other/Conv2D", "net/conv_2/Conv2D", "other/conv/Conv2D"])
def test_a_layer_without_an_operation_is_an_error(name: str) -> None:
    with pytest.raises(ExportError, match="layer 'conv' became 0 convolutions or matrix products in the ONNX graph; expected exactly one"):
        passes.quantize_weights(float_conv(conv_weight(), name).graph, [conv_codes()], prefix="net")


# --- fold_batch_norms ---


def quantized_conv_bn(
    *,
    shape: tuple[int, int, int, int] = (6, 4, 3, 3),
    group: int = 1,
    gamma: Any = (1.5, -0.7, 0.3, -2.0, 0.9, 1.1),
    bias: bool = False,
    per_tensor: bool = False,
    epsilon: float = EPSILON,
    also_output: bool = False,
    quantized: bool = True,
    between: str | None = None,
) -> ir.Model:
    """x -> Conv(DequantizeLinear(codes)) [-> `between`] -> BatchNormalization -> y."""
    rng = np.random.default_rng(4)
    channels = shape[0]
    scale = np.float32(0.01) if per_tensor else rng.uniform(0.001, 0.02, channels).astype(np.float32)
    constants = {
        "conv/kernel": rng.integers(-127, 128, shape).astype(np.int8),
        "conv/kernel/scale": scale,
        "gamma": np.asarray(gamma, np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "var": rng.uniform(0.01, 3.0, channels).astype(np.float32),
    }
    nodes = []
    if quantized:
        axis = {} if per_tensor else {"axis": 0}
        nodes.append(helper.make_node("DequantizeLinear", ["conv/kernel", "conv/kernel/scale"], ["w"], name="conv/kernel/DQ", **axis))
    else:
        constants = {"w": constants["conv/kernel"].astype(np.float32) * 0.01, **constants}
        del constants["conv/kernel"], constants["conv/kernel/scale"]
    inputs = ["x", "w"]
    if bias:
        constants["given_bias"] = rng.normal(size=channels).astype(np.float32)
        inputs.append("given_bias")
    nodes.append(helper.make_node("Conv", inputs, ["c"], name="net/conv/Conv2D", group=group))
    if between:
        nodes.append(helper.make_node(between, ["c"], ["b"], name="net/between"))
    nodes.append(
        helper.make_node(
            "BatchNormalization", ["b" if between else "c", "gamma", "beta", "mean", "var"], ["y"], name="net/bn/Fused", epsilon=epsilon
        )
    )
    outputs = {"y": [None, channels, 5, 5], **({"c": [None, channels, 5, 5]} if also_output else {})}
    return make(nodes, constants, inputs={"x": [None, shape[1] * group, 7, 7]}, outputs=outputs)


FOLDS = {
    "gamma of both signs": {},
    "gamma all positive": {"gamma": (1.5, 0.7, 0.3, 2.0, 0.9, 1.1)},
    "gamma zero in one channel": {"gamma": (1.5, 0.0, 0.3, -2.0, 0.9, 1.1)},
    "with a convolution bias": {"bias": True},
    "with a bias and a zero gamma": {"bias": True, "gamma": (0.0, -0.7, 0.3, -2.0, 0.9, 1.1)},
    "a large epsilon": {"epsilon": 0.5},
    "depthwise": {"shape": (6, 1, 3, 3), "group": 6},
    "depthwise, multiplier 2": {"shape": (6, 1, 3, 3), "group": 3},
    "grouped": {"shape": (6, 2, 3, 3), "group": 2},
    "per tensor": {"per_tensor": True},
    "per tensor, bias, grouped": {"per_tensor": True, "bias": True, "shape": (6, 2, 3, 3), "group": 2},
}


@pytest.mark.parametrize("settings", FOLDS.values(), ids=FOLDS)
def test_a_batch_norm_is_folded_into_scales_and_bias(settings: dict[str, Any]) -> None:
    model = quantized_conv_bn(**settings)
    codes = model.graph.initializers["conv/kernel"].const_value.numpy()
    gamma = model.graph.initializers["gamma"].const_value.numpy()
    x = images(2, codes.shape[1] * settings.get("group", 1), 7, 7)
    (before,) = run(model, x)

    (result,) = passes.fold_batch_norms(model.graph)

    assert (result.node, result.folded, result.reason) == ("net/bn/Fused", True, "folded into the scales of net/conv/Conv2D")
    assert ops(model) == ["DequantizeLinear", "Conv"]
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(constants) == {"conv/kernel", "conv/kernel/scale", "conv/bias"}
    # Code for code: a channel keeps its codes, has all of them negated (gamma < 0), or all zero (gamma = 0).
    np.testing.assert_array_equal(constants["conv/kernel"], codes * np.sign(gamma).astype(np.int8).reshape(-1, 1, 1, 1))
    assert constants["conv/kernel"].dtype == np.int8
    assert (constants["conv/kernel/scale"].shape, constants["conv/kernel/scale"].dtype) == ((6,), np.float32)
    assert np.all(constants["conv/kernel/scale"] > 0)
    assert (constants["conv/bias"].shape, constants["conv/bias"].dtype) == ((6,), np.float32)
    (after,) = run(model, x)
    assert relative(after, before) < 1e-5


def test_the_folded_numbers_are_those_of_the_equation() -> None:
    model = quantized_conv_bn(bias=True)
    old = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    passes.fold_batch_norms(model.graph)
    gain = old["gamma"] / np.sqrt(old["var"] + np.float64(np.float32(EPSILON)))
    new = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    np.testing.assert_array_equal(new["conv/kernel/scale"], (old["conv/kernel/scale"] * np.abs(gain)).astype(np.float32))
    np.testing.assert_array_equal(new["conv/bias"], (old["beta"] + (old["given_bias"] - old["mean"]) * gain).astype(np.float32))


BATCH_NORMS_THAT_STAY = {
    "the convolution is an output too": ({"also_output": True}, "the output of net/conv/Conv2D is read elsewhere too"),
    "a float weight": ({"quantized": False}, "the weight of net/conv/Conv2D is not quantized"),
    "an operation between": ({"between": "Relu"}, "no convolution right before it"),
}


@pytest.mark.parametrize(("settings", "reason"), BATCH_NORMS_THAT_STAY.values(), ids=BATCH_NORMS_THAT_STAY)
def test_a_batch_norm_stays_and_says_why(settings: dict[str, Any], reason: str) -> None:
    model = quantized_conv_bn(**settings)
    before, were = run(model, images(2, 4, 7, 7)), ops(model)
    (result,) = passes.fold_batch_norms(model.graph)
    assert (result.node, result.folded, result.reason) == ("net/bn/Fused", False, reason)
    assert ops(model) == were
    for old, new in zip(before, run(model, images(2, 4, 7, 7)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_convolution_that_a_second_node_reads_keeps_its_batch_norm() -> None:
    model = quantized_conv_bn()
    proto = ir.to_proto(model)
    proto.graph.node.append(helper.make_node("Relu", ["c"], ["r"], name="net/relu"))
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [None, 6, 5, 5]))
    model = ir.from_proto(proto)
    (result,) = passes.fold_batch_norms(model.graph)
    assert not result.folded and "read elsewhere" in result.reason
    assert ops(model) == ["DequantizeLinear", "Conv", "BatchNormalization", "Relu"]


def test_a_batch_norm_on_the_input_stays() -> None:
    node = helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], name="bn")
    constants = {name: np.ones(3, np.float32) for name in "gbmv"}
    model = make([node], constants, inputs={"x": [None, 3, 2, 2]}, outputs={"y": [None, 3, 2, 2]})
    (result,) = passes.fold_batch_norms(model.graph)
    assert (result.folded, result.reason) == (False, "no convolution right before it")


def test_the_model_given_twice_folds_once() -> None:
    model = quantized_conv_bn()
    assert len(passes.fold_batch_norms(model.graph)) == 1
    assert passes.fold_batch_norms(model.graph) == ()


# --- name_after_layers ---


def test_operations_get_the_names_of_their_layers() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "net/conv/w"], ["v1"], name="net/conv/Conv2D"),
        helper.make_node("Relu", ["v1"], ["v2"], name="net/conv_relu/Relu"),
        helper.make_node("Conv", ["v2", "net/conv_2/w"], ["y"], name="net/conv_2/Conv2D"),
    ]
    weights = {"net/conv/w": np.ones((2, 2, 1, 1), np.float32), "net/conv_2/w": np.full((2, 2, 1, 1), 2, np.float32)}
    model = make(nodes, weights, inputs={"x": [None, 2, 3, 3]}, outputs={"y": [None, 2, 3, 3]})
    (before,) = run(model, images(1, 2, 3, 3))
    named = passes.name_after_layers(model.graph, ["conv", "conv_relu", "conv_2", "dropout"], prefix="net")
    assert named == {"conv": "Conv", "conv_2": "Conv"}
    assert [node.name for node in model.graph] == ["conv", "conv_relu/Relu", "conv_2"]
    assert [node.outputs[0].name for node in model.graph] == ["conv.out", "conv_relu/Relu.out", "y"]
    assert set(model.graph.initializers) == {"conv/w", "conv_2/w"}
    np.testing.assert_array_equal(run(model, images(1, 2, 3, 3))[0], before)
