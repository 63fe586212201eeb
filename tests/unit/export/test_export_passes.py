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
from tfqat.export import naming, passes
from tfqat.export.weights import WeightInput, quantize_weights

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

RNG = np.random.default_rng(2)


def fed(layout: Sequence[onnx.NodeProto], operation: str, shape: Sequence[int], *, x: Sequence[Any], y: Sequence[Any]) -> ir.Model:
    """x, w (an input of `shape`) -> layout nodes -> an operation that reads "w_laid"; how tf2onnx hands a weight over."""
    node = helper.make_node(operation, ["x", "w_laid"], ["y"], name="net/layer/Op")
    constants = {"grouped": np.array([3, 3, 1, 8]), "front": np.array([0])}
    used = {name for one in layout for name in one.input}
    return make(
        [*layout, node], {name: value for name, value in constants.items() if name in used}, inputs={"x": x, "w": shape}, outputs={"y": y}
    )


def node(op_type: str, source: str, target: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, [source, *more], [target], **attributes)


# name -> (layout nodes, operation, shape of the weight in Keras, axes with scales, shape of x, shape of y, axis of the scales in ONNX)
FED_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "Conv2D": (
        [node("Transpose", "w", "w_laid", perm=[3, 2, 0, 1])], "Conv", (3, 3, 4, 6), (3,), [None, 4, 7, 7], [None, 6, 5, 5], 0
    ),
    "Dense": ([node("Identity", "w", "w_laid")], "MatMul", (8, 5), (1,), [None, 8], [None, 5], 1),
    "Conv1D": (
        [node("Unsqueeze", "w", "u", "front"), node("Transpose", "u", "w_laid", perm=[3, 2, 0, 1])],
        "Conv", (3, 4, 6), (2,), [None, 4, 1, 7], [None, 6, 1, 5], 0,
    ),
    "Conv2D per tensor": (
        [node("Transpose", "w", "w_laid", perm=[3, 2, 0, 1])], "Conv", (3, 3, 4, 6), (), [None, 4, 7, 7], [None, 6, 5, 5], None
    ),
    "Conv2DTranspose": (
        [node("Transpose", "w", "w_laid", perm=[3, 2, 0, 1])], "ConvTranspose", (3, 3, 6, 4), (2,), [None, 4, 5, 5], [None, 6, 7, 7], 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FED_WEIGHTS)
def test_a_fed_weight_becomes_int8_codes_with_the_same_output(name: str) -> None:
    layout, operation, shape, axes, x_shape, y_shape, axis = FED_WEIGHTS[name]
    codes = RNG.integers(-127, 128, shape).astype(np.int8)
    scale = np.linspace(0.001, 0.02, int(np.prod([shape[one] for one in axes], dtype=int))).astype(np.float32)
    scale = scale.reshape([shape[one] for one in axes])
    dequantized = codes * scale.reshape([size if one in axes else 1 for one, size in enumerate(shape)])
    x = images(*(size or 2 for size in x_shape))
    (before,) = run(fed(layout, operation, shape, x=x_shape, y=y_shape), x, dequantized.astype(np.float32))

    model = fed(layout, operation, shape, x=x_shape, y=y_shape)
    weight = WeightInput(layer="layer", weight="kernel", input_name="w", codes=codes, scale=scale, axes=axes)
    quantize_weights(model.graph, [weight])
    assert ops(model) == ["DequantizeLinear", operation]
    assert [value.name for value in model.graph.inputs] == ["x"]
    dequantize, op = list(model.graph)
    assert (dequantize.name, op.name) == ("layer/kernel/DQ", "layer")
    assert (dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else None) == axis
    stored = model.graph.initializers["layer/kernel"].const_value.numpy()
    assert stored.dtype == np.int8
    assert sorted(stored.ravel()) == sorted(codes.ravel())
    np.testing.assert_array_equal(run(model, x)[0], before)


