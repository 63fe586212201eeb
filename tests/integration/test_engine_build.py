"""Real builds with TensorRT for RTX: a network in the form that tfqat exports, and the graphs that TensorRT refuses or dies on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfqat.engines import tensorrt_rtx
from tfqat.engines.compile import compile_engine
from tfqat.engines.options import BuildOptions
from tfqat.engines.worker_process import Job, run_worker
from tfqat.errors import EngineError

pytestmark = pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason=tensorrt_rtx.is_available()[1])

LAYERS = ("stem", "expand", "depthwise", "project", "logits")


class Graph:
    """Nodes and initializers in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def const(self, name: str, value: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name + ":0"], name=name, **attributes))
        return name + ":0"

    def qdq(self, tensor: str, point: str, scale_shape: tuple[int, ...] = ()) -> str:
        scale = self.const(f"{point}/scale", np.full(scale_shape, 0.05, np.float32))
        zero = self.const(f"{point}/zero_point", np.zeros(scale_shape, np.int8))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [tensor, scale, zero], f"{point}/Q"), scale, zero], f"{point}/DQ")

    def kernel(self, layer: str, shape: tuple[int, ...], axis: int) -> str:
        codes = self.const(f"{layer}/kernel/codes", self.rng.integers(-127, 128, shape).astype(np.int8))
        scale = self.const(f"{layer}/kernel/scale", np.full(shape[axis], 0.002, np.float32))
        zero = self.const(f"{layer}/kernel/zero_point", np.zeros(shape[axis], np.int8))
        return self.node("DequantizeLinear", [codes, scale, zero], f"{layer}/kernel/DQ", axis=axis)

    def conv(self, tensor: str, layer: str, shape: tuple[int, int, int, int], group: int = 1, stride: int = 1) -> str:
        bias = self.const(f"{layer}/bias", self.rng.normal(size=shape[0]).astype(np.float32))
        inputs = [tensor, self.kernel(layer, shape, 0), bias]
        return self.node("Conv", inputs, layer, pads=[shape[2] // 2] * 4, strides=[stride] * 2, group=group)

    def relu6(self, tensor: str, layer: str) -> str:
        return self.node("Clip", [tensor, self.const(f"{layer}/min", np.float32(0)), self.const(f"{layer}/max", np.float32(6))], layer)


def network(project_scale_shape: tuple[int, ...] = ()) -> onnx.ModelProto:
    """An inverted residual with a quantized shortcut, global pooling and a Dense of 10, on images of one channel."""
    g = Graph()
    x = g.node("Transpose", [g.qdq("image", "image")], "image/nchw", perm=[0, 3, 1, 2])
    x = g.relu6(g.conv(x, "stem", (16, 1, 3, 3), stride=2), "stem_relu")
    shortcut = g.qdq(x, "stem_relu")
    x = g.qdq(g.relu6(g.conv(shortcut, "expand", (48, 16, 1, 1)), "expand_relu"), "expand_relu")
    x = g.relu6(g.conv(x, "depthwise", (48, 1, 3, 3), group=48), "depthwise_relu")
    x = g.conv(g.qdq(x, "depthwise_relu", project_scale_shape), "project", (16, 48, 1, 1))
    x = g.node("GlobalAveragePool", [g.node("Add", [shortcut, x], "add")], "pool")
    x = g.qdq(g.node("Squeeze", [x, g.const("pool/axes", np.array([2, 3]))], "pool/squeeze"), "pool")
    x = g.node("MatMul", [x, g.kernel("logits", (16, 10), 1)], "logits")
    g.node("Add", [x, g.const("logits/bias", np.zeros(10, np.float32))], "logits/bias_add")
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 12, 12, 1])]
    outputs = [helper.make_tensor_value_info("logits/bias_add:0", TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(g.nodes, "network", inputs, outputs, g.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def free_network() -> onnx.ModelProto:
    """The same with a free height and width."""
    model = network()
    for axis, name in ((1, "H"), (2, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


FLOAT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 12, 12, 16] image) => (float[N, 16, 12, 12] relu_out) <float[16, 16, 3, 3] w, float[16] b>
{
   x = Transpose<perm=[0, 3, 1, 2]>(image)
   conv_out = Conv<pads=[1, 1, 1, 1]>(x, w, b)
   relu_out = Relu(conv_out)
}"""


def float_network() -> onnx.ModelProto:
    """A transpose, a convolution and its ReLU, without Q/DQ."""
    model = onnx.parser.parse_model(FLOAT)
    for value in (("w", np.ones((16, 16, 3, 3), np.float32)), ("b", np.ones(16, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value[1], value[0]))
    for node, name in zip(model.graph.node, ("nchw", "conv", "relu"), strict=True):
        node.name = name
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def replaced(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    """The model with another value for one initializer."""
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def test_every_quantized_layer_runs_int8_and_the_engines_are_written(tmp_path: Path) -> None:
    report = compile_engine(saved(network(), tmp_path), tmp_path / "engines" / "net.plan", "tensorrt_rtx", batch=(1, 4, 16))
    assert (report.status, report.backend, report.version) == ("built", "tensorrt_rtx", tensorrt_rtx.is_available()[1])
    assert [target.target for target in report.targets] == ["SM86", "SM89"]
    assert report.float_layers(LAYERS) == ()
    for target in report.targets:
        assert [(layer.keras_layer, layer.inputs) for layer in target.layers] == [(name, ("Int8", "Int8")) for name in LAYERS]
        assert Path(target.engine_path or "").stat().st_size == target.size_bytes > 10_000
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == [
        "net.sm86.plan",
        "net.sm86.plan.json",
        "net.sm89.plan",
        "net.sm89.plan.json",
    ]


def test_the_report_of_an_engine(tmp_path: Path) -> None:
    """3 x 3 x 1 x 16 multiply-accumulates for each of 6 x 6 places in the stem, and so on."""
    source = saved(network(), tmp_path)
    report = compile_engine(source, tmp_path / "net.plan", "tensorrt_rtx", compute_capabilities=["SM86"], batch=(1, 4, 16), strict=True)
    (target,) = report.targets
    macs = (9 * 16 * 36, 16 * 48 * 36, 9 * 48 * 36, 48 * 16 * 36, 16 * 10)
    assert [(layer.macs, layer.quantized) for layer in target.layers] == [(number, True) for number in macs]
    assert (target.kernels, target.reformats, target.int8_macs, target.unmet) == (11, 0, 1.0, ())
    stem = target.layers[0]
    assert (stem.fused_with, stem.reformats) == (("image/DQ", "stem/kernel/DQ"), ())
    assert [name.rpartition("_myl")[0] for name in stem.pointwise] == [
        "__myl_MulMinMaxRounCastReshReplConc",
        "__myl_MulAddMaxMinMulMinMaxRounCast",
    ]
    assert report.message == (
        "SM86: 5 of 5 convolutions and matrix products run Int8 x Int8 (100.0% of multiply-accumulates), 11 kernels, 0 reformats, "
        f"{target.size_bytes / 1e6:.1f} MB"
    )
    assert report.commands == (
        f"tensorrt_rtx --onnx={source} --saveEngine={tmp_path / 'net.sm86.plan'} --computeCapabilities=86 "
        "--minShapes=image:1x12x12x1 --optShapes=image:4x12x12x1 --maxShapes=image:16x12x12x1 --skipInference",
    )


def test_what_a_float_convolution_is_fused_with_and_the_reformat_before_it(tmp_path: Path) -> None:
    report = tensorrt_rtx.build(saved(float_network(), tmp_path), tmp_path / "net.plan", compute_capabilities=["SM86"])
    (target,) = report.targets
    (conv,) = target.layers
    assert (conv.fused_with, conv.quantized, conv.int8, conv.macs) == (("relu",), False, False, 9 * 16 * 16 * 144)
    assert [name.rpartition("_myl")[0] for name in conv.reformats] == ["__myl_Tran", "__myl_Tran"]
    assert (target.kernels, target.reformats, target.int8_macs) == (3, 2, 0.0)
    tensorrt_rtx.build(
        saved(float_network(), tmp_path), tmp_path / "net.plan", compute_capabilities=["SM86"], options=BuildOptions(strict=True)
    )  # nothing is quantized, so nothing is amiss


def test_the_metadata_beside_an_engine(tmp_path: Path) -> None:
    model = network()
    onnx.helper.set_model_props(model, {"tfqat.recipe_hash": "81124497fc06", "other": "x"})
    source = saved(model, tmp_path)
    report = tensorrt_rtx.build(source, tmp_path / "net.plan", compute_capabilities=["SM89"])
    found = json.loads((tmp_path / "net.sm89.plan.json").read_text())
    sha256 = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, tmp_path / "net.sm89.plan")}
    assert found["onnx"] == {"file": "model.onnx", "sha256": sha256[source], "metadata": {"tfqat.recipe_hash": "81124497fc06"}}
    assert found["engine"]["sha256"] == sha256[tmp_path / "net.sm89.plan"]
    assert (found["backend"], found["version"], found["target"], found["gpu"]) == ("tensorrt_rtx", report.version, "SM89", None)
    assert found["profile"] == {"image": [[1, 12, 12, 1], [8, 12, 12, 1], [32, 12, 12, 1]]}
    assert found["seconds"] == report.targets[0].seconds


def test_a_strict_build_leaves_nothing_if_a_quantized_product_is_float(tmp_path: Path) -> None:
    source = saved(network(project_scale_shape=(1,)), tmp_path)
    with pytest.raises(
        EngineError, match=r"strict: 1 of 5 products that model\.onnx quantizes .* for SM86: project \(Float x Float x Float\)"
    ):
        compile_engine(source, tmp_path / "new" / "net.plan", "tensorrt_rtx", strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_free_height_and_width(tmp_path: Path) -> None:
    source = saved(free_network(), tmp_path)
    with pytest.raises(EngineError, match=r"no fixed size on axis 1, 2: .* --shape image=1x32x32x1:8x64x64x1:32x128x128x1 "):
        compile_engine(source, tmp_path / "net.plan", "tensorrt_rtx")
    shapes = {"image": ((1, 12, 12, 1), (4, 32, 24, 1), (8, 64, 64, 1))}
    report = compile_engine(source, tmp_path / "net.plan", "tensorrt_rtx", compute_capabilities=["SM86"], shapes=shapes, strict=True)
    assert report.targets[0].layers[0].macs == 9 * 16 * 16 * 12  # at batch 1, 32 x 24
    assert json.loads((tmp_path / "net.sm86.plan.json").read_text())["profile"]["image"][2] == [8, 64, 64, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0.05}, r"for SM86: not built after 0\.05 s.*; give it more time with timeout_s \(--timeout\)"),
        ({"timing_cache": "t.cache"}, r"TensorRT for RTX times nothing while it builds, so it has no timing cache"),
        ({"fp16": True}, r"fp16 is for TensorRT 8: this one takes float types from the graph"),
    ],
)
def test_options_that_end_a_build_leave_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if "timing_cache" in options:
        options = {"timing_cache": tmp_path / options["timing_cache"]}
    source = saved(network(), tmp_path)
    with pytest.raises(EngineError, match=message):
        compile_engine(source, tmp_path / "new" / "net.plan", "tensorrt_rtx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


FULL_DISK = """
import resource, sys
from tfqat.engines.compile import compile_engine
from tfqat.engines.options import BuildOptions
from tfqat.errors import EngineError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    compile_engine(sys.argv[2], sys.argv[3], "tensorrt_rtx")
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [200_000, 4_000], ids=["the engine", "the log"])
def test_a_full_disk_is_said_to_be_one_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    arguments = [str(limit), str(saved(network(), tmp_path)), str(tmp_path / "new" / "net.plan")]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, check=False)
    said = "for SM86: a file of the build cannot be read or written: [Errno 27] File too large"
    assert said in done.stdout, done.stdout + done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_activation_scale_that_is_not_scalar_leaves_its_layer_float(tmp_path: Path) -> None:
    report = tensorrt_rtx.build(saved(network(project_scale_shape=(1,)), tmp_path), tmp_path / "net.plan", compute_capabilities=["sm86"])
    assert report.float_layers(LAYERS) == (("SM86", "project"),)


def test_float_weights_are_reported_as_float(tmp_path: Path) -> None:
    model = network()
    (node,) = (one for one in model.graph.node if one.name == "logits")
    node.input[1] = "logits/float"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((16, 10), np.float32), "logits/float"))
    report = tensorrt_rtx.build(saved(model, tmp_path), tmp_path / "net.plan", compute_capabilities=["SM86"])
    assert report.float_layers(LAYERS) == (("SM86", "logits"),)
    assert report.targets[0].layers[-1].inputs == ("Int8", "Float")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replaced(m, "pool/scale", np.array(-1, np.float32)), r"node 'pool/Q' \(QuantizeLinear\): .*must all be positive"),
        (lambda m: replaced(m, "image/zero_point", np.array(3, np.int8)), r"node 'image/Q' \(QuantizeLinear\): .*zero point"),
    ],
)
def test_a_parser_error_names_the_node_and_leaves_nothing_behind(
    tmp_path: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto], message: str
) -> None:
    path = saved(change(network()), tmp_path)
    (tmp_path / "net.sm86.plan").write_text("an older engine")
    with pytest.raises(EngineError, match=message):
        tensorrt_rtx.build(path, tmp_path / "net.plan", compute_capabilities=["SM86"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.onnx", "net.sm86.plan"]
    assert (tmp_path / "net.sm86.plan").read_text() == "an older engine"


def test_a_target_that_cannot_be_built_leaves_no_engine_of_the_others(tmp_path: Path) -> None:
    """Turing has no kernel for a float32 product (TensorRT for RTX 1.7.1)."""
    with pytest.raises(EngineError, match=r"for SM75: .*FP32 GEMM is not supported"):
        tensorrt_rtx.build(saved(network(), tmp_path), tmp_path / "net.plan", compute_capabilities=["SM86", "SM75"])
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_that_crashes_tensorrt_is_an_error(tmp_path: Path) -> None:
    """A node without an output, which the check before a build refuses, ends the parser's process (TensorRT for RTX 1.7.1)."""
    model = network()
    model.graph.node[4].ClearField("output")
    job = Job(
        title="TensorRT for RTX",
        module="tensorrt_rtx_bindings",
        onnx_path=saved(model, tmp_path),
        plan_path=tmp_path / "net.plan",
        compute_capability="SM86",
        profile={"image": ((1, 12, 12, 1), (8, 12, 12, 1), (32, 12, 12, 1))},
    )
    with pytest.raises(EngineError, match=r"for SM86: the build crashed with signal SIG[A-Z]+; the last node parsed is "):
        run_worker(job, timeout_s=60)


def test_an_engine_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be written"):
        tensorrt_rtx.build(saved(network(), tmp_path), tmp_path / "file" / "net.plan")
    (tmp_path / "net.sm89.plan").mkdir()
    with pytest.raises(EngineError, match=r"net\.sm89\.plan: it is a folder"):
        tensorrt_rtx.build(saved(network(), tmp_path), tmp_path / "net.plan")
