"""The parser of the build log, on lines recorded from TensorRT for RTX 1.7.1 (tensor names and strides trimmed in part)."""

from __future__ import annotations

import pytest

from tfqat.engines.graph import ProductNode
from tfqat.engines.kernels import Kernel, Tensor
from tfqat.engines.layer_log import parse_kernels
from tfqat.engines.precisions import kernel_precisions
from tfqat.engines.report import KernelPrecision

# An inverted-residual network, then single kernels of other graphs: `axis` has its weight scale along the input channels, `floatw`
# has float weights, `q`, `k`, `v`, `scores` and `context` are an attention block, `upsample` is a ConvTranspose, and
# `block1_project` comes from a graph whose activation scales have shape [1].
LOG = """\
Layers:
Name: stem_myl0_2, LayerType: correlation, Inputs: [ { Name: __mye1599stem:0_before_bias.1_13_myl0, Dimensions: [-1,4,28,28], Strides: [3136,1,112,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye4906_dconst_myl0, Dimensions: [16,4,3,3], Strides: [36,1,12,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: __mye2191dconst_myl0, Dimensions: [1,16,1,1], Strides: [16,1,16,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye2196dconst_myl0, Dimensions: [1,16,1,1], Strides: [16,1,16,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: __myln_k_arg__bb1_14_myl0, Dimensions: [-1,16,14,14], Strides: [3136,1,224,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: stem][ONNX Layer: image/DQ][ONNX Layer: stem/kernel/DQ]
Name: __myl_MulAddMaxMinMulMinMaxRounCastReshReplConcResh_myl0_5, LayerType: kgen, Inputs: [ { Name: __myln_k_arg__bb1_16_myl0, Dimensions: [-1,48,14,14], Datatype: Float, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye2441_dconst_myl0, Dimensions: [1,48,1,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye2436_dconst_myl0, Dimensions: [1,48,1,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye5637_const-lit-in_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye1665block1_depthwise:0_before_bias.1_17_myl0, Dimensions: [-1,192,14,14], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: __myl_MulAddMaxMinMulMinMaxRounCastReshReplConcResh_0x66066cf0, StreamId: 0, Metadata: [ONNX Layer: block1_expand_relu/Q][ONNX Layer: block1_depthwise][ONNX Layer: block1_expand_relu/DQ][ONNX Layer: block1_depthwise/kernel/DQ][ONNX Layer: block1_expand_relu][ONNX Layer: block1_expand]
Name: block1_depthwise_myl0_6, LayerType: correlation, Inputs: [ { Name: __mye1665block1_depthwise:0_before_bias.1_17_myl0, Dimensions: [-1,192,14,14], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye4949_dconst_myl0, Dimensions: [48,4,3,3], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: __mye4959_dconst_myl0, Dimensions: [1,48,1,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye4969_dconst_myl0, Dimensions: [1,48,1,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: __myln_k_arg__bb1_18_myl0, Dimensions: [-1,48,14,14], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: block1_depthwise][ONNX Layer: block1_expand_relu/DQ][ONNX Layer: block1_depthwise/kernel/DQ]
Name: logits_myl0_12, LayerType: gemm, Inputs: [ { Name: __mye1532_q8_myl0, Dimensions: [-1,64], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: logits/kernel/codes_constantInt8_myl0, Dimensions: [64,10], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: __mye1491logits_alpha_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye1492logits_beta_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_24_myl0, Dimensions: [-1,10], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: logits][ONNX Layer: pool/DQ][ONNX Layer: logits/kernel/DQ]
Name: __myl_MulAdd_myl0_13, LayerType: kgen, Inputs: [ { Name: __myln_k_arg__bb1_24_myl0, Dimensions: [-1,10], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye1499_dconst_myl0, Dimensions: [1,10], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye1553_folded_matmul_myl0, Dimensions: [1,10], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: out, Dimensions: [-1,10], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: __myl_MulAdd_0x66066cf0, StreamId: 0, Metadata: [ONNX Layer: logits][ONNX Layer: pool/DQ][ONNX Layer: logits/kernel/DQ][ONNX Layer: logits/bias_add]
Name: __myl_CastMulCastCastMulFc_myl0_14, LayerType: runtime_fusion, Inputs: [ { Name: __myln_k_arg__bb1_4_myl0, Dimensions: [-1,64], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye567_dconst_myl0, Dimensions: [64,1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: axis/kernel/codes_constantInt8_myl0, Dimensions: [64,10], Datatype: Int8, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_5_myl0, Dimensions: [-1,10], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: axis/kernel/DQ][ONNX Layer: axis][ONNX Layer: image/DQ]
Name: __myl_CastMulFc_myl0_15, LayerType: runtime_fusion, Inputs: [ { Name: __myln_k_arg__bb1_4_myl0, Dimensions: [-1,64], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: floatw/kernel_constantFloat_myl0, Dimensions: [64,10], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_5_myl0, Dimensions: [-1,10], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: floatw][ONNX Layer: image/DQ]
Name: v+k+q_myl0_2, LayerType: gemm, Inputs: [ { Name: image/Q:0.1_myl0, Dimensions: [-1,64], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye7454_dconst_myl0, Dimensions: [64,192], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: __mye6369v_alpha_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye6370v_beta_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye7459_myl0, Dimensions: [-1,192], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: v][ONNX Layer: image/DQ][ONNX Layer: v/kernel/DQ][ONNX Layer: k][ONNX Layer: k/kernel/DQ][ONNX Layer: q][ONNX Layer: q/kernel/DQ]
Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Inputs: [ { Name: __mye8299_12_myl0, Dimensions: [-1,16,32], Datatype: Int8, Format: (Arbitrary) Format with stride order = [1,2,0] }, { Name: __mye8299_11_myl0, Dimensions: [-1,32,16], Datatype: Int8, Format: (Arbitrary) Format with stride order = [1,0,2] }, { Name: __mye8299_10_myl0, Dimensions: [-1,16,32], Datatype: Int8, Format: (Arbitrary) Format with stride order = [1,2,0] }], Constants: [], Outputs: [ { Name: __mye8299_myl0, Dimensions: [-1,16,32], Datatype: Int8, Format: (Arbitrary) Format with stride order = [1,2,0] }], TacticName: _gemm_mha_v2_0x61c1a81815a41fff0f1dfcdea42970e8, StreamId: 0, Metadata: [ONNX Layer: context][ONNX Layer: softmaxq/DQ][ONNX Layer: vq/DQ][ONNX Layer: ctx/Q][ONNX Layer: softmaxq/Q][ONNX Layer: softmax][ONNX Layer: sc][ONNX Layer: scores][ONNX Layer: qq/DQ][ONNX Layer: kq/DQ]
Name: __myl_CastMulCast_myl0_1, LayerType: kgen, Inputs: [], Constants: [ { Name: __mye223_dconst_myl0, Dimensions: [1,16,1,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye228_dconst_myl0, Dimensions: [16,16,3,3], Datatype: Int8, Format: (NHWC) Channel major format }], Outputs: [ { Name: __mye219_7_myl0, Dimensions: [16,16,3,3], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myl_CastMulCast_0x66066cf0, StreamId: 0, Metadata: [ONNX Layer: upsample/kernel/DQ]
Name: upsample_myl0_3, LayerType: deconv, Inputs: [ { Name: __mye219_8_myl0, Dimensions: [-1,16,8,8], Datatype: Float, Format: (NHWC) Channel major format }, { Name: __mye219_7_myl0, Dimensions: [16,16,3,3], Datatype: Float, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye569_const_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye573_const_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb1_9_myl0, Dimensions: [-1,16,17,17], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: upsample]
Name: block1_project_myl0_12, LayerType: correlation, Inputs: [ { Name: block1_add:0.1_26_myl0, Dimensions: [-1,48,14,14], Datatype: Float, Format: (NHWC) Channel major format }, { Name: block1_add:0.1_16_myl0, Dimensions: [16,48,1,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: block1_add:0.1_20_myl0, Dimensions: [-1,16,14,14], Datatype: Float, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye5189_const_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye5189_const_myl0, Dimensions: [1], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye2177dconst_myl0, Dimensions: [1,16,1,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: __myln_k_arg__bb1_27_myl0, Dimensions: [-1,16,14,14], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: block1_project][ONNX Layer: block1_add]

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,28,28,1], Location: Device, IsShapeInferenceIO: false, ProfileInfo: [ { MinShape: [1,28,28,1], OptShape: [8,28,28,1], MaxShape: [32,28,28,1], Format: Row major linear FP32 format (kLINEAR) }]
"""  # noqa: E501