def depthwise(multiplier: int) -> tuple[ir.Model, WeightInput, np.ndarray]:
    """A depthwise weight as tf2onnx lays it out: (H, W, C, M) -> Reshape -> Transpose -> Conv with groups."""
    shape = (3, 3, 8 // multiplier, multiplier)
    codes = RNG.integers(-127, 128, shape).astype(np.int8)
    scale = np.linspace(0.001, 0.02, 8).astype(np.float32).reshape(shape[2:])
    nodes = [
        node("Reshape", "w", "r", "grouped"),
        node("Transpose", "r", "k", perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["x", "k"], ["y"], name="net/layer/depthwise", group=shape[2]),
    ]
    inputs = {"x": [None, shape[2], 7, 7], "w": shape}
    model = make(nodes, {"grouped": np.array([3, 3, 1, 8])}, inputs=inputs, outputs={"y": [None, 8, 5, 5]})
    weight = WeightInput(layer="layer", weight="depthwise_kernel", input_name="w", codes=codes, scale=scale, axes=(2, 3))
    return model, weight, (codes * scale).astype(np.float32)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_weight_keeps_a_scale_per_output_channel(multiplier: int) -> None:
    model, weight, dequantized = depthwise(multiplier)
    x = images(2, 8 // multiplier, 7, 7)
    (before,) = run(model, x, dequantized)
    quantize_weights(model.graph, [weight])
    assert ops(model) == ["DequantizeLinear", "Conv"]
    assert model.graph.initializers["layer/depthwise_kernel/scale"].const_value.numpy().shape == (8,)
    np.testing.assert_array_equal(run(model, x)[0], before)


def broken_weight(case: str) -> tuple[ir.Model, WeightInput]:
    shape, axes, layout, operation = (8, 5), (1,), [node("Identity", "w", "w_laid")], "MatMul"
    if case == "goes into another operation":
        layout = [node("Relu", "w", "w_laid")]
    if case == "channels of both axes":
        axes = (0, 1)
    model = fed(layout, operation, shape, x=[None, 8], y=[None, 5])
    if case == "read twice":
        model.graph.append(ir.node("Relu", [model.graph.inputs[1]]))
    codes, scale = np.ones(shape, np.int8), np.ones([shape[axis] for axis in axes], np.float32)
    name = "lost" if case == "lost" else "w"
    return model, WeightInput(layer="layer", weight="kernel", input_name=name, codes=codes, scale=scale, axes=axes)


BROKEN_WEIGHTS = {
    "lost": "layer 'layer': the ONNX graph lost its weight 'kernel'",
    "read twice": "layer 'layer': its weight goes into Relu in the ONNX graph, which no rule brings into INT8",
    "goes into another operation": "layer 'layer': its weight goes into Relu in the ONNX graph, which no rule brings into INT8",
    "channels of both axes": "layer 'layer': the channels of its weight do not lie along one axis in the ONNX graph",
}


@pytest.mark.parametrize(("case", "message"), BROKEN_WEIGHTS.items(), ids=BROKEN_WEIGHTS)
def test_a_weight_that_cannot_be_placed_is_an_error(case: str, message: str) -> None:
    model, weight = broken_weight(case)
    with pytest.raises(ExportError, match=message):
        quantize_weights(model.graph, [weight])


# --- join_quantizers, plain_resizes, padded_average_pools ---


def test_a_dequantizer_returns_to_its_quantizer() -> None:
    scale = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("Transpose", "q", "t", perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["t", "s", "z"], ["d"]),
        node("Relu", "d", "y"),
    ]
    model = make(nodes, scale, inputs={"x": [None, 2, 3]}, outputs={"y": [None, 3, 2]})
    x = images(4, 2, 3)
    before = run(model, x)
    assert passes.join_quantizers(model.graph) == 1
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "Transpose", "Relu"]
    np.testing.assert_array_equal(run(model, x)[0], before[0])
    assert passes.join_quantizers(model.graph) == 0


RESIZES = {
    "nearest by whole factors": ("nearest", "tf_half_pixel_for_nn", [1, 1, 2, 3], 1),
    "nearest by a broken factor": ("nearest", "tf_half_pixel_for_nn", [1, 1, 1.5, 2], 0),
    "linear": ("linear", "half_pixel", [1, 1, 2, 2], 0),
    "plain already": ("nearest", "asymmetric", [1, 1, 2, 2], 0),
}


