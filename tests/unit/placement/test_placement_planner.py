"""Whole placements: ids, counts and reasons of known networks; presets; skips and overrides; what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tf_keras

import tfqat
from tfqat.errors import NoMatchError, PlacementError
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.planner import plan_graph
from tfqat.recipe.load import quantization_config
from tfqat.spec import Calibrator, PerChannel, PerTensor, QuantSpec

EXAMPLE = Path(__file__).parents[3] / "examples/fashion_mnist/model.py"


def ids(placement: Placement) -> list[str]:
    return [point.id for point in placement.points]


def point(placement: Placement, name: str) -> QPoint:
    return next(point for point in placement.points if point.id == name)


def edges(point: QPoint) -> list[tuple[str, int]]:
    return [(edge.layer, edge.index) for edge in point.edges]


@pytest.fixture(scope="module")
def fashion() -> Any:
    spec = importlib.util.spec_from_file_location("fashion_mnist_model", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()


FASHION_IDS = [
    *("image", "stem/kernel"),
    *("stem_relu", "block1_expand/kernel", "block1_expand_relu", "block1_depthwise/depthwise_kernel"),
    *("block1_depthwise_relu", "block1_project/kernel"),
    *("block1_project_bn", "block2_expand/kernel", "block2_expand_relu", "block2_depthwise/depthwise_kernel"),
    *("block2_depthwise_relu", "block2_project/kernel"),
    *("block2_add", "block3_expand/kernel", "block3_expand_relu", "block3_depthwise/depthwise_kernel"),
    *("block3_depthwise_relu", "block3_project/kernel"),
    *("block3_project_bn", "block4_expand/kernel", "block4_expand_relu", "block4_depthwise/depthwise_kernel"),
    *("block4_depthwise_relu", "block4_project/kernel"),
    *("block4_add", "head/kernel", "head_relu", "pool", "logits/kernel"),
]


def test_example_network(fashion: Any) -> None:
    placement = tfqat.plan(fashion)
    assert ids(placement) == FASHION_IDS
    assert (len(placement.weights), len(placement.activations), len(placement.float_layers)) == (15, 16, 25)
    shared = point(placement, "block1_project_bn")
    assert edges(shared) == [("block2_expand", 0), ("block2_add", 0)]
    assert shared.reason == "input of Conv2D; residual shortcut: Add fuses with block2_project"
    assert point(placement, "head_relu").reason == "average pooling before logits, which reads INT8"


def test_example_network_accounts_for_every_layer(fashion: Any) -> None:
    placement = tfqat.plan(fashion)
    quantized = {entry.source for entry in placement.weights} | {edge.layer for entry in placement.activations for edge in entry.edges}
    quantized -= {"dropout"}  # the quantizer of `pool` sits before it; the layer itself has none
    left = {layer.layer for layer in placement.float_layers}
    assert quantized | left | {"image"} == {layer.name for layer in fashion.layers}
    assert not quantized & left
    assert all(entry.reason for entry in (*placement.points, *placement.float_layers))


def test_defaults_of_specs_and_calibrators(fashion: Any) -> None:
    placement = tfqat.plan(fashion)
    assert {entry.spec for entry in placement.activations} == {QuantSpec()}
    assert {entry.calibrator for entry in placement.activations} == {Calibrator(method="percentile", percentile=99.99)}
    assert {entry.calibrator for entry in placement.weights} == {Calibrator(method="max")}
    axes = {"stem/kernel": (3,), "block1_depthwise/depthwise_kernel": (2, 3), "logits/kernel": (1,)}
    for name, expected in axes.items():
        assert point(placement, name).spec == QuantSpec(granularity=PerChannel(axes=expected), narrow_range=True)


def test_round_trip_through_json(fashion: Any) -> None:
    placement = tfqat.plan(fashion)
    assert Placement.from_dict(json.loads(json.dumps(placement.to_dict()))) == placement


def test_planning_twice_gives_the_same_and_leaves_the_model_alone(fashion: Any) -> None:
    config, nodes = fashion.get_config(), [len(layer._inbound_nodes) for layer in fashion.layers]
    assert tfqat.plan(fashion) == tfqat.plan(fashion)
    assert (fashion.get_config(), [len(layer._inbound_nodes) for layer in fashion.layers]) == (config, nodes)


@pytest.fixture(scope="module")
def resnet() -> Any:
    return tf_keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))


def test_resnet50(resnet: Any) -> None:
    placement = tfqat.plan(resnet)
    assert (len(placement.weights), len(placement.activations), len(set(ids(placement)))) == (54, 55, 109)
    adds = {layer.name: [] for layer in resnet.layers if isinstance(layer, tf_keras.layers.Add)}
    for entry in placement.activations:
        for layer, index in edges(entry):
            if layer in adds:
                adds[layer].append((index, entry.id))
    assert len(adds) == 16
    assert all(len(quantized) == 1 for quantized in adds.values())
    assert all(index == 0 for ((index, _),) in adds.values())
    # Four blocks change the shape: their shortcut is a convolution of its own, read by the Add alone. Twelve pass their input on.
    projections = {name: entry for name, ((_, entry),) in adds.items() if entry == f"{name}:shortcut"}
    assert sorted(projections) == [f"conv{stage}_block1_add" for stage in (2, 3, 4, 5)]
    identities = [entry for name, ((_, entry),) in adds.items() if name not in projections]
    assert len(identities) == 12
    assert all(entry.endswith("_out") for entry in identities)
    assert {point(placement, f"{name}:shortcut").source for name in projections} == {f"conv{stage}_block1_0_bn" for stage in (2, 3, 4, 5)}
    assert "ResNet50" not in str(ids(placement))


def test_resnet50_naive_quantizes_both_inputs_of_each_add_under_ids_of_their_own(resnet: Any) -> None:
    placement = tfqat.plan(resnet, "naive")
    assert len(set(ids(placement))) == len(placement.points)
    reads = [edge for entry in placement.activations for edge in edges(entry) if edge[0].endswith("_add")]
    assert len(reads) == len(set(reads)) == 32
    assert {"conv2_block1_add:0", "conv2_block1_add:1", "conv2_block2_add:1"} <= set(ids(placement))


def test_mobilenet_v2() -> None:
    model = tf_keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
    placement = tfqat.plan(model)
    assert (len(placement.weights), len(placement.activations), len(set(ids(placement)))) == (53, 54, 107)
    adds = [(layer, index) for entry in placement.activations for layer, index in edges(entry) if layer.endswith("_add")]
    assert len(adds) == 10
    assert {index for _, index in adds} == {0}


RESIDUAL = ("image InputLayer", "stem Conv2D image", "conv Conv2D stem", "add Add stem conv", "head Conv2D add", "logits Dense head")
PROJECTION = (
    "image InputLayer",
    "stem Conv2D image",
    "short Conv2D stem",
    "a Conv2D stem",
    "b Conv2D a",
    "add Add short b",
    "fc Dense add",
)


def made(draw: Callable[..., Any], lines: tuple[str, ...], quantization: Any = "selective") -> Placement:
    return plan_graph(draw(*lines), quantization_config(quantization))


PRESETS = {
    "selective": ["image", "stem/kernel", "stem", "short/kernel", "a/kernel", "a", "b/kernel", "add:shortcut", "add", "fc/kernel"],
    "naive": ["image", "stem/kernel", "stem", "short/kernel", "a/kernel", "a", "b/kernel", "add:0", "add:1", "add", "fc/kernel"],
    "hybrid": ["image", "stem/kernel", "stem", "short/kernel", "a/kernel", "a", "b/kernel", "add:0", "add:1", "add", "fc/kernel"],
}


@pytest.mark.parametrize(("preset", "expected"), PRESETS.items(), ids=PRESETS)
def test_presets(draw: Callable[..., Any], preset: str, expected: list[str]) -> None:
    placement = made(draw, PROJECTION, preset)
    assert (placement.preset, ids(placement)) == (preset, expected)


def test_second_output_of_a_layer_has_its_index_in_the_id(draw: Callable[..., Any]) -> None:
    placement = made(draw, ("image InputLayer", "split Split image", "a Dense split", "b Dense split:1"))
    assert ids(placement) == ["split", "a/kernel", "split:1", "b/kernel"]
    assert [entry.output for entry in placement.activations] == [0, 1]


# patterns, the layers that stay float because of them
SKIPS = {
    "name": (["head"], {"head": "'head'"}),
    "glob": (["*e*d"], {"head": "'*e*d'"}),
    "regular expression": (["re:(stem|head)"], {"stem": "'re:(stem|head)'", "head": "'re:(stem|head)'"}),
    "class": (["Dense"], {"logits": "'Dense'"}),
    "shortcut id": (["add:shortcut"], {"add": "'add:shortcut'"}),
    "glob over shortcut ids": (["*:shortcut"], {"add": "'*:shortcut'"}),
    "two patterns, the first gives the reason": (["he*", "head", "logits"], {"head": "'he*'", "logits": "'logits'"}),
}


@pytest.mark.parametrize("preset", ["selective", "hybrid"])
@pytest.mark.parametrize(("patterns", "expected"), SKIPS.values(), ids=SKIPS)
def test_skip(draw: Callable[..., Any], patterns: list[str], expected: dict[str, str], preset: str) -> None:
    placement = made(draw, RESIDUAL, {"preset": preset, "skip": patterns})
    reasons = {layer.layer: layer.reason for layer in placement.float_layers if layer.reason.startswith("skipped")}
    assert reasons == {name: f"skipped by the recipe: {pattern}" for name, pattern in expected.items()}
    assert not {entry.source for entry in placement.weights} & expected.keys()
    assert not {edge.layer for entry in placement.activations for edge in entry.edges} & expected.keys()


def test_skipping_the_convolution_of_a_residual_frees_its_add(draw: Callable[..., Any]) -> None:
    placement = made(draw, RESIDUAL, {"skip": ["conv"]})
    assert ids(placement) == ["image", "stem/kernel", "add", "head/kernel", "head", "logits/kernel"]
    reasons = {layer.layer: layer.reason for layer in placement.float_layers}
    assert reasons["add"] == "Add without a quantized convolution right before it: nothing to fuse with"


ENTROPY, INT4 = {"calibrator": "entropy"}, {"num_bits": 4}
# lines, overrides, points whose calibrator is then entropy, weights that are then 4 bits
OVERRIDES: dict[str, tuple[tuple[str, ...], list[dict[str, Any]], list[str], list[str]]] = {
    "layer name": (RESIDUAL, [{"match": "head", "activations": ENTROPY, "weights": INT4}], ["add", "head"], ["head/kernel"]),
    "glob": (RESIDUAL, [{"match": "he*d", "weights": INT4}], [], ["head/kernel"]),
    "regular expression": (RESIDUAL, [{"match": "re:(conv|head)", "weights": INT4}], [], ["conv/kernel", "head/kernel"]),
    "class": (RESIDUAL, [{"match": "Dense", "activations": ENTROPY, "weights": INT4}], ["head"], ["logits/kernel"]),
    "point id": (RESIDUAL, [{"match": "add", "activations": ENTROPY}], ["stem", "add"], []),
    "shortcut id": (PROJECTION, [{"match": "add:shortcut", "activations": ENTROPY}], ["add:shortcut"], []),
    "glob over shortcut ids": (PROJECTION, [{"match": "*:shortcut", "activations": ENTROPY}], ["add:shortcut"], []),
    "shortcut id where other layers share the tensor": (RESIDUAL, [{"match": "add:shortcut", "activations": ENTROPY}], ["stem"], []),
    "the later of two wins": (
        RESIDUAL,
        [
            {"match": "*", "weights": INT4},
            {"match": "re:(?!conv).*", "weights": {"num_bits": 8}},
        ],
        [],
        ["conv/kernel"],
    ),
    "the later of two changes only what it sets": (
        RESIDUAL,
        [{"match": "logits", "weights": INT4}, {"match": "Dense", "weights": {"granularity": "per_tensor"}}],
        [],
        ["logits/kernel"],
    ),
}


@pytest.mark.parametrize(("lines", "overrides", "entropy", "int4"), OVERRIDES.values(), ids=OVERRIDES)
def test_override(
    draw: Callable[..., Any], lines: tuple[str, ...], overrides: list[dict[str, Any]], entropy: list[str], int4: list[str]
) -> None:
    placement = made(draw, lines, {"overrides": overrides})
    assert [entry.id for entry in placement.activations if entry.calibrator.method == "entropy"] == entropy
    assert [entry.id for entry in placement.weights if entry.spec.num_bits == 4] == int4


def test_override_of_one_input_of_a_naive_add(draw: Callable[..., Any]) -> None:
    placement = made(draw, PROJECTION, {"preset": "naive", "overrides": [{"match": "add:1", "activations": ENTROPY}]})
    assert [entry.id for entry in placement.activations if entry.calibrator.method == "entropy"] == ["add:1"]


def test_per_tensor_weights(draw: Callable[..., Any]) -> None:
    placement = made(draw, RESIDUAL, {"weights": {"granularity": "per_tensor", "num_bits": 5}})
    assert {entry.spec for entry in placement.weights} == {QuantSpec(num_bits=5, granularity=PerTensor(), narrow_range=True)}


FORMS = "(a pattern is a layer name or glob, a regular expression after 're:', or a layer class)"
NO_MATCHES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "skip, near a name": ({"skip": ["stm"]}, ["quantization.skip[0]: pattern 'stm' matches none of the 6 layers; did you mean 'stem'?"]),
    "skip, second of two": ({"skip": ["stem", "zzz"]}, ["quantization.skip[1]: pattern 'zzz' matches none of the 6 layers"]),
    "skip by regular expression": (
        {"skip": ["re:log"]},
        ["quantization.skip[0]: pattern 're:log' matches none of the 6 layers; did you mean 'logits'?"],
    ),
    "two at once": (
        {"skip": ["haed"], "overrides": [{"match": "stem", "weights": INT4}, {"match": "Dens", "weights": INT4}]},
        [
            "quantization.skip[0]: pattern 'haed' matches none of the 6 layers; did you mean 'head'?",
            "quantization.overrides[1].match: pattern 'Dens' matches none of the 6 layers; did you mean 'Dense'?",
        ],
    ),
    "shortcut of an Add that has none": (
        {"preset": "naive", "overrides": [{"match": "add:shortcut", "activations": ENTROPY}]},
        ["quantization.overrides[0].match: pattern 'add:shortcut' matches none of the 6 layers"],
    ),
    "misspelled shortcut": (
        {"overrides": [{"match": "add:shortcat", "activations": ENTROPY}]},
        ["quantization.overrides[0].match: pattern 'add:shortcat' matches none of the 6 layers; did you mean 'add:shortcut'?"],
    ),
}


@pytest.mark.parametrize(("quantization", "messages"), NO_MATCHES.values(), ids=NO_MATCHES)
def test_pattern_that_matches_nothing(draw: Callable[..., Any], quantization: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(NoMatchError) as caught:
        made(draw, RESIDUAL, quantization)
    assert str(caught.value).splitlines() == [f"{message} {FORMS}" for message in messages]


def test_naive_takes_no_skip(draw: Callable[..., Any]) -> None:
    with pytest.raises(PlacementError, match=r"^quantization\.skip: preset 'naive' quantizes every supported layer; use 'hybrid' or"):
        made(draw, RESIDUAL, {"preset": "naive", "skip": ["head"]})


EMPTY = {"no such layer": (("image InputLayer", "relu ReLU image"), []), "all skipped": (RESIDUAL, ["*"])}


@pytest.mark.parametrize(("lines", "skip"), EMPTY.values(), ids=EMPTY)
def test_nothing_to_quantize(draw: Callable[..., Any], lines: tuple[str, ...], skip: list[str]) -> None:
    message = r"^preset 'selective' quantizes no layer of this model: it has none of Conv1D, Conv2D, .*, DepthwiseConv2D left to quantize$"
    with pytest.raises(PlacementError, match=message):
        made(draw, lines, {"skip": skip})


def test_unknown_preset() -> None:
    with pytest.raises(tfqat.errors.RecipeError, match="quantization"):
        tfqat.plan(tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)]), "selectiv")


# name -> (lines, the activation points as (id, edges))
HOISTED: dict[str, tuple[tuple[str, ...], list[tuple[str, list[tuple[str, int]]]]]] = {
    "before Dropout": (
        ("image InputLayer", "relu ReLU image", "drop Dropout relu", "fc Dense drop"),
        [("relu", [("drop", 0)])],
    ),
    "before two of them": (
        ("image InputLayer", "relu ReLU image", "noise GaussianNoise relu", "drop Dropout noise", "fc Dense drop"),
        [("relu", [("noise", 0)])],
    ),
    "one point for a tensor that is read through Dropout too": (
        ("image InputLayer", "relu ReLU image", "a Dense relu", "drop Dropout relu", "b Dense drop"),
        [("relu", [("a", 0), ("drop", 0)])],
    ),
    "points and edges in the order of the layers": (
        ("image InputLayer", "relu ReLU image", "drop Dropout relu", "b Dense drop", "c Dense b", "a Dense relu"),
        [("relu", [("drop", 0), ("a", 0)]), ("b", [("c", 0)])],
    ),
    "not where something reads the dropped values in float": (
        ("image InputLayer", "relu ReLU image", "drop Dropout relu", "fc Dense drop", "soft Softmax drop"),
        [("drop", [("fc", 0)])],
    ),
    "not before Flatten": (
        ("image InputLayer", "relu ReLU image", "flat Flatten relu", "fc Dense flat"),
        [("flat", [("fc", 0)])],
    ),
}


@pytest.mark.parametrize(("lines", "expected"), HOISTED.values(), ids=HOISTED)
def test_quantizers_sit_before_what_does_nothing_at_inference(
    lines: tuple[str, ...], expected: list[tuple[str, list[tuple[str, int]]]], draw: Any
) -> None:
    placement = plan_graph(draw(*lines), quantization_config("selective"))
    assert [(entry.id, edges(entry)) for entry in placement.activations] == expected


def test_a_dropped_output_of_the_model_is_not_hoisted(draw: Any) -> None:
    graph = draw("image InputLayer", "relu ReLU image", "drop Dropout relu", "fc Dense drop", outputs=("fc", "drop"))
    assert ids(plan_graph(graph, quantization_config("selective"))) == ["drop", "fc/kernel"]


WITHOUT_EFFECT = {
    "skip of an input": ({"skip": ["image"]}, "quantization.skip[0]: pattern 'image' matches only layers without a quantizer (image)"),
    "override of a class": (
        {"overrides": [{"match": "ReLU", "activations": {"calibrator": "max"}}]},
        "quantization.overrides[0].match: pattern 'ReLU' matches only layers without a quantizer (stem_relu, block1_expand_relu, "
        "block1_depthwise_relu, block2_expand_relu, block2_depthwise_relu, ...), so it changes nothing",
    ),
}


@pytest.mark.parametrize(("block", "message"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_a_pattern_that_changes_nothing_is_an_error(block: dict[str, Any], message: str, fashion: Any) -> None:
    with pytest.raises(NoMatchError) as caught:
        tfqat.plan(fashion, block)
    assert str(caught.value).startswith(message)


POOLED = (
    *("image InputLayer", "a Conv2D image", "p MaxPooling2D a", "q MaxPooling2D a", "add Add p q"),
    *("gap GlobalAveragePooling2D add", "fc Dense gap", "last AveragePooling2D add"),
)
NO_QUANTIZER = "matches only layers without a quantizer ({}), so it changes nothing; name the layers that read the tensor"
NO_WEIGHT = "matches only layers without a quantized weight ({}), so it changes nothing; name layers with a weight, such as Conv2D or Dense"
CHANGES_NOTHING = {
    "skip of an Add that fuses with nothing": ({"skip": ["add"]}, "quantization.skip[0]: pattern 'add' " + NO_QUANTIZER.format("add")),
    "skip of a pooling that is float": ({"skip": ["last"]}, "quantization.skip[0]: pattern 'last' " + NO_QUANTIZER.format("last")),
    "weights of a pooling": (
        {"overrides": [{"match": "gap", "weights": INT4}]},
        "quantization.overrides[0].match: pattern 'gap' " + NO_WEIGHT.format("gap"),
    ),
    "an empty block does not count": (
        {"overrides": [{"match": "gap", "weights": INT4, "activations": {}}]},
        "quantization.overrides[0].match: pattern 'gap' " + NO_WEIGHT.format("gap"),
    ),
    "activations of a layer that is skipped": (
        {"skip": ["fc"], "overrides": [{"match": "fc", "activations": ENTROPY}]},
        "quantization.overrides[0].match: pattern 'fc' " + NO_QUANTIZER.format("fc"),
    ),
}


@pytest.mark.parametrize(("block", "message"), CHANGES_NOTHING.values(), ids=CHANGES_NOTHING)
def test_a_pattern_that_matches_and_changes_nothing(draw: Callable[..., Any], block: dict[str, Any], message: str) -> None:
    with pytest.raises(NoMatchError) as caught:
        made(draw, POOLED, block)
    assert str(caught.value) == message


HAS_EFFECT = {
    "skip of a pooling beside a skip that makes it float anyway": {"skip": ["fc", "gap"]},
    "override that sets weights and activations of a layer with an input only": {
        "overrides": [{"match": "gap", "weights": INT4, "activations": ENTROPY}]
    },
    "skip that matches one layer with a quantizer among others": {"skip": ["re:(add|gap)"]},
}


@pytest.mark.parametrize("block", HAS_EFFECT.values(), ids=HAS_EFFECT)
def test_a_pattern_with_an_effect_is_taken(draw: Callable[..., Any], block: dict[str, Any]) -> None:
    lines = (*POOLED[:-3], "gap GlobalAveragePooling2D a", "fc Dense gap", "last Conv2D add")
    assert made(draw, lines, block) != made(draw, lines)


def test_patterns_without_effect_and_without_match_come_in_one_message(fashion: Any) -> None:
    with pytest.raises(NoMatchError) as caught:
        tfqat.plan(fashion, {"skip": ["image", "zzz", "logits"]})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["quantization.skip[0]", "quantization.skip[1]"]


def test_average_pooling_that_is_a_model_output_too_stays_float(draw: Any) -> None:
    lines = ("image InputLayer", "pool GlobalAveragePooling2D image", "fc Dense pool")
    assert ids(plan_graph(draw(*lines), quantization_config("selective"))) == ["image", "pool", "fc/kernel"]
    both = plan_graph(draw(*lines, outputs=("fc", "pool")), quantization_config("selective"))
    assert ids(both) == ["pool", "fc/kernel"]
    assert both.float_layers[0].reason.startswith("average pooling whose output is not quantized everywhere")
