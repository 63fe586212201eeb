"""Multiply-accumulates of graphs whose numbers can be worked out by hand, and which products have Q/DQ on both operands."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tfqat.engines.graph import PRODUCT_OPS, read_graph
from tfqat.engines.macs import multiply_accumulates
from tfqat.engines.profile import profile_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g '
ATTRIBUTES = "group={group}, strides=[2, 2], pads=[1, 1, 1, 1]"
CONVOLUTION = HEADER + "(float[N, 4, H, W] x, float[6, {channels}, 3, 3] w) => (float y) {{ y = Conv<" + ATTRIBUTES + ">(x, w) }}"
TRANSPOSED = HEADER + "(float[N, 4, H, W] x, float[4, 6, 3, 3] w) => (float y) { y = ConvTranspose<strides=[2, 2]>(x, w) }"
MATMUL = HEADER + "(float[N, 5, 7] x, float[7, 3] w) => (float y) { y = MatMul(x, w) }"
GEMM = HEADER + "(float[7, 2] x, float[7, 3] w) => (float y) { y = Gemm<transA=1>(x, w) }"
UNKNOWN = HEADER + "(float[N, 4] x, int64[2] s, float[4, 3] w) => (float z) { y = Reshape(x, s) z = MatMul(y, w) }"


@pytest.mark.parametrize(
    ("text", "sizes", "count"),
    [
        (CONVOLUTION.format(channels=4, group=1), {"x": (1, 4, 8, 10)}, 6 * 4 * 5 * 4 * 9),
        (CONVOLUTION.format(channels=2, group=2), {"x": (1, 4, 8, 10)}, 6 * 4 * 5 * 2 * 9),
        (TRANSPOSED, {"x": (1, 4, 8, 10)}, 4 * 8 * 10 * 6 * 9),
        (MATMUL, {"x": (1, 5, 7)}, 5 * 3 * 7),
        (MATMUL, {"x": (2, 5, 7)}, 2 * 5 * 3 * 7),
        (GEMM, {"x": (7, 2)}, 2 * 3 * 7),
        (UNKNOWN, {"x": (1, 4), "s": (2,)}, None),
    ],
    ids=["conv", "grouped conv", "transposed conv", "matmul", "matmul of two", "gemm transposed", "unknown shape"],
)
def test_the_number_of_multiply_accumulates(text: str, sizes: dict[str, tuple[int, ...]], count: int | None) -> None:
    made = onnx.parser.parse_model(text)
    before = made.SerializeToString()
    assert multiply_accumulates(made, sizes, PRODUCT_OPS) == (count,)
    assert made.SerializeToString() == before


def test_a_graph_is_counted_at_batch_1_and_the_optimal_sizes(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(CONVOLUTION.format(channels=4, group=1)), str(tmp_path / "model.onnx"))
    graph = read_graph(tmp_path / "model.onnx")
    profile = profile_of(graph.inputs, (1, 8, 32), {"x": ((1, 4, 2, 2), (8, 4, 8, 10), (32, 4, 99, 99))})
    assert [node.macs for node in graph.counted(profile)] == [6 * 4 * 5 * 4 * 9]


QDQ = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float a, float b, float c)
<float s = {0.1}, int8 z = {0}, int8[4, 2] k = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
{
   q = QuantizeLinear(x, s, z)
   d = DequantizeLinear(q, s, z)
   kd = DequantizeLinear(k, s, z)
   a = MatMul(d, kd)
   b = MatMul(d, w)
   c = MatMul(x, kd)
}"""


def test_a_product_is_quantized_if_both_operands_are(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(QDQ), str(tmp_path / "model.onnx"))
    found = read_graph(tmp_path / "model.onnx").products
    assert [(node.name, node.quantized) for node in found] == [("node_of_a", True), ("node_of_b", False), ("node_of_c", False)]