NODES = {
    "stem": "Conv",
    "block1_depthwise": "Conv",
    "block1_project": "Conv",
    "upsample": "ConvTranspose",
    "logits": "MatMul",
    "axis": "MatMul",
    "floatw": "MatMul",
    "k": "MatMul",
    "scores": "MatMul",
    "context": "MatMul",
}


def precision(name: str) -> KernelPrecision:
    (result,) = kernel_precisions(parse_kernels(LOG), [ProductNode(name=name, op=NODES[name])])
    return result


def test_a_line_is_read_whole() -> None:
    kernel = parse_kernels(LOG)[0]
    assert (kernel.name, kernel.layer_type) == ("stem_myl0_2", "correlation")
    assert kernel.inputs == (Tensor(name="__mye1599stem:0_before_bias.1_13_myl0", dims=(-1, 4, 28, 28), dtype="Int8"),)
    assert kernel.constants == (
        Tensor(name="__mye4906_dconst_myl0", dims=(16, 4, 3, 3), dtype="Int8"),
        Tensor(name="__mye2191dconst_myl0", dims=(1, 16, 1, 1), dtype="Float"),
        Tensor(name="__mye2196dconst_myl0", dims=(1, 16, 1, 1), dtype="Float"),
    )
    assert kernel.outputs == (Tensor(name="__myln_k_arg__bb1_14_myl0", dims=(-1, 16, 14, 14), dtype="Float"),)
    assert kernel.onnx_nodes == ("stem", "image/DQ", "stem/kernel/DQ")


