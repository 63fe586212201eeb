"""Reading an ONNX file before a build: its products, and the files and inputs that are refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tfqat.engines.graph import ProductNode, read_graph
from tfqat.errors import EngineError

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] z)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3}>
{
   y = MatMul(x, w)
   a = Add(y, b)
   z = Relu(a)
}
"""


def write(folder: Path, text: str, names: dict[str, str]) -> Path:
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = names.get(node.op_type, "")
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def test_products_have_the_name_of_the_layer(tmp_path: Path) -> None:
    assert read_graph(write(tmp_path, MODEL, {"MatMul": "logits", "Relu": "relu"})).products == (ProductNode(name="logits", op="MatMul"),)


def test_a_node_without_a_name_is_called_as_tensorrt_calls_it(tmp_path: Path) -> None:
    assert read_graph(write(tmp_path, MODEL, {})).products == (ProductNode(name="node_of_y", op="MatMul"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello world", "is not an ONNX model"), (b"", "is not a valid ONNX model")],
)
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=message) as refused:
        read_graph(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"missing\.onnx is not a file; expected an ONNX model"):
        read_graph(tmp_path / "missing.onnx")


def test_an_invalid_graph_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL, {"MatMul": "logits"})
    model = onnx.load(str(path))
    model.graph.node[0].ClearField("output")
    onnx.save(model, str(path))
    with pytest.raises(EngineError, match=r"not a valid ONNX model: .*logits"):
        read_graph(path)