@pytest.mark.parametrize(("mode", "coordinates", "factors", "changed"), RESIZES.values(), ids=RESIZES)
def test_nearest_resizing_is_written_plainly(mode: str, coordinates: str, factors: list[float], changed: int) -> None:
    settings = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": "floor"}
    resize = helper.make_node("Resize", ["x", "", "f"], ["y"], name="net/up", **settings)
    model = make([resize], {"f": np.asarray(factors, np.float32)}, inputs={"x": [1, 2, 4, 4]}, outputs={"y": [1, 2, None, None]})
    x = images(1, 2, 4, 4)
    before = run(model, x)
    assert passes.plain_resizes(model.graph) == changed
    (found,) = list(model.graph)
    assert found.attributes["coordinate_transformation_mode"].as_string() == ("asymmetric" if changed else coordinates)
    np.testing.assert_array_equal(run(model, x)[0], before[0])


POOLS = {
    "no padding": ({}, 1),
    "padding": ({"pads": [1, 1, 1, 1]}, 0),
    "same": ({"auto_pad": "SAME_UPPER"}, 0),
    "ceil": ({"ceil_mode": 1}, 0),
}


@pytest.mark.parametrize(("settings", "changed"), POOLS.values(), ids=POOLS)
def test_average_pooling_without_padding_counts_it(settings: dict[str, Any], changed: int) -> None:
    pool = helper.make_node("AveragePool", ["x"], ["y"], name="net/pool", kernel_shape=[2, 2], **settings)
    model = make([pool], {}, inputs={"x": [1, 2, 5, 5]}, outputs={"y": [1, 2, None, None]})
    x = images(1, 2, 5, 5)
    before = run(model, x)
    assert passes.padded_average_pools(model.graph) == changed
    (found,) = list(model.graph)
    assert found.attributes.get_int("count_include_pad", 0) == changed
    np.testing.assert_array_equal(run(model, x)[0], before[0])


# --- name_after_layers, settle_constants ---


def named() -> ir.Model:
    nodes = [
        helper.make_node("Conv", ["x", "net/a/w"], ["v1"], name="net/a/Conv2D"),
        helper.make_node("Clip", ["v1", "zero", "six"], ["v2"], name="net/a_relu/Relu6"),
        helper.make_node("Conv", ["v2", "net/a/b/w"], ["v3"], name="net/a/b/Conv2D"),
        helper.make_node("Clip", ["v3", "other_zero", "other_six"], ["v4"], name="net/b_relu/Relu6"),
        helper.make_node("Conv", ["v4", "net/done/w"], ["y"], name="net/done/Conv2D__17"),
    ]
    constants: dict[str, Any] = {
        f"net/{name}/w": np.full((2, 2, 1, 1), number, np.float32) for number, name in enumerate(["a", "a/b", "done"])
    }
    constants |= {name: np.float32(0) for name in ("zero", "other_zero")} | {name: np.float32(6) for name in ("six", "other_six")}
    return make(nodes, constants, inputs={"x": [None, 2, 3, 3]}, outputs={"y": [None, 2, 3, 3]})


def test_operations_get_the_name_of_the_longest_layer_that_fits() -> None:
    model = named()
    (before,) = run(model, images(1, 2, 3, 3))
    operations = naming.name_after_layers(model.graph, ["a", "a_relu", "a/b", "b_relu", "done", "dropout"], prefix="net")
    assert operations == {"a": "Conv", "a/b": "Conv", "done": "Conv"}
    assert [node.name for node in model.graph] == ["a", "a_relu/Relu6", "a/b", "b_relu/Relu6", "done"]
    assert [node.outputs[0].name for node in model.graph] == ["a.out", "a_relu/Relu6.out", "a/b.out", "b_relu/Relu6.out", "y"]
    np.testing.assert_array_equal(run(model, images(1, 2, 3, 3))[0], before)


def test_equal_small_constants_become_one_and_all_are_named_in_the_order_of_use() -> None:
    model = named()
    (before,) = run(model, images(1, 2, 3, 3))
    naming.name_after_layers(model.graph, ["a", "a/b", "done"], prefix="net")
    naming.settle_constants(model.graph)
    assert list(model.graph.initializers) == ["a.in1", "a_relu/Relu6.in1", "a_relu/Relu6.in2", "a/b.in1", "done.in1"]
    np.testing.assert_array_equal(run(model, images(1, 2, 3, 3))[0], before)