def test_every_kernel_is_read_and_the_list_of_inputs_and_outputs_is_not() -> None:
    assert [kernel.name for kernel in parse_kernels(LOG)] == [
        "stem_myl0_2",
        "__myl_MulAddMaxMinMulMinMaxRounCastReshReplConcResh_myl0_5",
        "block1_depthwise_myl0_6",
        "logits_myl0_12",
        "__myl_MulAdd_myl0_13",
        "__myl_CastMulCastCastMulFc_myl0_14",
        "__myl_CastMulFc_myl0_15",
        "v+k+q_myl0_2",
        "_gemm_mha_v2_myl0_6",
        "__myl_CastMulCast_myl0_1",
        "upsample_myl0_3",
        "block1_project_myl0_12",
    ]


@pytest.mark.parametrize(
    ("layer", "kernel", "inputs", "int8"),
    [
        ("stem", "stem_myl0_2 (correlation)", ("Int8", "Int8"), True),
        ("block1_depthwise", "block1_depthwise_myl0_6 (correlation)", ("Int8", "Int8"), True),
        ("logits", "logits_myl0_12 (gemm)", ("Int8", "Int8"), True),
        ("k", "v+k+q_myl0_2 (gemm)", ("Int8", "Int8"), True),
        ("scores", "_gemm_mha_v2_myl0_6 (kgen)", ("Int8", "Int8", "Int8"), True),
        ("context", "_gemm_mha_v2_myl0_6 (kgen)", ("Int8", "Int8", "Int8"), True),
        ("axis", "__myl_CastMulCastCastMulFc_myl0_14 (runtime_fusion)", ("Int8", "Int8"), False),
        ("floatw", "__myl_CastMulFc_myl0_15 (runtime_fusion)", ("Int8", "Float"), False),
        ("upsample", "upsample_myl0_3 (deconv)", ("Float", "Float"), False),
        ("block1_project", "block1_project_myl0_12 (correlation)", ("Float", "Float", "Float"), False),
    ],
)
def test_the_precision_of_the_kernel_that_multiplies(layer: str, kernel: str, inputs: tuple[str, ...], int8: bool) -> None:
    found = precision(layer)
    assert (found.kernel, found.inputs, found.int8) == (kernel, inputs, int8)
    assert (found.keras_layer, found.op) == (layer, NODES[layer])


