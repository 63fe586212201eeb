"""Latency per Keras layer: whose time each kind of node of ONNX Runtime's graph is, and what is measured on real graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from tfqat.engines import layer_latency
from tfqat.engines.layer_latency import UNATTRIBUTED, layer_latencies
from tfqat.engines.onnxruntime import latency_ms
from tfqat.errors import EngineError

PRODUCTS = ("stem", "depthwise", "project", "head", "logits")


def save(folder: Path, nodes: list[Any], shape: list[Any], weights: Mapping[str, np.ndarray]) -> Path:
    """A file with one input `x` and the output of the last node."""
    inputs, outputs = ([helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in ("x", nodes[-1].output[0]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def node(op: str, name: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=name, **attributes)


def two_convolutions(folder: Path) -> Path:
    """A float graph as tf2onnx names it: a 5x5 convolution of 32 channels, a 1x1 one of 16 on a quarter of the pixels."""
    nodes = [
        node("Conv", "net/a/b/Conv2D", "x w1", "net/a/b/Conv2D:0", pads=[2, 2, 2, 2]),
        node("Clip", "net/a/b_relu/Relu6", "net/a/b/Conv2D:0 zero six", "net/a/b_relu/Relu6:0"),
        node("MaxPool", "net/pool/MaxPool", "net/a/b_relu/Relu6:0", "net/pool/MaxPool:0", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "net/small/Conv2D", "net/pool/MaxPool:0 w2", "y"),
    ]
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(32, 32, 5, 5)), "w2": rng.normal(size=(16, 32, 1, 1)), "zero": np.array(0.0), "six": np.array(6.0)}
    path = save(folder, nodes, ["N", 32, 32, 32], {name: value.astype(np.float32) for name, value in weights.items()})
    model = onnx.load(str(path))
    for axis, size in enumerate((None, 16, 16, 16)):
        if size:
            model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, str(path))
    return path


def owners(exported: str, optimized: str, layers: list[str]) -> Mapping[str, tuple[str, ...]]:
    """The owners of the nodes of `optimized`; one node a line: op, name, inputs after `<`, outputs after `>`."""

    def nodes(text: str) -> list[Any]:
        parsed = []
        for line in text.strip().splitlines():
            head, _, outputs = line.partition(">")
            start, _, inputs = head.partition("<")
            op, name = start.split()
            parsed.append(layer_latency._Node(name=name, op=op, inputs=tuple(inputs.split()), outputs=tuple(outputs.split())))
        return parsed

    known = layer_latency._known(nodes(exported), {layer: layer for layer in layers})
    return layer_latency._owners(nodes(optimized), known)


INT8 = """
QuantizeLinear    image/Q           < x > image/Q.out
DequantizeLinear  image/DQ          < image/Q.out > image/DQ.out
Conv              a                 < image/DQ.out > a.out
Relu              a_relu/Relu       < a.out > a_relu/Relu.out
Conv              b                 < image/DQ.out > b.out
Relu              b_relu/Relu       < b.out > b_relu/Relu.out
Add               sum/add           < a_relu/Relu.out b.out > sum/add.out
Conv              shared            < sum/add.out > shared.out
Conv              shared@2          < shared.out > shared@2.out
QuantizeLinear    shared@2/Q        < shared@2.out > shared@2/Q.out
DequantizeLinear  shared@2/DQ       < shared@2/Q.out > y
"""
INT8_LAYERS = ["image", "a", "a_relu", "b", "b_relu", "sum", "shared"]
INT8_RUN = """
QuantizeLinear    image/Q               < x > q
DequantizeLinear  image/DQ/duplicated   < q > d2
DequantizeLinear  image/DQ              < q > d1
DequantizeLinear  b_bias_dq             < > bias
FusedConv         a                     < d1 > a_relu/Relu.out
Conv              b                     < d2 bias > b.out
Relu              b_relu/Relu           < b.out > b_relu/Relu.out
Add               sum/add               < a_relu/Relu.out b.out > sum/add.out
Transpose         Transpose             < sum/add.out > t
QLinearConv       shared_token_63       < t > t2
Transpose         Transpose_token_62    < t2 > t3
Conv              shared@2              < t3 > t4
QuantizeLinear    shared@2/Q            < t4 > t5
DequantizeLinear  shared@2/DQ           < t5 > y
"""
FLOAT = """
Transpose      net/a/Conv2D__15    < x > net/a/Conv2D__15:0
Conv           net/a/Conv2D        < net/a/Conv2D__15:0 w > net/a_bn/FusedBatchNormV3:0
Clip           net/a_relu/Relu6    < net/a_bn/FusedBatchNormV3:0 zero six > net/a_relu/Relu6:0
Resize         Resize__7           < net/a_relu/Relu6:0 > Resize__7:0
Reshape        net/ln/Reshape      < Resize__7:0 > net/ln/Reshape:0
ReduceMean     ReduceMean__8       < net/ln/Reshape:0 > ReduceMean__8:0
Sub            Sub__9              < net/ln/Reshape:0 ReduceMean__8:0 > Sub__9:0
Mul            net/ln/mul          < Sub__9:0 > net/ln/mul:0
MatMul         net/fc/MatMul       < net/ln/mul:0 w2 > net/fc/MatMul:0
Add            net/fc/BiasAdd      < net/fc/MatMul:0 b > y
"""
FLOAT_RUN = """
Transpose      net/a/Conv2D__15              < x > v1
Conv           net/a_relu/Relu6:0_nchwc      < v1 w > v2
ReorderOutput  ReorderOutput_token_3         < v2 > v3
Resize         Resize__7                     < v3 > v4
Reshape        net/ln/Reshape                < v4 > v5
ReduceMean     ReduceMean__8                 < v5 > v6
Sub            Sub__9                        < v5 v6 > v7
Mul            net/ln/mul                    < v7 > v8
Gemm           net/fc/MatMul/MatMulAddFusion < v8 w2 b > y
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image/Q", ("a", "b")),  # read by both, in equal shares
        ("image/DQ", ("a",)),
        ("image/DQ/duplicated", ("b",)),
        ("b_bias_dq", ("b",)),
        ("a", ("a",)),  # with its ReLU in it
        ("b_relu/Relu", ("b_relu",)),  # b has a second reader, so that its ReLU cannot be fused
        ("sum/add", ("sum",)),
        ("Transpose", ("shared",)),
        ("shared_token_63", ("shared",)),
        ("Transpose_token_62", ("shared",)),
        ("shared@2", ("shared",)),
        ("shared@2/Q", ("shared",)),  # at the output of the graph: the layer that feeds it
        ("shared@2/DQ", ("shared",)),
    ],
)
def test_the_owner_of_a_node_of_a_qdq_graph(name: str, expected: tuple[str, ...]) -> None:
    assert owners(INT8, INT8_RUN, INT8_LAYERS)[name] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("net/a/Conv2D__15", ("a",)),
        ("net/a_relu/Relu6:0_nchwc", ("a",)),  # called after the ReLU's output, but it is the convolution
        ("ReorderOutput_token_3", ("ln",)),  # the nearest reader with a layer
        ("Resize__7", ()),  # between two layers
        ("ReduceMean__8", ("ln",)),  # inside one
        ("Sub__9", ("ln",)),
        ("net/fc/MatMul/MatMulAddFusion", ("fc",)),
    ],
)
def test_the_owner_of_a_node_of_a_float_graph(name: str, expected: tuple[str, ...]) -> None:
    assert owners(FLOAT, FLOAT_RUN, ["a", "a_bn", "a_relu", "up", "ln", "fc"])[name] == expected


