"""Each rule of the linter on a graph that breaks it, with the exact finding, and on a near miss that is fine."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tfqat.errors import PlacementError
from tfqat.placement.lint import Finding, lint_onnx

RNG = np.random.default_rng(0)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


# Name -> constant. A graph gets those that it names.
CONSTANTS: dict[str, np.ndarray] = {
    **{"s": np.float32(0.02), "s2": np.float32(0.03), "s_one": np.full(1, 0.02, "f"), "s_ch": np.full(16, 0.02, "f")},
    **{"s_zero": np.float32(0), "s_neg": np.float32(-0.02), "s_nan": np.float32(np.nan), "s_inf": np.float32(np.inf)},
    **{"z": np.int8(0), "z_one": np.zeros(1, "i1"), "z_ch": np.zeros(16, "i1"), "z5": np.int8(5), "u": np.uint8(0), "u128": np.uint8(128)},
    **{"w": codes(16, 16, 3, 3), "w_b": codes(16, 16, 3, 3), "w8": codes(16, 8, 3, 3), "w8o": codes(8, 16, 3, 3), "wd": codes(16, 1, 3, 3)},
    **{"wg": codes(16, 4, 3, 3), "w_hwio": codes(3, 3, 16, 16), "w_flat": codes(16 * 16 * 9), "w_up": codes(16, 16, 2, 2)},
    **{
        "ws": np.full(16, 0.01, "f"),
        "ws8": np.full(8, 0.01, "f"),
        "ws_one": np.full(1, 0.01, "f"),
        "ws_bad": np.r_[np.full(15, 0.01), 0].astype("f"),
    },
    **{"wf": RNG.normal(size=(16, 16, 3, 3)).astype("f"), "wf8": RNG.normal(size=(16, 8, 3, 3)).astype("f"), "b": np.zeros(16, "f")},
    **{
        "bi": np.zeros(16, "i4"),
        "bs": np.full(16, 1e-4, "f"),
        "b8": np.zeros(8, "f"),
        "ones": np.ones(16, "f"),
        "six": np.float32(6),
        "nil": np.float32(0),
    },
    **{"m": codes(16, 16), "m8": codes(16, 8), "mf": RNG.normal(size=(16, 16)).astype("f"), "half": np.float32(0.5)},
    **{"oihw": np.array([16, 16, 3, 3]), "flat": np.array([-1, 16]), "s4": np.array([1, 1, 2, 2], "f"), "empty": np.zeros(0, "f")},
}
IMAGE, MATRIX = "float[N, 16, 8, 8] x", "float[N, 16] x"


def onnx_file(folder: Path, body: str, inputs: str = IMAGE, opset: int = 17) -> Path:
    """A file with the nodes of `body`, each named after its first output; the last one makes the output."""
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => (float y) {{ {body} }}'
    model = parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items() if name in used)
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def qdq(source: str, name: str, scale: str = "s", zero: str = "z") -> str:
    return f"q_{name} = QuantizeLinear({source}, {scale}, {zero})  {name} = DequantizeLinear(q_{name}, {scale}, {zero})  "


X = qdq("x", "dx")
W = "dw = DequantizeLinear<axis = 0>(w, ws)  "
W_B = "dw_b = DequantizeLinear<axis = 0>(w_b, ws)  "
CONV = "Conv<pads = [1, 1, 1, 1]>"
Y = f"y = {CONV}(dx, dw, b)"
C = f"c = {CONV}(dx, dw, b)  "
INT8 = "quantize symmetrically to int8 (ONNX Runtime: activation_type=QInt8, weight_type=QInt8, ActivationSymmetric, WeightSymmetric)"
SMALL_FIX = "leave it float: `small_products: float` in the recipe's quantization block"


class Case(tuple):
    """body, the findings as (layer, rule, message, fix[, severity]), and keywords of `onnx_file`."""

    def __new__(cls, body: str, *found: tuple[str, ...], **kwargs: Any) -> Case:
        return super().__new__(cls, (body, found, kwargs))


BROKEN: dict[str, Case] = {
    # 1 zero point
    "zero point 5": Case(
        qdq("x", "dx", zero="z5") + W + Y,
        ("q_dx", "zero-point", "zero point 5 (int8): TensorRT takes 0 only, and ends with a parse error", INT8),
    ),
    "uint8 with zero point 128": Case(
        qdq("x", "dx", zero="u128") + W + Y,
        ("q_dx", "zero-point", "zero point 128 (uint8): TensorRT takes 0 only, and ends with a parse error", INT8),
    ),
    "uint8 with zero point 0": Case(
        qdq("x", "dx", zero="u") + W + Y,
        ("q_dx", "zero-point", "codes of type uint8: TensorRT computes in int8, which holds codes from -128 to 127", INT8),
    ),
    "a QuantizeLinear without zero point makes uint8": Case(
        "q_dx = QuantizeLinear(x, s)  dx = DequantizeLinear(q_dx, s)  " + W + Y,
        ("q_dx", "zero-point", "codes of type uint8: TensorRT computes in int8, which holds codes from -128 to 127", INT8),
    ),
    "zero point that is computed": Case(
        "zp = Cast<to = 3>(k)  " + qdq("x", "dx", zero="zp") + W + Y,
        ("q_dx", "zero-point", "its zero point is no constant: TensorRT needs the constant 0", INT8),
        inputs=f"{IMAGE}, float k",
    ),
    # 2 scale of an activation
    "activation scale of shape [1]": Case(
        qdq("x", "dx", "s_one", "z_one") + W + Y,
        (
            "q_dx",
            "activation-scale",
            "activation scale of shape [1]: TensorRT silently runs what reads it in float",
            "store the scale (and the zero point) with shape []",
        ),
    ),
    "activation scales per channel": Case(
        qdq("x", "dx", "s_ch", "z_ch") + W + Y,
        (
            "q_dx",
            "activation-scale",
            "activation scale of shape [16]: TensorRT silently runs what reads it in float",
            "one scale for the tensor, of shape []; per-channel scales are for weights",
        ),
    ),
    # 3 value of a scale
    **{
        f"scale {text}": Case(
            qdq("x", "dx", name) + W + Y,
            (
                "q_dx",
                "scale-value",
                f"scale {text}: TensorRT takes positive finite scales only, and ends with a parse error",
                "calibrate on data that reach this tensor; give dead channels a tiny positive scale",
            ),
        )
        for name, text in (("s_zero", "0"), ("s_neg", "-0.02"), ("s_nan", "nan"), ("s_inf", "inf"))
    },
    "one weight scale of 16 is zero": Case(
        X + W.replace("ws", "ws_bad") + Y,
        (
            "dw",
            "scale-value",
            "1 of 16 scales, the first of them 0: TensorRT takes positive finite scales only, and ends with a parse error",
            "calibrate on data that reach this tensor; give dead channels a tiny positive scale",
        ),
    ),
    "scale that is computed": Case(
        "r = ReduceMax<keepdims = 0>(x)  " + qdq("x", "dx", "r") + W + Y,
        (
            "q_dx",
            "scale-value",
            "the scale is computed while the model runs: TensorRT needs a constant",
            "calibrate, and write the scale as an initializer",
        ),
    ),
    # 4 axis of a weight's scale
    "Conv with scales along the input channels": Case(
        X + W.replace("axis = 0", "axis = 1") + Y,
        (
            "y",
            "weight-axis",
            "16 weight scales along axis 1 of Conv's weight: TensorRT silently runs it in float",
            "one scale per output channel, along axis 0",
        ),
    ),
    "MatMul with scales along K": Case(
        X + "dm = DequantizeLinear<axis = 0>(m, ws)  y = MatMul(dx, dm)",
        (
            "y",
            "weight-axis",
            "16 weight scales along axis 0 of MatMul's weight: TensorRT silently runs it in float",
            "one scale per output channel, along axis 1",
        ),
        inputs=MATRIX,
    ),
    "Gemm with a transposed weight and scales along K": Case(
        X + "dm = DequantizeLinear<axis = 1>(m, ws)  y = Gemm<transB = 1>(dx, dm, b)",
        (
            "y",
            "weight-axis",
            "16 weight scales along axis 1 of Gemm's weight: TensorRT silently runs it in float",
            "one scale per output channel, along axis 0",
        ),
        inputs=MATRIX,
    ),
    "MatMul whose weight is transposed, with scales along K": Case(
        X + "dm = DequantizeLinear<axis = 1>(m, ws)  t = Transpose<perm = [1, 0]>(dm)  y = MatMul(dx, t)",
        (
            "y",
            "weight-axis",
            "16 weight scales along axis 0 of MatMul's weight: TensorRT silently runs it in float",
            "one scale per output channel, along axis 1",
        ),
        inputs=MATRIX,
    ),
    # 5 one operand only
    "only the input of a Conv": Case(
        X + f"y = {CONV}(dx, wf, b)",
        (
            "y",
            "half-quantized",
            "the input of this Conv is quantized, the weight is not: TensorRT multiplies in float",
            "put Q/DQ right before the other one too, or remove them here",
        ),
    ),
    "only the weight of a Conv": Case(
        W + f"r = Relu(x)  y = {CONV}(r, dw, b)",
        (
            "y",
            "half-quantized",
            "the weight of this Conv is quantized, the input (output of Relu 'r') is not: TensorRT multiplies in float",
            "put Q/DQ right before the other one too, or remove them here",
        ),
    ),
    "Q/DQ in front of a Resize": Case(
        X + W + f'r = Resize<mode = "nearest">(dx, empty, s4)  y = {CONV}(r, dw, b)',
        (
            "y",
            "half-quantized",
            "the weight of this Conv is quantized, the input (output of Resize 'r') is not: TensorRT multiplies in float",
            "put Q/DQ right before the other one too, or remove them here",
        ),
    ),
    "one of two activations": Case(
        X + "t = Transpose<perm = [1, 0]>(k)  y = MatMul(dx, t)",
        (
            "y",
            "half-quantized",
            "input 0 of this MatMul is quantized, input 1 (output of Transpose 't') is not: TensorRT multiplies in float",
            "put Q/DQ right before the other one too, or remove them here",
        ),
        inputs=f"{MATRIX}, float[16, 16] k",
    ),
    # 6 path of a weight
    "Reshape behind the weight's DQ": Case(
        X + f"dw = DequantizeLinear(w_flat, s)  r = Reshape(dw, oihw)  y = {CONV}(dx, r, b)",
        (
            "y",
            "weight-path",
            "Reshape 'r' between the weight's DequantizeLinear 'dw' and Conv: TensorRT may silently run it in float",
            "apply it to the weight constant itself, and move the axis of its scale along",
        ),
    ),
    "Transpose behind the weight's DQ of a Conv": Case(
        X + f"dw = DequantizeLinear<axis = 3>(w_hwio, ws)  t = Transpose<perm = [3, 2, 0, 1]>(dw)  y = {CONV}(dx, t, b)",
        (
            "y",
            "weight-path",
            "Transpose 't' between the weight's DequantizeLinear 'dw' and Conv: TensorRT for RTX looks through it, others may run float",
            "apply it to the weight constant itself, and move the axis of its scale along",
            "advice",
        ),
    ),
    # 7 bias
    "int32 bias": Case(
        X + W + f"db = DequantizeLinear<axis = 0>(bi, bs)  y = {CONV}(dx, dw, db)",
        (
            "y",
            "int32-bias",
            "int32 input of DequantizeLinear 'db': TensorRT ends with a parse error",
            "keep the bias float32, without Q/DQ (ONNX Runtime: extra_options={'QuantizeBias': False})",
        ),
    ),
    # 8 integer operators
    "QLinearMatMul": Case(
        "q = QuantizeLinear(x, s, z)  p = QLinearMatMul(q, s, z, m, s2, z, s, z)  y = DequantizeLinear(p, s, z)",
        (
            "p",
            "integer-operator",
            "QLinearMatMul: TensorRT cannot parse it",
            "write Q/DQ around the float operator (ONNX Runtime: quantize_static with quant_format=QDQ)",
        ),
        inputs=MATRIX,
    ),
    "dynamic quantization has no Q/DQ at all": Case(
        "q, sc, zp = DynamicQuantizeLinear(x)  i = ConvInteger<pads = [1, 1, 1, 1]>(q, w, zp)  y = Cast<to = 1>(i)",
        *(
            (
                name,
                "integer-operator",
                f"{op}: TensorRT cannot parse it",
                "write Q/DQ around the float operator (ONNX Runtime: quantize_static with quant_format=QDQ)",
            )
            for name, op in (("q", "DynamicQuantizeLinear"), ("i", "ConvInteger"))
        ),
    ),
    # 9 fusions that are split
    "Q/DQ between Conv and Clip": Case(
        X + W + C + qdq("c", "dc") + "y = Clip(dc, nil, six)",
        ("y", "split-fusion", "Q/DQ 'q_dc' between Conv 'c' and Clip: they cannot fuse", "quantize behind Clip, not before it"),
    ),
    "Q/DQ between Conv and BatchNormalization": Case(
        X + W + C + qdq("c", "dc") + "y = BatchNormalization(dc, ones, b, b, ones)",
        (
            "y",
            "split-fusion",
            "Q/DQ 'q_dc' between Conv 'c' and BatchNormalization: they cannot fuse",
            "quantize behind BatchNormalization, not before it",
        ),
    ),
    "Q/DQ between BatchNormalization and Relu": Case(
        X + f"c = {CONV}(dx, wf, b)  n = BatchNormalization(c, ones, b, b, ones)  " + qdq("n", "dn") + "y = Relu(dn)",
        (
            "c",
            "half-quantized",
            "the input of this Conv is quantized, the weight is not: TensorRT multiplies in float",
            "put Q/DQ right before the other one too, or remove them here",
        ),
        ("y", "split-fusion", "Q/DQ 'q_dn' between Conv 'c' and Relu: they cannot fuse", "quantize behind Relu, not before it"),
    ),
    # 10 residual Add
    "both inputs of a residual Add": Case(
        X + W + C + "r = Relu(c)  " + qdq("r", "dr") + "y = Add(dx, dr)",
        (
            "y",
            "residual-add",
            "both inputs are quantized: the Add cannot fuse with 'c', whose output is rounded to int8 before it",
            "remove the Q/DQ between 'c' and the Add",
        ),
    ),
    "no input of a residual Add": Case(
        X + W + C + "y = Add(x, c)",
        (
            "y",
            "residual-add",
            "no input is quantized: the Add fuses with 'c', but reads the shortcut in float",
            "put Q/DQ on the shortcut, for this Add",
        ),
    ),
    "the branch instead of the shortcut": Case(
        X + W + C + qdq("c", "dc") + "y = Add(dc, x)",
        (
            "y",
            "residual-add",
            "the branch of 'c' is quantized and the shortcut is not: the Add cannot fuse with it",
            "move the Q/DQ from the output of 'c' to the shortcut",
        ),
    ),
    # 11 Concat
    "Concat with two scales": Case(
        X + "e = Exp(x)  " + qdq("e", "de", "s2") + "y = Concat<axis = 1>(dx, de)",
        ("y", "concat-scales", "its inputs have unequal scales (0.02, 0.03)", "give all inputs the largest of them"),
    ),
    # 12 pooling
    "pool with a quantized input only": Case(
        X + "p = GlobalAveragePool(dx)  y = Relu(p)",
        (
            "p",
            "half-quantized-pool",
            "its input is quantized, its output is not: GlobalAveragePool runs in float",
            "put Q/DQ on its output too, or remove those on its input",
        ),
    ),
    "pool with a quantized output only": Case(
        "p = AveragePool<kernel_shape = [2, 2]>(x)  " + qdq("p", "dp") + "y = Exp(dp)",
        (
            "p",
            "half-quantized-pool",
            "its output is quantized, its input is not: AveragePool runs in float",
            "put Q/DQ on its input too, or remove those on its output",
        ),
    ),
    # 13 ConvTranspose
    "ConvTranspose with scales per channel": Case(
        X + "dw = DequantizeLinear<axis = 1>(w_up, ws)  y = ConvTranspose(dx, dw, b)",
        (
            "y",
            "conv-transpose",
            "quantized ConvTranspose, and its weight has 16 scales: TensorRT for RTX always runs it in float",
            "leave it float; for TensorRT itself use one scale per weight tensor",
        ),
    ),
    "ConvTranspose with a quantized input": Case(
        X + "y = ConvTranspose(dx, wf, b)",
        (
            "y",
            "conv-transpose",
            "quantized ConvTranspose: TensorRT for RTX always runs it in float",
            "leave it float; for TensorRT itself use one scale per weight tensor",
        ),
    ),
    # 14 BatchNormalization
    "BatchNormalization behind an int8 Conv": Case(
        X + W + C + "y = BatchNormalization(c, ones, b, b, ones)",
        (
            "y",
            "unfolded-batch-norm",
            "BatchNormalization behind the int8 convolution 'c' is not folded into its scales",
            "fold it at export (tfqat: export.fold_batchnorm: true)",
            "advice",
        ),
    ),
    # 15 gates
    "gate with one quantized input": Case(
        X + "p = ReduceMean<axes = [2, 3]>(x)  g = Sigmoid(p)  y = Mul(dx, g)",
        (
            "y",
            "half-quantized-gate",
            "one input of this Mul is quantized, the other, 'g', is not: it runs in float",
            "put Q/DQ on both inputs, or on neither",
        ),
    ),
    # 16 float products
    "float Conv among int8 ones": Case(
        X + W + C + f"y = {CONV}(c, wf, b)",
        (
            "y",
            "float-product",
            "Conv without Q/DQ runs in float, while others run in int8",
            "nothing, if it was skipped on purpose; else put Q/DQ on its input and its weight",
            "advice",
        ),
    ),
    # 17 small products
    "8 input channels": Case(
        X + f"dw = DequantizeLinear<axis = 0>(w8, ws)  y = {CONV}(dx, dw, b)",
        ("y", "small-product", "Conv with 8 input and 16 output channels: below 16, FP16 is usually faster than int8", SMALL_FIX, "advice"),
        inputs="float[N, 8, 8, 8] x",
    ),
    "8 output channels": Case(
        X + f"dw = DequantizeLinear<axis = 0>(w8o, ws8)  y = {CONV}(dx, dw, b8)",
        ("y", "small-product", "Conv with 16 input and 8 output channels: below 16, FP16 is usually faster than int8", SMALL_FIX, "advice"),
    ),
    "groups of 4 channels": Case(
        X + "dw = DequantizeLinear<axis = 0>(wg, ws)  y = Conv<group = 4>(dx, dw, b)",
        ("y", "small-product", "Conv with 4 input and 16 output channels: below 16, FP16 is usually faster than int8", SMALL_FIX, "advice"),
    ),
    "N = 8, weight quantized from float": Case(
        X + "q_w = QuantizeLinear(half_m, s, z)  dm = DequantizeLinear(q_w, s, z)  y = MatMul(dx, dm)",
        ("y", "small-product", "MatMul with K = 16 and N = 8: below 16, FP16 is usually faster than int8", SMALL_FIX, "advice"),
        inputs=MATRIX,
    ),
    # 18 two quantizers
    "one tensor on two grids": Case(
        X + W + C + qdq("x", "d2", "s2") + "e = Exp(d2)  y = Mul(c, e)",
        (
            "q_d2",
            "two-quantizers",
            "quantizes 'x' with the scale 0.03, 'q_dx' with 0.02: two conversions",
            "one Q/DQ pair for the tensor, read by all its consumers",
        ),
    ),
    # 19 opset, axes
    "per-channel scales in opset 12": Case(
        X + W.replace("<axis = 0>", "") + f"y = {CONV}(dx, dw, b)",
        (
            "dw",
            "per-channel-opset",
            "16 scales in opset 12: per-channel Q/DQ exist since opset 13",
            "export with opset 13 or later (17 is a safe choice)",
        ),
        opset=12,
    ),
    "two dynamic axes": Case(
        X + W + Y,
        (
            "x",
            "dynamic-axes",
            "input without a fixed size on axis 2, 3",
            "fix every axis but the batch, or build with an optimization profile of your own",
            "advice",
        ),
        inputs="float[N, 16, H, W] x",
    ),
}
CONSTANTS["half_m"] = RNG.normal(size=(16, 8)).astype("f")


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_broken_graph(case: Case, tmp_path: Path) -> None:
    body, found, kwargs = case
    wanted = tuple(
        Finding(layer=layer, rule=rule, message=message, fix=fix, severity=rest[0] if rest else "finding")  # type: ignore[arg-type]
        for layer, rule, message, fix, *rest in found
    )
    assert lint_onnx(onnx_file(tmp_path, body, **kwargs)) == wanted


FINE: dict[str, Case] = {
    "int8 Conv": Case(X + W + Y),
    "DequantizeLinear without zero point": Case("q_dx = QuantizeLinear(x, s, z)  dx = DequantizeLinear(q_dx, s)  " + W + Y),
    "weight scale of shape [1]": Case(X + W.replace("ws", "ws_one") + Y),
    "one weight scale": Case(X + "dw = DequantizeLinear(w, s)  " + Y),
    "negative axis": Case(X + W.replace("axis = 0", "axis = -4") + Y),
    "MatMul with scales along N": Case(X + "dm = DequantizeLinear<axis = 1>(m, ws)  y = MatMul(dx, dm)", inputs=MATRIX),
    "Gemm with a transposed weight": Case(X + "dm = DequantizeLinear<axis = 0>(m, ws)  y = Gemm<transB = 1>(dx, dm, b)", inputs=MATRIX),
    "MatMul whose weight is transposed": Case(
        X + "dm = DequantizeLinear<axis = 0>(m, ws)  t = Transpose<perm = [1, 0]>(dm)  y = MatMul(dx, t)", inputs=MATRIX
    ),
    "float weight with Q and DQ": Case(X + "q_w = QuantizeLinear(wf, s, z)  dw = DequantizeLinear(q_w, s, z)  " + Y),
    "movement between DQ and Conv": Case(
        X
        + W
        + "sh = Shape(x)  r = Reshape(dx, sh)  p = MaxPool<kernel_shape = [2, 2]>(r)  k = Concat<axis = 2>(p, p)  "
        + f"y = {CONV}(k, dw, b)"
    ),
    "Resize before Q/DQ": Case(W + 'r = Resize<mode = "nearest">(x, empty, s4)  ' + qdq("r", "dx") + Y),
    "two quantized activations": Case(X + qdq("k", "dk") + "y = MatMul(dx, dk)", inputs=f"{MATRIX}, float[16, 16] k"),
    "two float activations": Case(X + W + C + "t = Transpose(c)  y = MatMul(c, t)"),
    "Cast behind the weight's DQ": Case(X + W + f"h = Cast<to = 1>(dw)  y = {CONV}(dx, h, b)"),
    "activation before Q/DQ": Case(X + W + C + "r = Clip(c, nil, six)  " + qdq("r", "dr") + W_B + f"y = {CONV}(dr, dw_b, b)"),
    "Q/DQ between Exp and Relu": Case("e = Exp(x)  " + qdq("e", "de") + "y = Relu(de)"),
    "shortcut alone": Case(X + W + C + "r = Relu(c)  y = Add(dx, r)"),
    "projection shortcut": Case(X + W + C + W_B + f"c2 = {CONV}(dx, dw_b, b)  " + qdq("c2", "dc2") + "y = Add(c, dc2)"),
    "a branch that is read elsewhere too": Case(X + W + C + qdq("c", "dc") + "a = Add(dx, dc)  e = Exp(dc)  y = Mul(a, e)"),
    "float Add": Case(X + W + C + "e = Exp(c)  y = Add(x, e)"),
    "Add of a constant": Case(X + W + C + "y = Add(c, half)"),
    "sum of three": Case(X + W + C + "e = Exp(x)  " + qdq("e", "de") + "a = Add(dx, de)  y = Add(a, c)"),
    "Concat with one scale": Case(X + "e = Exp(x)  " + qdq("e", "de") + "y = Concat<axis = 1>(dx, de)"),
    "Concat with a float input": Case(X + "e = Exp(x)  y = Concat<axis = 1>(dx, e)"),
    "pool between quantizers": Case(X + "p = GlobalAveragePool(dx)  f = Flatten(p)  " + qdq("f", "df") + "y = Exp(df)"),
    "pool in float": Case(X + W + C + "p = GlobalAveragePool(c)  y = Exp(p)"),
    "ConvTranspose in float": Case(X + W + C + "y = ConvTranspose(c, w_upf, b)"),
    "BatchNormalization of something else": Case(X + W + C + "r = Relu(c)  y = BatchNormalization(r, ones, b, b, ones)"),
    "gate quantized on both inputs": Case(X + "p = ReduceMean<axes = [2, 3]>(x)  g = Sigmoid(p)  " + qdq("g", "dg") + "y = Mul(dx, dg)"),
    "swish": Case(X + "g = Sigmoid(x)  y = Mul(dx, g)"),
    "hard-swish, written out": Case(X + "a = Add(x, six)  k = Clip(a, nil, six)  g = Mul(k, half)  y = Mul(dx, g)"),
    "small Conv in float": Case(X + W + C + f"sp = Slice(c, one, nine, one)  y = {CONV}(sp, wf8, b)"),
    "depthwise Conv": Case(X + "dw = DequantizeLinear<axis = 0>(wd, ws)  y = Conv<group = 16>(dx, dw, b)"),
    "one tensor on one grid, twice": Case(X + W + C + qdq("x", "d2") + "e = Exp(d2)  y = Mul(c, e)"),
    "per-tensor scales in opset 12": Case(X + "dw = DequantizeLinear(w, s)  " + Y, opset=12),
    "dynamic batch": Case(X + W + Y, inputs="float[batch, 16, 8, 8] x"),
}
CONSTANTS |= {"w_upf": RNG.normal(size=(16, 16, 2, 2)).astype("f"), "one": np.array([1]), "nine": np.array([9])}


@pytest.mark.parametrize("case", FINE.values(), ids=FINE)
def test_near_miss_is_fine(case: Case, tmp_path: Path) -> None:
    body, _, kwargs = case
    assert lint_onnx(onnx_file(tmp_path, body, **kwargs)) == ()


def test_fp8_and_weight_only_int4_are_fine(tmp_path: Path) -> None:
    fp8 = helper.make_tensor("z8", TensorProto.FLOAT8E4M3FN, (), [0.0])
    int4 = helper.make_tensor("w4", TensorProto.INT4, (16, 16), [1] * 256)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z8"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z8"], ["d"], name="d"),
        helper.make_node("Relu", ["d"], ["r"], name="r"),
        helper.make_node("DequantizeLinear", ["w4", "s"], ["dw"], name="dw"),
        helper.make_node("MatMul", ["r", "dw"], ["y"], name="y"),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [fp8, int4, numpy_helper.from_array(np.array(0.1, "f"), "s")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), str(tmp_path / "model.onnx"))
    assert lint_onnx(tmp_path / "model.onnx") == ()


def test_a_node_without_name_is_called_as_tensorrt_calls_it(tmp_path: Path) -> None:
    path = onnx_file(tmp_path, X + W.replace("axis = 0", "axis = 1") + Y)
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.ClearField("name")
    onnx.save(model, str(path))
    assert [(finding.layer, finding.rule) for finding in lint_onnx(path)] == [("node_of_y", "weight-axis")]


def test_scales_in_constant_nodes_are_read(tmp_path: Path) -> None:
    body = "k = Constant<value_float = -1.0>()  " + qdq("x", "dx", "k") + W + Y
    assert [(finding.layer, finding.rule) for finding in lint_onnx(onnx_file(tmp_path, body))] == [("q_dx", "scale-value")]


def test_nodes_of_subgraphs_are_linted(tmp_path: Path) -> None:
    def branch(name: str, zero: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", zero], [f"{name}.q"], name=f"{name}.q"),
            helper.make_node("DequantizeLinear", [f"{name}.q", "s", zero], [name], name=f"{name}.d"),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("yes", "z"), else_branch=branch("no", "z5"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    constants = [numpy_helper.from_array(np.asarray(CONSTANTS[name]), name) for name in ("s", "z", "z5")]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "model.onnx"))
    assert [(finding.layer, finding.rule) for finding in lint_onnx(tmp_path / "model.onnx")] == [("no.q", "zero-point")]


# --- files that cannot be linted ---


def not_onnx(path: Path) -> None:
    path.write_text("version: 1\nmodel: {source: float.keras}\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def float_model(path: Path) -> None:
    onnx_file(path.parent, f"y = {CONV}(x, wf, b)").rename(path)


def two_makers(path: Path) -> None:
    onnx_file(path.parent, "y = Relu(x)  y = Exp(x)").rename(path)


def lost_data(path: Path) -> None:
    model = onnx.load(str(onnx_file(path.parent, X + W + Y)))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "is not a file; expected an ONNX model with Q/DQ"),
    "a folder": (lambda path: path.mkdir(), "is not a file; expected an ONNX model with Q/DQ"),
    "text": (not_onnx, "is not an ONNX model: "),
    "empty": (empty, "is not an ONNX model, or an empty one: it has no nodes"),
    "no Q/DQ": (float_model, "is not a Q/DQ graph: it has 1 nodes and no QuantizeLinear among them, so all of it runs in float"),
    "a name that two nodes make": (two_makers, "is not a valid ONNX model: "),
    "external data that is not there": (lost_data, "the file of its external data cannot be read"),
}


@pytest.mark.parametrize(("make", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_file(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    make(path)
    with pytest.raises(PlacementError, match=re.escape(message)) as raised:
        lint_onnx(path)
    assert str(path) in str(raised.value)


# --- files of others ---


def residual_network(folder: Path) -> Path:
    """Conv -> Clip -> Conv -> Add -> GlobalAveragePool -> Flatten -> Gemm, in float."""
    body = (
        f"c1 = {CONV}(x, wf, b)  r1 = Clip(c1, nil, six)  c2 = {CONV}(r1, wf, b)  a = Add(r1, c2)  "
        "p = GlobalAveragePool(a)  f = Flatten(p)  y = Gemm(f, mf, b)"
    )
    return onnx_file(folder, body)


def quantized_by_onnxruntime(folder: Path, *, symmetric: bool, **options: Any) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"x": np.random.default_rng(seed).normal(size=(4, 16, 8, 8)).astype("f")} for seed in range(2)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    extra = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, **options}
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8} if symmetric else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(residual_network(folder), folder / "int8.onnx", Reader(), per_channel=symmetric, extra_options=extra, **types)
    return folder / "int8.onnx"


def rules_of(path: Path) -> list[tuple[str, str]]:
    return sorted((finding.rule, finding.layer) for finding in lint_onnx(path) if finding.severity == "finding")


def test_onnxruntime_symmetric(tmp_path: Path) -> None:
    assert rules_of(quantized_by_onnxruntime(tmp_path, symmetric=True)) == [
        ("int32-bias", "c1"),
        ("int32-bias", "c2"),
        ("int32-bias", "y"),
        ("residual-add", "a"),
        ("split-fusion", "r1"),
    ]


def test_onnxruntime_symmetric_with_float_bias(tmp_path: Path) -> None:
    path = quantized_by_onnxruntime(tmp_path, symmetric=True, QuantizeBias=False)
    assert rules_of(path) == [("residual-add", "a"), ("split-fusion", "r1")]


def test_onnxruntime_asymmetric(tmp_path: Path) -> None:
    found = rules_of(quantized_by_onnxruntime(tmp_path, symmetric=False))
    rules = [rule for rule, _ in found]
    assert rules.count("zero-point") >= 5
    assert [pair for pair in found if pair[0] != "zero-point"] == [
        ("int32-bias", "c1"),
        ("int32-bias", "c2"),
        ("int32-bias", "y"),
        ("residual-add", "a"),
    ]


def test_a_model_of_ours_has_no_finding(tiny_onnx: Path) -> None:
    assert rules_of(tiny_onnx) == []
    assert [(finding.layer, finding.rule) for finding in lint_onnx(tiny_onnx)] == [("stem", "small-product"), ("logits", "small-product")]
