"""The engine inspector's JSON, in the forms that NVIDIA documents for 8.6 to 11, read into the same report as the build log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tfqat.engines.graph import ProductNode
from tfqat.engines.inspector import parse_inspector
from tfqat.engines.precisions import kernel_precisions
from tfqat.engines.report import KernelPrecision

WIDE = "Thirty-two wide channel vectorized row major Int8 format"
LINEAR = "Row major linear FP32"


def tensor(name: str, form: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [8, 64, 28, 28], key: form}


def convolution(weights: str, data: str) -> dict[str, Any]:
    return {
        "Name": "stem + stem_relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("Reformatted image", data)],
        "Outputs": [tensor("out", WIDE)],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 36864},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "sm80_xmma_fprop_implicit_gemm",
        "Metadata": "[ONNX Layer: stem]\u001e[ONNX Layer: stem_relu]",
    }


REFORMAT = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to stem + stem_relu",
    "LayerType": "Reformat",
    "Inputs": [tensor("image", LINEAR)],
    "Outputs": [tensor("Reformatted image", WIDE)],
    "ParameterType": "Reformat",
    "Origin": "REFORMAT",
    "Metadata": "",
}
POINTWISE = {
    "Name": "PWN(swish)",
    "LayerType": "PointWiseV2",
    "Inputs": [tensor("out", WIDE)],
    "Outputs": [tensor("y", LINEAR)],
    "ParameterType": "PointWise",
    "Metadata": "[ONNX Layer: swish]",
}
COMPILED = {  # of the graph compiler, in the form of 11: a product without ParameterType, and types beside formats
    "Name": "logits_myl0_3",
    "LayerType": "gemm",
    "Inputs": [tensor("codes", "Int8", "Datatype")],
    "Constants": [{"Name": "weights", "Dimensions": [64, 10], "Datatype": "Int8"}],
    "Outputs": [tensor("z", "Float", "Datatype")],
    "Metadata": "[ONNX Layer: logits][ONNX Layer: logits/kernel/DQ]",
}


def read(*layers: Any, node: str = "stem") -> KernelPrecision:
    (found,) = kernel_precisions(
        parse_inspector(json.dumps({"Layers": layers, "Bindings": ["image"]})), [ProductNode(name=node, op="Conv")]
    )
    return found


@pytest.mark.parametrize(
    ("weights", "data", "inputs", "int8"),
    [
        ("Int8", WIDE, ("Int8", "Int8"), True),
        ("Int8", "Channel major FP16 format where channel % 8 == 0", ("Half", "Int8"), False),
        ("Half", "Channel major FP16 format where channel % 8 == 0", ("Half", "Half"), False),
        ("Float", LINEAR, ("Float", "Float"), False),
        ("Int8", "N/A due to dynamic shapes", ("N/A due to dynamic shapes", "Int8"), False),
    ],
)
def test_the_types_of_a_convolution(weights: str, data: str, inputs: tuple[str, ...], int8: bool) -> None:
    found = read(convolution(weights, data))
    assert (found.inputs, found.int8, found.outputs) == (inputs, int8, ("Int8",))


def test_what_it_is_fused_with_and_what_stands_beside_it() -> None:
    found = read(REFORMAT, convolution("Int8", WIDE), POINTWISE)
    assert found.kernel == "stem + stem_relu (CaskConvolution)"
    assert found.fused_with == ("stem_relu",)
    assert found.reformats == ("Reformatting CopyNode for Input Tensor 0 to stem + stem_relu",)
    assert found.pointwise == ("PWN(swish)",)


def test_a_kernel_of_the_graph_compiler() -> None:
    found = read(COMPILED, node="logits")
    assert (found.inputs, found.outputs, found.int8, found.fused_with) == (("Int8", "Int8"), ("Float",), True, ("logits/kernel/DQ",))


def test_without_metadata_the_name_says_the_nodes() -> None:
    found = read({name: value for name, value in convolution("Int8", WIDE).items() if name != "Metadata"})
    assert (found.int8, found.fused_with) == (True, ("stem_relu",))


def test_a_pointwise_kernel_is_not_a_product() -> None:
    assert read(POINTWISE, node="swish").kernel == ""


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"Layers": ["stem + stem_relu"]}', '{"Bindings": []}'])
def test_anything_else_has_no_kernels(text: str) -> None:
    assert parse_inspector(text) == ()