def test_the_longest_of_nested_names_is_the_layer_and_a_layer_may_be_called_like_the_model() -> None:
    graph = "Conv net/net/conv/Conv2D < x > v\nRelu net/net/Relu < v > u\nConv net/net/conv_2/Conv2D < u > y"
    found = owners(graph, graph, ["net", "net/conv", "net/conv_2"])
    assert found["net/net/conv/Conv2D"] == ("net/conv",)
    assert found["net/net/conv_2/Conv2D"] == ("net/conv_2",)


def test_a_kernel_inside_another_one_is_part_of_its_time() -> None:
    spans = [("body", 12, 5), ("body", 20, 4), ("loop", 10, 20), ("next", 30, 7), ("loop", 50, 21), ("body", 50, 6)]
    events = [{"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length} for name, start, length in spans]
    session = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 100}
    assert layer_latency._durations([*events, session]) == {"loop": [20, 21], "next": [7]}


def test_the_owners_of_a_node_share_its_time() -> None:
    times = {"q": 3.0, "conv": 4.0, "resize": 5.0, "unknown": 6.0}
    found = layer_latency._by_layer(times, {"q": ("a", "b"), "conv": ("a",), "resize": ()})
    assert found == pytest.approx({"a": 0.0055, "b": 0.0015, UNATTRIBUTED: 0.011}, rel=1e-12)


def test_a_layer_that_tf_keras_would_not_name_so_is_found_by_both_names(tmp_path: Path) -> None:
    """A product of a Q/DQ graph has the name that the user gave, its activation that of the canonical model."""
    nodes = [node("Softmax", "conv>201/Softmax", "x", "v"), node("MatMul", "conv 1", "v w", "y")]
    path = save(tmp_path, nodes, ["N", 4], {"w": np.eye(4, dtype=np.float32)})
    times = layer_latencies(path, ["conv>201"], runs=3)
    assert times["conv>201"] > 0
    assert times[UNATTRIBUTED] == 0.0


def test_a_float_graph_in_onnx_runtime(tmp_path: Path) -> None:
    times = layer_latencies(two_convolutions(tmp_path), ["x", "a/b", "a/b_relu", "pool", "small"], runs=20)
    assert set(times) == {"a/b", "pool", "small", UNATTRIBUTED}  # the ReLU is in the convolution
    assert times[UNATTRIBUTED] == 0.0
    assert times["a/b"] > 10 * times["small"] > 0  # 26 million products to 131 thousand


def test_a_larger_batch_takes_longer(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path)
    one, eight = (layer_latencies(path, ["a/b"], batch=batch, runs=10)["a/b"] for batch in (1, 8))
    assert eight > 3 * one


def test_the_time_of_profiling_is_taken_off(tmp_path: Path) -> None:
    """60 nodes that compute next to nothing: the profile says about ten times as much as they take."""
    nodes = [node("Sin", f"net/l{number}/Sin", "x" if not number else f"v{number - 1}", f"v{number}") for number in range(60)]
    path = save(tmp_path, nodes, [1, 1, 1, 1], {})
    layers = [f"l{number}" for number in range(60)]
    times = layer_latencies(path, layers, runs=1)
    assert set(times) == {*layers, UNATTRIBUTED}
    assert all(time > 0 for layer, time in times.items() if layer != UNATTRIBUTED)
    # A busy machine can slow one of the two measurements; the time of profiling is in every one.
    sums = (sum(layer_latencies(path, layers).values()) for _ in range(5))
    assert any(total < 3 * latency_ms({"chain": path})["chain"] for total in sums)


def test_what_tfqat_exports_in_float_and_int8(tmp_path: Path, tiny_float: Any, tiny_onnx: Path) -> None:
    from tfqat.export.onnx import export_float_onnx

    export_float_onnx(tiny_float, tmp_path / "float.onnx")
    for path in (tmp_path / "float.onnx", tiny_onnx):
        times = layer_latencies(path, [layer.name for layer in tiny_float.layers], runs=10)
        assert all(times[product] > 0 for product in PRODUCTS)
        assert set(times) <= {*PRODUCTS, "add", "pool", UNATTRIBUTED}  # neither the BatchNorms nor the ReLUs behind convolutions
        assert times[UNATTRIBUTED] == 0.0


@pytest.mark.parametrize("counts", [{"batch": 0}, {"runs": 0}])
def test_counts_below_1_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(EngineError, match="batch and runs must be at least 1"):
        layer_latencies(two_convolutions(tmp_path), ["small"], **counts)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is not a file; expected an ONNX model"):
        layer_latencies(tmp_path / "model.onnx", ["a"])
    (tmp_path / "model.onnx").write_bytes(b"not ONNX")
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        layer_latencies(tmp_path / "model.onnx", ["a"])


def test_the_layers_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no node of .* belongs to any of the 1 layers, for example 'stem'.*'net/a/b/Conv2D'"):
        layer_latencies(two_convolutions(tmp_path), ["stem"], runs=1)
    with pytest.raises(EngineError, match="the 0 layers"):
        layer_latencies(two_convolutions(tmp_path), [], runs=1)


def test_an_input_with_a_second_dynamic_axis_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Sin", "net/sin/Sin", "x", "y")], ["N", "M"], {})
    with pytest.raises(EngineError, match="only its first axis may be dynamic"):
        layer_latencies(path, ["sin"])
