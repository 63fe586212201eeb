"""Every rule of the exported form: a good file, one thing in it broken, and the rule that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tfqat.errors import ExportError
from tfqat.proof import structure
from tfqat.proof.structure import StructureCheck
from tfqat.proof.verify import verify_structure


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == name)).copy()


def put(model: onnx.ModelProto, name: str, value: Any) -> None:
    """Another value for an initializer, or a new one."""
    tensor = next((one for one in model.graph.initializer if one.name == name), None)
    if tensor is None:
        tensor = model.graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def insert_after(model: onnx.ModelProto, producer: str, op_type: str, name: str, extra: tuple[str, ...] = ()) -> None:
    """A new node that takes the output of `producer`; all that read it read the new node."""
    output = node(model, producer).output[0]
    for one in model.graph.node:
        one.input[:] = [f"{name}.out" if value == output else value for value in one.input]
    made = helper.make_node(op_type, [output, *extra], [f"{name}.out"], name=name)
    index = [one.name for one in model.graph.node].index(producer)
    model.graph.node.insert(index + 1, made)


# --- one change each ---


def other_domain(model: onnx.ModelProto) -> None:
    node(model, "stem_relu/Relu6").domain = "ai.onnx.contrib"


def fixed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def fixed_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8


def renamed_quantizer(model: onnx.ModelProto) -> None:
    node(model, "add/Q").name = "sum/Q"


def further_quantizer(model: onnx.ModelProto) -> None:
    insert_after(model, "project", "QuantizeLinear", "extra/Q", ("add/scale", "zero_point"))
    insert_after(model, "extra/Q", "DequantizeLinear", "extra/DQ", ("add/scale", "zero_point"))


def scale_of_shape_1(model: onnx.ModelProto) -> None:
    put(model, "stem_relu/scale", constant(model, "stem_relu/scale").reshape(1))


def scale_one_bit_off(model: onnx.ModelProto) -> None:
    put(model, "head_relu/scale", np.nextafter(constant(model, "head_relu/scale"), np.float32(1)))


def negative_scale(model: onnx.ModelProto) -> None:
    scale = constant(model, "project/kernel/scale")
    scale[3] *= -1
    put(model, "project/kernel/scale", scale)


def zero_scale(model: onnx.ModelProto) -> None:
    scale = constant(model, "logits/kernel/scale")
    scale[0] = 0
    put(model, "logits/kernel/scale", scale)


def zero_point_3(model: onnx.ModelProto) -> None:
    put(model, "other_zero_point", np.int8(3))
    node(model, "pool/DQ").input[2] = "other_zero_point"


def unsigned_zero_point(model: onnx.ModelProto) -> None:
    put(model, "other_zero_point", np.uint8(0))
    node(model, "pool/Q").input[2] = "other_zero_point"


def weight_as_input(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "head/kernel")
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info("head/kernel", onnx.TensorProto.INT8, ["N", 16, 3, 3]))


def float_weight(model: onnx.ModelProto) -> None:
    put(model, "head/kernel", constant(model, "head/kernel").astype(np.float32))


def one_code(model: onnx.ModelProto) -> None:
    codes = constant(model, "stem/kernel")
    codes[5, 0, 1, 1] += 1 if codes[5, 0, 1, 1] < 127 else -1
    put(model, "stem/kernel", codes)


def codes_of_another_size(model: onnx.ModelProto) -> None:
    put(model, "logits/kernel", constant(model, "logits/kernel")[:, :3])


def half_a_channel_negated(model: onnx.ModelProto) -> None:
    codes = constant(model, "depthwise/depthwise_kernel")
    codes[2, :, :2] *= -1
    put(model, "depthwise/depthwise_kernel", codes)


def identity_between(model: onnx.ModelProto) -> None:
    insert_after(model, "head/kernel/DQ", "Identity", "between")


def weight_read_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", [node(model, "head/kernel/DQ").output[0]], ["r"], name="reader"))


def weight_read_by_nothing(model: onnx.ModelProto) -> None:
    put(model, "float_weight", np.zeros((24, 4), np.float32))
    node(model, "logits").input[1] = "float_weight"


def wrong_axis(model: onnx.ModelProto) -> None:
    node(model, "project/kernel/DQ").attribute[0].i = 1


def no_axis(model: onnx.ModelProto) -> None:
    del node(model, "head/kernel/DQ").attribute[:]


def too_few_scales(model: onnx.ModelProto) -> None:
    put(model, "logits/kernel/scale", constant(model, "logits/kernel/scale")[:3])


def float_activation(model: onnx.ModelProto) -> None:
    node(model, "project").input[0] = node(model, "depthwise_relu/Relu6").output[0]


def float64_bias(model: onnx.ModelProto) -> None:
    put(model, "stem/bias", constant(model, "stem/bias").astype(np.float64))


def batch_norm_left(model: onnx.ModelProto) -> None:
    put(model, "ones", np.ones(16, np.float32))
    insert_after(model, "project", "BatchNormalization", "project_bn", ("ones",) * 4)


NAMES = "the Q/DQ nodes are those of the placement, by name"
ZERO_POINTS = "zero points are those of the target: int8 0, or for ONNX Runtime uint8 128 and 0"
# the change, and rule -> detail (one that ends in a space is a beginning) for every rule that must fail, and none else
CASES: dict[str, tuple[Callable[[onnx.ModelProto], None], dict[str, str]]] = {
    "operator of another domain": (
        other_domain,
        {"only operators of ONNX, none of TensorFlow": "stem_relu/Relu6 is ai.onnx.contrib.Clip"},
    ),
    "fixed input batch": (fixed_input, {"the batch size is dynamic": "image has the shape [8,12,12,1]"}),
    "fixed output batch": (fixed_output, {"the batch size is dynamic": "logits has the shape [8,4]"}),
    "renamed quantizer": (renamed_quantizer, {NAMES: "add/Q is missing; sum/Q belongs to no quantization point"}),
    "further quantizer": (
        further_quantizer,
        {NAMES: "extra/DQ belongs to no quantization point; extra/Q belongs to no quantization point"},
    ),
    "scale of shape (1,)": (
        scale_of_shape_1,
        {"activation scales are scalars": "stem_relu/Q has a scale of shape (1,); stem_relu/DQ has a scale of shape (1,)"},
    ),
    "scale one bit off": (scale_one_bit_off, {"activation scales are the model's, to the last bit": "head_relu/Q has the scale "}),
    "negative scale": (negative_scale, {"scales are positive": "project/kernel/DQ"}),
    "zero scale": (zero_scale, {"scales are positive": "logits/kernel/DQ"}),
    "zero point 3": (zero_point_3, {ZERO_POINTS: "pool/DQ has the zero point 3, expected int8 0"}),
    "unsigned zero point": (unsigned_zero_point, {ZERO_POINTS: "pool/Q has the zero point 0, expected int8 0"}),
    "weight as input": (
        weight_as_input,
        {
            "weights are constants of int8 codes": "head/kernel is no int8 constant",
            "weight codes are the model's": "head/kernel has codes of shape (), the model (24, 16, 3, 3)",
        },
    ),
    "float weight": (float_weight, {"weights are constants of int8 codes": "head/kernel is no int8 constant"}),
    "one code": (one_code, {"weight codes are the model's": "stem/kernel: 1 of 16 channels differ"}),
    "half a channel negated": (
        half_a_channel_negated,
        {"weight codes are the model's": "depthwise/depthwise_kernel: 1 of 16 channels differ"},
    ),
    "codes of another size": (
        codes_of_another_size,
        {"weight codes are the model's": "logits/kernel has codes of shape (24, 3), the model (24, 4)"},
    ),
    "node between": (
        identity_between,
        {"nothing stands between a weight's DequantizeLinear and its operation": "head/kernel/DQ is read by Identity"},
    ),
    "weight read twice": (
        weight_read_twice,
        {"nothing stands between a weight's DequantizeLinear and its operation": "head/kernel/DQ is read by Conv, Relu"},
    ),
    "weight read by nothing": (
        weight_read_by_nothing,
        {"nothing stands between a weight's DequantizeLinear and its operation": "logits/kernel/DQ is read by nothing"},
    ),
    "wrong axis": (
        wrong_axis,
        {"weight scales go along the output channels": "project/kernel/DQ has (16,) scales on axis 1, expected 16 on axis 0"},
    ),
    "no axis": (
        no_axis,
        {"weight scales go along the output channels": "head/kernel/DQ has (24,) scales on axis 1, expected 24 on axis 0"},
    ),
    "too few scales": (
        too_few_scales,
        {"weight scales go along the output channels": "logits/kernel/DQ has (3,) scales on axis 1, expected 4 on axis 1"},
    ),
    "float activation": (
        float_activation,
        {"an operation with a quantized weight reads a quantized activation": "project reads a float activation"},
    ),
    "float64 bias": (float64_bias, {"biases are float, of the type of what is not quantized": "stem has a bias of type float64"}),
    "BatchNorm left": (
        batch_norm_left,
        {"BatchNorm is folded wherever that is exact": "project_bn could be folded into the convolution before it"},
    ),
}


def failed(qmodel: Any, path: Path) -> dict[str, str]:
    return {check.rule: check.detail for check in verify_structure(qmodel, path) if not check.passed}


def test_a_good_file_obeys_every_rule(tiny_quantized: Any, tiny_onnx: Path) -> None:
    checks = verify_structure(tiny_quantized, tiny_onnx)
    assert [(check.passed, check.detail) for check in checks] == [(True, "")] * 15
    assert [check.rule for check in checks] == [rule for rule, _ in structure._RULES]


@pytest.mark.parametrize(("change", "broken"), CASES.values(), ids=CASES)
def test_one_change_breaks_its_rule_and_no_other(
    change: Callable[[onnx.ModelProto], None], broken: dict[str, str], tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_onnx)
    change(model)
    onnx.save(model, str(tmp_path / "model.onnx"))
    found = failed(tiny_quantized, tmp_path / "model.onnx")
    assert set(found) == set(broken)
    for rule, detail in broken.items():
        assert found[rule].startswith(detail) if detail.endswith(" ") else found[rule] == detail


def test_every_rule_has_a_case() -> None:
    for_onnxruntime = "16-bit sums of two products do not saturate"  # tests/unit/export/test_export_unsigned.py breaks it
    assert {rule for rule, _ in structure._RULES} - {for_onnxruntime} == {rule for _, broken in CASES.values() for rule in broken}


def test_a_channel_negated_as_a_whole_or_zeroed_with_the_smallest_scale_is_the_models(
    tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path
) -> None:
    """Folding a negative gamma does the first, a gamma of zero the second; whether it was right shows in the codes that come out."""
    model = onnx.load(tiny_onnx)
    codes, scale = constant(model, "stem/kernel"), constant(model, "stem/kernel/scale")
    codes[1] *= -1
    codes[2], scale[2] = 0, 1e-12
    put(model, "stem/kernel", codes)
    put(model, "stem/kernel/scale", scale)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert failed(tiny_quantized, tmp_path / "model.onnx") == {}


def test_a_zeroed_channel_with_a_scale_that_counts_is_not_the_models(tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    codes = constant(model, "stem/kernel")
    codes[2] = 0
    put(model, "stem/kernel", codes)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert failed(tiny_quantized, tmp_path / "model.onnx") == {"weight codes are the model's": "stem/kernel: 1 of 16 channels differ"}


def test_a_long_list_is_cut_to_five() -> None:
    import onnx_ir as ir

    expected = structure.Expected(activations={f"p{number}": 1.0 for number in range(9)}, weights=())
    empty = helper.make_model(helper.make_graph([], "g", [], []))
    check = next(check for check in structure.check_structure(ir.from_proto(empty), expected) if not check.passed)
    missing = ("p0/DQ", "p0/Q", "p1/DQ", "p1/Q", "p2/DQ")
    assert check == StructureCheck(rule=NAMES, passed=False, detail="; ".join(f"{name} is missing" for name in missing))


@pytest.mark.parametrize("content", [b"not a graph", b"\xff" * 100], ids=["text", "bytes"])
def test_a_file_that_is_no_graph(content: bytes, tiny_quantized: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx is not an ONNX model: "):
        verify_structure(tiny_quantized, tmp_path / "model.onnx")


def test_an_empty_file(tiny_quantized: Any, tmp_path: Path) -> None:
    from tfqat.proof.verify import verify

    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ExportError):
        verify(tiny_quantized, tmp_path / "model.onnx", [])


def test_a_file_that_is_missing(tiny_quantized: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ONNX file .*no\.onnx does not exist"):
        verify_structure(tiny_quantized, tmp_path / "no.onnx")
