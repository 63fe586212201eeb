"""A graph broken in one place at a time: the report names the Keras layers there, and what was broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from tfqat.proof.cause import Divergence, Explainer, Watch
from tfqat.proof.cut import OpenGraph
from tfqat.proof.differences import CodeDifference
from tfqat.proof.executions import Codes
from tfqat.proof.expected import expected_of
from tfqat.proof.parity import PointParity
from tfqat.proof.segments import keras_segments
from tfqat.proof.verify import verify

Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == name)).copy()


def add_constant(model: onnx.ModelProto, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def insert_before(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    """New nodes in front of a node, which reads the last one's output."""
    index = [one.name for one in model.graph.node].index(name)
    for number, one in enumerate(nodes):
        model.graph.node.insert(index + number, one)
    node(model, name).input[0] = nodes[-1].output[0]


def edited(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    """One initializer changed."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(constant(model, name))), name))

    return edit


def shifted(index: Any, by: float) -> Callable[[np.ndarray], np.ndarray]:
    def shift(array: np.ndarray) -> np.ndarray:
        array[index] += np.asarray(by, array.dtype)
        return array

    return shift


def halved(channel: int) -> Callable[[np.ndarray], np.ndarray]:
    def halve(codes: np.ndarray) -> np.ndarray:
        codes[channel] //= 2
        return codes

    return halve


def scale_of_reader(model: onnx.ModelProto) -> None:
    """The DequantizeLinear alone, not the QuantizeLinear that shares the scale."""
    add_constant(model, "other_scale", constant(model, "add/scale") * np.float32(1.25))
    node(model, "add/DQ").input[1] = "other_scale"


def leaky_relu(model: onnx.ModelProto) -> None:
    relu = node(model, "head_relu/Relu6")
    relu.op_type = "LeakyRelu"
    del relu.input[1:]
    relu.attribute.append(helper.make_attribute("alpha", 0.1))


def maximum_for_mean(model: onnx.ModelProto) -> None:
    node(model, "pool/Mean").op_type = "GlobalMaxPool"


def clip_at_2(model: onnx.ModelProto) -> None:
    add_constant(model, "two", np.float32(2))
    node(model, "depthwise_relu/Relu6").input[2] = "two"


def padding_by_the_edge(model: onnx.ModelProto) -> None:
    add_constant(model, "pads", np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    insert_before(model, "depthwise", helper.make_node("Pad", ["stem_relu/DQ.out", "pads"], ["padded"], name="pad", mode="edge"))
    next(one for one in node(model, "depthwise").attribute if one.name == "pads").ints[:] = [0, 0, 0, 0]


def halves_up(model: onnx.ModelProto) -> None:
    """floor(x / scale + 0.5) * scale before the quantizer, which then finds no halves."""
    add_constant(model, "half", np.float32(0.5))
    insert_before(
        model,
        "image/Q",
        helper.make_node("Div", ["image", "image/scale"], ["up1"], name="up1"),
        helper.make_node("Add", ["up1", "half"], ["up2"], name="up2"),
        helper.make_node("Floor", ["up2"], ["up3"], name="up3"),
        helper.make_node("Mul", ["up3", "image/scale"], ["up4"], name="up4"),
    )


STEM, DEPTHWISE = ("stem", "stem_bn", "stem_relu"), ("depthwise", "depthwise_bn", "depthwise_relu")
ADD, HEAD = ("project", "project_bn", "add"), ("head", "head_bn", "head_relu")

LOGITS = ("logits",)


def by_quarter(scale: np.ndarray) -> np.ndarray:
    """Every scale, or one of a channel, 1.25 times."""
    return scale * np.float32(1.25)


def quarter_of_5(scale: np.ndarray) -> np.ndarray:
    return np.where(np.arange(24) == 5, by_quarter(scale), scale)


# change -> (point, layers that make it, kind, words of the cause)
BROKEN: dict[str, tuple[Change, str, tuple[str, ...], str, str]] = {
    "bias of a channel": (
        edited("stem/bias", shifted(2, 0.2)),
        *("stem_relu", STEM, "bias"),
        "bias of 'stem': the codes differ in 1 of 16 channels (2), by a constant: bias off by 0.2",
    ),
    "bias before an Add": (
        edited("project/bias", shifted(7, 0.3)),
        *("add", ADD, "bias"),
        "bias of 'project': the codes differ in 1 of 16 channels (7), by a constant: bias off by 0.3",
    ),
    "all biases": (
        edited("head/bias", lambda bias: bias + np.float32(0.1)),
        *("head_relu", HEAD, "bias"),
        "bias of 'head': the codes differ in every channel, by a constant: bias off by 0.09",
    ),
    "weight scale of a channel": (
        edited("head/kernel/scale", quarter_of_5),
        *("head_relu", HEAD, "scale"),
        "weight scale of 'head': the codes differ in 1 of 24 channels (5), by a factor: scale off by factor 1.2",
    ),
    "all weight scales": (
        edited("head/kernel/scale", by_quarter),
        *("head_relu", HEAD, "scale"),
        "weight scale of 'head': the codes differ in every channel, by a factor: scale off by factor 1.2",
    ),
    "weight scale before an Add": (
        edited("project/kernel/scale", shifted(4, 0.01)),
        *("add", ADD, "channels"),
        "scale, weight or bias of 'project' in these channels: the codes differ in 1 of 16 channels (4), by no constant",
    ),
    "code of a weight": (
        edited("head/kernel", halved(3)),
        *("head_relu", HEAD, "weights"),
        "weight codes differ: head/kernel: 1 of 24 channels differ",
    ),
    "scale of an activation": (
        edited("add/scale", lambda scale: scale * np.float32(1.1)),
        *("add", ADD, "activation scale"),
        "(factor 1.1)",
    ),
    "scale where it is read": (
        scale_of_reader,
        *("head_relu", HEAD, "activation scale"),
        "activation scale of add/DQ",
    ),
    "padding": (
        padding_by_the_edge,
        *("depthwise_relu", DEPTHWISE, "padding"),
        "padding of 'depthwise' (Pad, Conv, Clip): the codes differ only at the border of the image, up to 1 deep",
    ),
    "another activation": (
        leaky_relu,
        *("head_relu", HEAD, "operation"),
        "the graph computes Conv, LeakyRelu: the codes differ only where the model clips: it ends at 0 below",
    ),
    "another pooling": (
        maximum_for_mean,
        *("pool", ("pool",), "operation"),
        "the graph computes GlobalMaxPool, Squeeze",
    ),
    "another upper bound": (
        clip_at_2,
        *("depthwise_relu", DEPTHWISE, "clipping"),
        "(Conv, Clip): the codes differ only where they are clipped: the graph ends at",
    ),
    "bias of the last layer": (
        edited("logits/BiasAdd.in1", shifted(1, 0.01)),
        *("logits", LOGITS, "bias"),
        "bias of 'logits': the outputs differ in 1 of 4 channels (1), by a constant: bias off by 0.01",
    ),
    "scale of the last layer": (
        edited("logits/kernel/scale", lambda scale: scale * np.float32(1.001)),
        *("logits", LOGITS, "scale"),
        "weight scale of 'logits': the outputs differ in every channel, by a factor: scale off by factor 1.001",
    ),
    "a channel of the last layer negated": (
        edited("logits/kernel", lambda codes: np.where(np.arange(4) == 2, -codes, codes)),
        *("logits", LOGITS, "scale"),
        "in 1 of 4 channels (2), by a factor: scale off by factor -1",
    ),
    "codes of the last layer": (
        edited("logits/kernel", lambda codes: codes // 2),
        *("logits", LOGITS, "weights"),
        "weight codes differ: logits/kernel: 4 of 4 channels differ",
    ),
}


@dataclass(frozen=True)
class Keras:
    """What the model makes of a batch, computed once."""

    qmodel: Any
    images: np.ndarray
    codes: dict[str, np.ndarray]
    outputs: list[np.ndarray]

    def divergence_of(self, path: Path) -> Divergence | None:
        """Of a graph, from the same codes: what `verify` does, without the noise floors."""
        graph = ir.load(path)
        expected, watch = expected_of(self.qmodel), Watch(self.codes)
        layouts = {
            name: (0, 3, 1, 2)[: codes.ndim] if codes.ndim == 4 and name != "image" else range(codes.ndim)
            for name, codes in self.codes.items()
        }
        fed = {name: np.ascontiguousarray(codes.transpose(layouts[name])) for name, codes in self.codes.items()}
        (logits,), local = OpenGraph.segmented(path, self.codes)({"image": self.images}, fed)
        differences = {name: CodeDifference.between(self.codes[name].transpose(layouts[name]), local[name]) for name in self.codes}
        watch.see(differences, self.codes, local, layouts)
        apart = np.abs(self.outputs[0] - logits).max() / np.abs(self.outputs[0]).max()
        watch.see_outputs(self.outputs, [logits], [apart])
        segments = keras_segments(self.qmodel)
        none = CodeDifference()
        points = [
            PointParity(id=name, local=one, end_to_end=none, noise_floor=none, layers=segments.points[name])
            for name, one in differences.items()
        ]
        explainer = Explainer(model=graph, expected=expected, segments=segments, watch=watch, output_names=["logits"])
        return explainer.point(points) or explainer.outputs()


@pytest.fixture(scope="module")
def keras(tiny_quantized: Any, tiny_data: Callable[[str], Any]) -> Keras:
    images = next(iter(tiny_data("validation")))[0][:20].numpy()
    return Keras(tiny_quantized, images, *Codes.of(tiny_quantized)(images))


def changed(change: Change, path: Path, folder: Path) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize(("change", "point", "layers", "kind", "words"), BROKEN.values(), ids=BROKEN)
def test_the_layer_and_the_cause_are_named(
    change: Change, point: str, layers: tuple[str, ...], kind: str, words: str, keras: Keras, tiny_onnx: Path, tmp_path: Path
) -> None:
    found = keras.divergence_of(changed(change, tiny_onnx, tmp_path))
    assert found is not None
    assert (found.point, found.layers, found.kind) == (point, layers, kind), found.cause
    assert words in found.cause
    assert found.different > 0 and found.max_difference > 0


@pytest.mark.parametrize("name", ["padding", "bias of the last layer"])
def test_the_report_says_it(name: str, tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    change, point, layers, kind, words = BROKEN[name]
    report = verify(tiny_quantized, changed(change, tiny_onnx, tmp_path), tiny_data("validation"), examples=20)
    found = report.first_divergence
    assert found is not None and (found.point, found.layers, found.kind) == (point, layers, kind)
    (said,) = (failure for failure in report.failures if words in failure)
    if point == "logits":
        assert report.output_divergence == found
        assert "look behind the last point: 'logits', made by 'logits': bias of 'logits'" in said
    else:
        assert report.output_divergence is None and report.worst_layer is not None
        assert (report.worst_layer.id, report.worst_layer.layers) == (point, layers)
    written = json.loads(json.dumps(report.to_dict()))
    assert written["first_divergence"] == {**asdict(found), "layers": list(layers)}


def test_halves_rounded_up(tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    """Images that lie on codes and between them: half the ties are rounded another way."""
    scale = constant(onnx.load(tiny_onnx), "image/scale")
    images = (np.random.default_rng(0).integers(0, 250, (20, 12, 12, 1)) / 2).astype(np.float32) * scale
    report = verify(tiny_quantized, changed(halves_up, tiny_onnx, tmp_path), [images])
    found = report.first_divergence
    assert found is not None
    assert (found.point, found.layers, found.kind, found.max_difference) == ("image", ("image",), "rounding", 1)
    assert "(Div, Add, Floor, Mul)" in found.cause and "halves are rounded up" in found.cause
    assert 0.2 < found.different < 0.3


def test_a_good_graph_has_no_divergence(tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any]) -> None:
    report = verify(tiny_quantized, tiny_onnx, tiny_data("validation"), examples=50)
    assert report.passed
    assert report.first_divergence is report.output_divergence is None
    assert {point.id: point.layers for point in report.points} == {
        "image": ("image",),
        "stem_relu": STEM,
        "depthwise_relu": DEPTHWISE,
        "add": ADD,
        "head_relu": HEAD,
        "pool": ("pool",),
    }
    assert report.to_dict()["first_divergence"] is None


def test_the_first_of_several_is_named(tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    def both(model: onnx.ModelProto) -> None:
        edited("head/bias", lambda bias: bias + np.float32(1))(model)
        edited("depthwise/bias", shifted(4, 0.1))(model)

    report = verify(tiny_quantized, changed(both, tiny_onnx, tmp_path), tiny_data("validation"), examples=20)
    assert report.first_divergence is not None and report.worst_layer is not None
    assert (report.first_divergence.point, report.worst_layer.id) == ("depthwise_relu", "head_relu")
    assert any("worst at 'head_relu'" in failure and "made by 'head', 'head_bn', 'head_relu'" in failure for failure in report.failures)


def test_ties_that_are_too_many_in_all_together(keras: Keras, tiny_onnx: Path) -> None:
    """Every point is within its own limit, and the sum is not: the one that agrees least is named, and that these are ties."""
    none = CodeDifference()
    few = {"image": 0, "stem_relu": 40, "add": 50}
    points = [
        PointParity(id=name, local=CodeDifference(histogram={0: 100_000 - count, 1: count}), end_to_end=none, noise_floor=none)
        for name, count in few.items()
    ]
    segments = keras_segments(keras.qmodel)
    explainer = Explainer(
        model=ir.load(tiny_onnx), expected=expected_of(keras.qmodel), segments=segments, watch=Watch(few), output_names=["logits"]
    )
    found = explainer.point(points)
    assert found is not None
    assert (found.point, found.kind, found.different) == ("add", "ties", pytest.approx(0.0005))
    assert (
        found.cause == "ties of rounding, which the order of a sum decides; not a fault: the codes differ rarely (0.0500%) and by one step"
    )
    assert explainer.point(points[:1]) is None


def test_only_the_first_point_is_remembered() -> None:
    """Of each batch one pair of arrays at most, and a later point only until an earlier one diverges."""
    zero, one = np.zeros((2, 8), np.int8), np.full((2, 8), 9, np.int8)
    watch, layouts = Watch(["a", "b", "c"]), dict.fromkeys("abc", (0, 1))

    def see(*wrong: str) -> str | None:
        found = {name: one if name in wrong else zero for name in "abc"}
        differences = {name: CodeDifference.between(zero, found[name]) for name in "abc"}
        watch.see(differences, dict.fromkeys("abc", zero), found, layouts)
        return watch.codes[0] if watch.codes else None

    assert [see(), see("c"), see("b", "c"), see("c"), see("a", "b"), see("b")] == [None, "c", "b", "b", "a", "a"]


def test_a_divergence_as_text() -> None:
    found = Divergence(point="add", layers=("project", "add"), different=0.5, max_difference=3, kind="bias", cause="bias of 'project'")
    assert str(found) == "'add', made by 'project', 'add': bias of 'project'"
