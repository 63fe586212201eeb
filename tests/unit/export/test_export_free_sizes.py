"""Images of free sizes in and out: outputs keep their rank, and a graph fixed to one size and batch is proven fused too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError
from tfqat.export.tf2onnx_adapter import _squeeze_outputs
from tfqat.form import Form

SHAPES = {
    "lacks its Squeeze": ([1, -1, 0, 0, 1], 5, (3, 4, 5, 1)),
    "is as it should be": ([-1, 4, 5, 1], 4, (3, 4, 5, 1)),
}


@pytest.mark.parametrize(("shape", "rank", "expected"), SHAPES.values(), ids=SHAPES)
def test_an_output_has_the_rank_of_the_model(shape: list[int], rank: int, expected: tuple[int, ...]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["mask"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [None] * (rank - 1) + [1])],
        [numpy_helper.from_array(np.array(shape, np.int64), "shape")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    _squeeze_outputs(model.graph, [SimpleNamespace(shape=(None, None, None, 1))])
    assert sum(node.op_type == "Squeeze" for node in model.graph) == rank - 4
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    values = np.arange(60, dtype=np.float32).reshape(3, 1, 4, 5)
    found = runtime.run_batches(runtime.session(proto.SerializeToString(), literal=True), [values])
    assert [value.name for value in proto.graph.output] == ["mask"]
    assert np.array_equal(found, values.reshape(expected))


@pytest.fixture(scope="module")
def masks() -> tuple[Any, np.ndarray]:
    """A network from images of free size to a mask of one channel, planned for ONNX Runtime, and its images."""
    import tf_keras
    from tf_keras import layers

    import tfqat

    tf_keras.utils.set_random_seed(0)
    image = tf_keras.Input((None, None, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="one")(image)
    x = layers.Concatenate(name="both")([x, layers.UpSampling2D(name="up")(layers.MaxPooling2D(name="pool")(x))])
    model = tf_keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x))
    images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype(np.float32)
    qmodel = tfqat.quantize_model(model, {"target": "onnxruntime"})
    tfqat.calibrate(qmodel, [images], batches=1)
    return qmodel, images


def test_a_fixed_batch_and_size_are_proven_fused(masks: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    """With external data the file keeps the shapes of inner values, and the up-sampling has sizes in place of scales."""
    import tfqat

    form = Form(target="onnxruntime", remainder="float16", batch=8, size=(8, 8))
    tfqat.export_onnx(masks[0], tmp_path / "model.onnx", form=form, external_data=True)
    report = tfqat.verify(masks[0], tmp_path / "model.onnx", [masks[1]], examples=20)
    assert report.failures == () and report.fused.codes > 10_000


def test_another_rank_of_an_output_is_not_proven(masks: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    tfqat.export_onnx(masks[0], path, form=Form(target="onnxruntime"))
    proto = onnx.load(path)
    (output,) = proto.graph.output
    next(node for node in proto.graph.node if output.name in node.output).output[0] = "inner"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    proto.graph.node.append(helper.make_node("Unsqueeze", ["inner", "first"], [output.name]))
    output.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_value=1))
    onnx.save(proto, str(path))
    with pytest.raises(ExportError, match=r"output 'mask' has the shape \(20, 8, 8, 1\) in the model and \(1, 20, 8, 8, 1\) in the graph"):
        tfqat.verify(*masks[:1], path, [masks[1]], examples=20)
