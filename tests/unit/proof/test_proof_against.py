"""Two graphs side by side: forms of one model agree, one changed thing is found where it stands, other graphs are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tfqat.errors import DataError, ExportError
from tfqat.export.onnx import export_onnx
from tfqat.form import Form
from tfqat.proof.against import compare_files, compare_graphs
from tfqat.proof.comparison import GraphComparison
from tfqat.proof.differences import CodeDifference

Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == name)).copy()


def edited(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(constant(model, name))), name))

    return edit


def add_constant(model: onnx.ModelProto, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def in_uint8(model: onnx.ModelProto) -> None:
    """The same grid: the codes and the zero point 128 higher."""
    add_constant(model, "middle", np.uint8(128))
    for one in model.graph.node:
        if one.op_type in ("QuantizeLinear", "DequantizeLinear") and len(one.input) > 2:
            one.input[2] = "middle"


def relu_in_uint8(model: onnx.ModelProto) -> None:
    """Codes 0 to 127 with the zero point 0; a Clip before it keeps uint8 from going on to 255."""
    add_constant(model, "lowest", np.uint8(0))
    add_constant(model, "highest", np.float32(127) * constant(model, "stem_relu/scale"))
    node(model, "stem_relu/Relu6").input[2] = "highest"
    for kind in ("Q", "DQ"):
        node(model, f"stem_relu/{kind}").input[2] = "lowest"


def without_a_point(model: onnx.ModelProto) -> None:
    for one in model.graph.node:
        one.input[:] = ["add/add.out" if value == "add/DQ.out" else value for value in one.input]
    for kind in ("Q", "DQ"):
        model.graph.node.remove(node(model, f"add/{kind}"))


def scale_of_reader(model: onnx.ModelProto) -> None:
    add_constant(model, "other_scale", constant(model, "add/scale") * np.float32(1.25))
    node(model, "add/DQ").input[1] = "other_scale"


def leaky_relu(model: onnx.ModelProto) -> None:
    relu = node(model, "head_relu/Relu6")
    relu.op_type = "LeakyRelu"
    del relu.input[1:]
    relu.attribute.append(helper.make_attribute("alpha", 0.1))


def clip_at_2(model: onnx.ModelProto) -> None:
    add_constant(model, "two", np.float32(2))
    node(model, "depthwise_relu/Relu6").input[2] = "two"


def changed(change: Change, path: Path, folder: Path) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, str(folder / "changed.onnx"))
    return folder / "changed.onnx"


@pytest.fixture(scope="module")
def images(tiny_data: Callable[[str], Any]) -> np.ndarray:
    return np.asarray(next(iter(tiny_data("validation")))[0][:30])


FORMS = {
    "a fixed batch": {"form": Form(batch=4)},
    "channels first": {"form": Form(layout="nchw")},
    "another name of the output": {"form": Form(outputs=("scores",))},
    "all of it in opset 21": {"form": Form(batch=7, layout="nchw", outputs=("scores",)), "opset": 21},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_forms_of_one_model_agree(
    settings: dict[str, Any], tiny_quantized: Any, tiny_onnx: Path, images: np.ndarray, tmp_path: Path
) -> None:
    export_onnx(tiny_quantized, tmp_path / "other.onnx", **settings)
    for pair in ((tiny_onnx, tmp_path / "other.onnx"), (tmp_path / "other.onnx", tiny_onnx)):
        found = compare_graphs(*pair, [images])
        assert found.failures == ()
        assert (found.examples, found.same_numbers, found.codes.different, found.output_difference) == (30, True, 0, 0)
        assert found.codes.codes == 30 * (144 + 3 * 2304 + 864 + 24)
        assert found.first_difference is None


@pytest.mark.parametrize("change", [in_uint8, relu_in_uint8])
def test_the_same_grid_in_uint8_agrees(change: Change, tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    found = compare_graphs(tiny_onnx, changed(change, tiny_onnx, tmp_path), [images])
    assert found.failures == ()
    assert (found.codes.different, found.output_difference, found.scales) == (0, 0, {})


def test_batchnorm_that_is_not_folded(tiny_quantized: Any, tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    """Other scales and constants, and the same function: a few ties are all that differs."""
    export_onnx(tiny_quantized, tmp_path / "other.onnx", fold_batchnorm=False)
    found = compare_graphs(tiny_onnx, tmp_path / "other.onnx", [images])
    assert found.failures == ()
    assert not found.same_numbers and found.limit == 0.9999
    assert set(found.weights) == {"stem/kernel", "depthwise/depthwise_kernel", "project/kernel", "head/kernel"}


def other_padding(model: onnx.ModelProto) -> None:
    next(one for one in node(model, "depthwise").attribute if one.name == "pads").ints[:] = [0, 0, 2, 2]


def larger(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda scale: scale * np.float32(factor)


def last_bias(bias: np.ndarray) -> np.ndarray:
    return bias + np.float32(0.01)


# change -> (where it shows, words of the cause)
CHANGED: dict[str, tuple[Change, str, str]] = {
    "bias": (edited("project/bias", lambda bias: bias + np.float32(0.3)), "add", "constants differ: project/bias"),
    "weight scale": (edited("head/kernel/scale", larger(1.1)), "head_relu", "weight 'head/kernel' differs: 24 of 24 scales"),
    "weight codes": (edited("head/kernel", lambda codes: codes // 2), "head_relu", "of 3456 codes"),
    "scale": (edited("add/scale", larger(1.25)), "add", "the scale of 'add' differs: "),
    "scale where it is read": (scale_of_reader, "head_relu", "the scale of 'add/DQ' differs: "),
    "activation": (leaky_relu, "head_relu", "its operations are Conv, Clip, and Conv, LeakyRelu"),
    "bound under another name": (clip_at_2, "depthwise_relu", "constants differ: stem_relu/Relu6.in2"),
    "attribute": (other_padding, "depthwise_relu", "neither its scale nor weights or constants before it differ; it is made by Conv, Clip"),
    "point left out": (without_a_point, "head_relu", "made from depthwise_relu, project/kernel, stem_relu"),
    "bias of the last layer": (edited("logits/BiasAdd.in1", last_bias), "logits", "constants differ: logits/BiasAdd.in1"),
    "scale of the last layer": (edited("logits/kernel/scale", larger(1.001)), "logits", "4 of 4 scales"),
}


@pytest.mark.parametrize(("change", "point", "words"), CHANGED.values(), ids=CHANGED)
def test_one_change_is_found_where_it_stands(
    change: Change, point: str, words: str, tiny_onnx: Path, images: np.ndarray, tmp_path: Path
) -> None:
    found = compare_graphs(tiny_onnx, changed(change, tiny_onnx, tmp_path), [images])
    assert not found.passed
    assert found.first_difference is not None and found.first_difference.point == point
    assert words in found.first_difference.cause
    assert f"first difference: {point!r}: {found.first_difference.cause}" in found.failures
    written = json.loads(json.dumps(found.to_dict()))
    assert (written["passed"], written["first_difference"]["point"]) == (False, point)


def test_points_that_only_one_has(tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    other = changed(without_a_point, tiny_onnx, tmp_path)
    assert compare_graphs(tiny_onnx, other, [images]).only_in_first == ("add",)
    found = compare_graphs(other, tiny_onnx, [images])
    assert (found.only_in_first, found.only_in_second) == ((), ("add",))
    assert f"only in {tiny_onnx}: add" in found.failures


def test_noise_is_the_same_at_every_call(tiny_onnx: Path) -> None:
    first, second = (compare_files(tiny_onnx, tiny_onnx) for _ in range(2))
    assert first.passed and first.data == "standard normal noise, seed 0" and first.examples == 100
    assert first.to_dict() == second.to_dict()


def test_a_file_of_arrays(tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=images, labels=np.zeros(30))
    found = compare_files(tiny_onnx, tiny_onnx, data=tmp_path / "x.npz", examples=12)
    assert (found.passed, found.examples, found.data) == (True, 12, str(tmp_path / "x.npz"))


def save_small(
    path: Path, *, name: str = "image", sizes: tuple[Any, ...] = ("N", 12, 12, 1), points: bool = True, outputs: int = 1
) -> Path:
    """A graph without layers of ours: an input, perhaps Q and DQ, and outputs."""
    made = [helper.make_node("QuantizeLinear", [name, "s", "z"], ["q"], name="other/Q")]
    made += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="other/DQ")]
    last = [helper.make_node("Identity", ["d" if points else name], [f"y{number}"], name=f"y{number}") for number in range(outputs)]
    graph = helper.make_graph(
        [*(made if points else []), *last],
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(f"y{number}", onnx.TensorProto.FLOAT, sizes) for number in range(outputs)],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_graphs_that_cannot_be_compared(tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    refused: list[tuple[Path, str]] = [
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path / "text.onnx", "is not an ONNX model"),
        (save_small(tmp_path / "float.onnx", points=False), "holds no QuantizeLinear of an activation"),
        (save_small(tmp_path / "other.onnx"), "have no quantization point in common"),
        (save_small(tmp_path / "size.onnx", sizes=("N", 8, 8, 1)), r"float32 of the sizes \(None, 12, 12, 1\), in .* of \(None, 8, 8, 1\)"),
    ]
    for path, message in refused:
        with pytest.raises(ExportError, match=message):
            compare_graphs(tiny_onnx, path, [images])


def test_another_number_of_outputs(images: np.ndarray, tmp_path: Path) -> None:
    one, two = save_small(tmp_path / "one.onnx"), save_small(tmp_path / "two.onnx", outputs=2)
    with pytest.raises(ExportError, match=r"has 1 outputs, and .*two\.onnx 2"):
        compare_graphs(one, two, [images])


def test_a_single_input_may_have_another_name(images: np.ndarray, tmp_path: Path) -> None:
    found = compare_graphs(save_small(tmp_path / "a.onnx"), save_small(tmp_path / "b.onnx", name="input_1"), [images])
    assert found.passed and found.codes.codes == images.size


def test_data_that_does_not_fit(tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=images)
    np.save(tmp_path / "one.npy", images)
    (tmp_path / "text.npz").write_text("nothing")
    for name, message in {
        "none.npz": r"none\.npz does not exist; expected a \.npz file with an array for each of image",
        "other.npz": r"other\.npz lacks the input 'image': it has x",
        "one.npy": "holds one array without a name",
        "text.npz": r"text\.npz cannot be read as arrays",
    }.items():
        with pytest.raises(DataError, match=message):
            compare_files(tiny_onnx, tiny_onnx, data=tmp_path / name)
    with pytest.raises(DataError, match=r"a batch of shape \(30, 9, 12, 1\), but input 'image' of .* takes \(None, 12, 12, 1\)"):
        compare_graphs(tiny_onnx, tiny_onnx, [images[:, :9]])
    with pytest.raises(DataError, match="is empty"):
        compare_graphs(tiny_onnx, tiny_onnx, [])
    with pytest.raises(DataError, match=r"input 'image' has the type float32 and the sizes \(None, None, 12, 1\): noise does not fit it"):
        compare_files(*[save_small(tmp_path / "free.onnx", sizes=("N", "H", 12, 1))] * 2)


def test_the_limit_knows_whether_the_numbers_are_the_same(tiny_onnx: Path, images: np.ndarray) -> None:
    """99.5% of equal codes is rounding that was carried on if nothing in the files differs, and a fault if something does."""
    same = compare_graphs(tiny_onnx, tiny_onnx, [images])
    rounded: GraphComparison = replace(same, points={"add": CodeDifference(histogram={0: 995, 1: 5})})
    assert rounded.passed
    (failure,) = replace(rounded, constants=("stem/bias",)).failures
    assert failure == "codes: 99.5000% equal, expected 99.99%; largest difference 1"