def test_the_output_types_are_reported() -> None:
    assert precision("logits").outputs == ("Float",)
    assert precision("context").outputs == ("Int8",)


def test_int8_weights_with_float_data_are_not_int8() -> None:
    message = LOG.replace("Dimensions: [-1,64], Datatype: Int8", "Dimensions: [-1,64], Datatype: Float")
    (found,) = kernel_precisions(parse_kernels(message), [ProductNode(name="logits", op="MatMul")])
    assert (found.inputs, found.int8) == (("Float", "Int8"), False)


def test_a_node_that_the_log_does_not_name_is_reported_as_not_int8() -> None:
    (found,) = kernel_precisions(parse_kernels(LOG), [ProductNode(name="stem_", op="Conv")])
    assert found == KernelPrecision(keras_layer="stem_", op="Conv", inputs=(), outputs=(), int8=False, kernel="", quantized=False)


def test_nodes_of_one_name_get_the_kernels_of_that_name_in_order() -> None:
    message = LOG.replace("[ONNX Layer: upsample]", "[ONNX Layer: stem]")
    found = kernel_precisions(parse_kernels(message), [ProductNode(name="stem", op="Conv")] * 2)
    assert [(one.kernel, one.int8) for one in found] == [("stem_myl0_2 (correlation)", True), ("upsample_myl0_3 (deconv)", False)]


@pytest.mark.parametrize(
    ("layer", "fused_with"),
    [
        ("stem", ("image/DQ", "stem/kernel/DQ")),
        ("k", ("v", "image/DQ", "v/kernel/DQ", "k/kernel/DQ", "q", "q/kernel/DQ")),
        ("block1_project", ("block1_add",)),
        ("upsample", ()),
    ],
)
def test_the_other_nodes_of_the_same_kernel(layer: str, fused_with: tuple[str, ...]) -> None:
    assert precision(layer).fused_with == fused_with


def test_the_kernels_beside_it_are_those_that_share_a_tensor() -> None:
    found = precision("block1_depthwise")
    assert (found.pointwise, found.reformats) == (("__myl_MulAddMaxMinMulMinMaxRounCastReshReplConcResh_myl0_5",), ())
    assert precision("logits").pointwise == ("__myl_MulAdd_myl0_13",)
    assert precision("context").pointwise == ()


@pytest.mark.parametrize(
    ("name", "layer_type", "role"),
    [
        ("stem_myl0_2", "correlation", "product"),
        ("__myl_CastMulFc_myl0_15", "runtime_fusion", "product"),
        ("__myl_MulAdd_myl0_13", "kgen", "pointwise"),
        ("__myl_MulMinMaxRounCast_myl0_1", "kgen", "pointwise"),
        ("__myl_Tran_myl0_54", "kgen", "reformat"),
        ("__myl_CastReshReplConcResh_myl0_5", "kgen", "reformat"),
        ("Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", "reformat"),
        ("__mye716_0_myl0_0", "shape_call", "none"),
    ],
)
def test_what_a_kernel_does(name: str, layer_type: str, role: str) -> None:
    assert Kernel(name=name, layer_type=layer_type, inputs=(), constants=(), outputs=(), onnx_nodes=()).role == role
