"""Rules of layers that average, move or resize values, and the numbers behind them: what commutes gives the same codes on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfqat.models.graph import ModelGraph, Node
from tfqat.placement import rules
from tfqat.placement.planner import plan_graph
from tfqat.placement.rules import KeepFloat, Quantize, classes, moving
from tfqat.recipe.load import quantization_config

Draw = Callable[..., ModelGraph]
STEM = ("image InputLayer", "stem Conv2D image")


def decide(draw: Draw, *lines: str, name: str, **config: Any) -> Any:
    graph = draw(*STEM, *lines, configs={name: config})
    return rules.view(graph).decide(graph.node(name))


MOVES = [
    *("Flatten", "Reshape", "Permute", "RepeatVector", "Cropping1D", "Cropping2D", "Cropping3D"),
    *("UpSampling1D", "UpSampling2D", "UpSampling3D"),
]


@pytest.mark.parametrize("class_name", MOVES)
def test_what_moves_values_commutes(draw: Draw, class_name: str) -> None:
    assert decide(draw, f"move {class_name} stem", name="move") == KeepFloat(reason="moves values only: commutes with Q/DQ")


@pytest.mark.parametrize("class_name", ["ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"])
def test_padding_becomes_that_of_the_convolution(draw: Draw, class_name: str) -> None:
    decision = decide(draw, f"pad {class_name} stem", "conv Conv2D pad", name="pad")
    assert decision == KeepFloat(reason="padding with zeros commutes with Q/DQ: it becomes the padding of the convolution behind it")


IDENTITIES = ["Dropout", "SpatialDropout2D", "AlphaDropout", "StochasticDepth", "GaussianNoise", "ActivityRegularization"]


@pytest.mark.parametrize("class_name", IDENTITIES)
def test_what_does_nothing_at_inference(draw: Draw, class_name: str) -> None:
    assert decide(draw, f"drop {class_name} stem", name="drop") == KeepFloat(reason="leaves the values as they are at inference")


INTERPOLATIONS = {"nearest": True, "bilinear": False, "bicubic": False, "lanczos3": False}


@pytest.mark.parametrize(("interpolation", "commutes"), INTERPOLATIONS.items(), ids=INTERPOLATIONS)
def test_only_nearest_resizing_commutes(draw: Draw, interpolation: str, commutes: bool) -> None:
    decision = decide(draw, "up UpSampling2D stem", "conv Conv2D up", name="up", interpolation=interpolation)
    reason = "moves values only: commutes with Q/DQ"
    assert decision == KeepFloat(reason=reason if commutes else f"{interpolation} resizing computes in float; Q/DQ come after it")


def test_interpolation_does_not_match_another_layer(draw: Draw) -> None:
    graph = draw(*STEM, "up UpSampling2D stem", configs={"stem": {"interpolation": "bilinear"}})
    assert [moving.interpolation(rules.view(graph), node) for node in graph.nodes] == [None, None, None]


@pytest.mark.parametrize("class_name", sorted(classes.AVERAGE_POOLS))
def test_average_pooling_of_every_rank_is_quantized_if_what_follows_is(draw: Draw, class_name: str) -> None:
    decision = decide(draw, f"pool {class_name} stem", "fc Dense pool", name="pool")
    assert decision == Quantize(inputs=(0,), reason="average pooling before fc, which reads INT8")
    reason = "average pooling whose output is not quantized everywhere: INT8 would only add conversions"
    assert decide(draw, f"pool {class_name} stem", "soft Softmax pool", name="pool") == KeepFloat(reason=reason)


# what stands between the pooling and a Dense -> whether the pooling is quantized
BETWEEN = {
    "Reshape": ({}, True),
    "Permute": ({}, True),
    "ZeroPadding2D": ({}, True),
    "Cropping2D": ({}, True),
    "MaxPooling2D": ({}, True),
    "GlobalMaxPooling2D": ({}, True),
    "UpSampling2D": ({"interpolation": "nearest"}, True),
    "UpSampling2D ": ({"interpolation": "bilinear"}, False),
    "AveragePooling2D": ({}, True),
    "LayerNormalization": ({}, False),
    "ReLU": ({}, False),
}


@pytest.mark.parametrize(("class_name", "config", "is_quantized"), [(name, *case) for name, case in BETWEEN.items()], ids=BETWEEN)
def test_what_lets_a_pooling_see_the_quantizer_behind_it(draw: Draw, class_name: str, config: Any, is_quantized: bool) -> None:
    graph = draw(*STEM, "pool AveragePooling2D stem", f"mid {class_name} pool", "fc Dense mid", configs={"mid": config})
    assert isinstance(rules.view(graph).decide(graph.node("pool")), Quantize) is is_quantized


# --- where quantizers sit around padding ---

# lines, the activation points as (id, edges)
PADDED: dict[str, tuple[tuple[str, ...], list[tuple[str, list[tuple[str, int]]]]]] = {
    "before padding": (("pad ZeroPadding2D stem", "conv Conv2D pad"), [("image", [("stem", 0)]), ("stem", [("pad", 0)])]),
    "one quantizer for a tensor that is read with and without padding": (
        ("pad ZeroPadding2D stem", "conv Conv2D pad", "short Conv2D stem", "add Concatenate conv short"),
        [("image", [("stem", 0)]), ("stem", [("pad", 0), ("short", 0)])],
    ),
    "not where padding is read in float too": (
        ("pad ZeroPadding2D stem", "conv Conv2D pad", "relu ReLU pad"),
        [("image", [("stem", 0)]), ("pad", [("conv", 0)])],
    ),
    "before padding and dropout": (
        ("drop Dropout stem", "pad ZeroPadding2D drop", "conv Conv2D pad"),
        [("image", [("stem", 0)]), ("stem", [("drop", 0)])],
    ),
    "behind resizing, which is no padding": (
        ("up UpSampling2D stem", "conv Conv2D up"),
        [("image", [("stem", 0)]), ("up", [("conv", 0)])],
    ),
}


@pytest.mark.parametrize(("lines", "points"), PADDED.values(), ids=PADDED)
def test_quantizers_sit_before_padding(draw: Draw, lines: tuple[str, ...], points: list[Any]) -> None:
    placement = plan_graph(draw(*STEM, *lines), quantization_config("selective"))
    assert [(point.id, [(edge.layer, edge.index) for edge in point.edges]) for point in placement.activations] == points


# --- the numbers ---


def layers_by_name() -> dict[str, tuple[Any, tuple[int, ...]]]:
    from tf_keras import layers

    return {
        "ZeroPadding1D": (layers.ZeroPadding1D(2), (6, 4)),
        "ZeroPadding2D": (layers.ZeroPadding2D(1), (6, 6, 4)),
        "ZeroPadding3D": (layers.ZeroPadding3D(1), (4, 4, 4, 2)),
        "MaxPooling1D": (layers.MaxPooling1D(2), (6, 4)),
        "MaxPooling2D": (layers.MaxPooling2D(3, 1), (6, 6, 4)),
        "MaxPooling3D": (layers.MaxPooling3D(2), (4, 4, 4, 2)),
        "GlobalMaxPooling1D": (layers.GlobalMaxPooling1D(), (6, 4)),
        "GlobalMaxPooling2D": (layers.GlobalMaxPooling2D(), (6, 6, 4)),
        "GlobalMaxPooling3D": (layers.GlobalMaxPooling3D(), (4, 4, 4, 2)),
        "UpSampling1D": (layers.UpSampling1D(3), (6, 4)),
        "UpSampling2D": (layers.UpSampling2D(2, interpolation="nearest"), (6, 6, 4)),
        "UpSampling3D": (layers.UpSampling3D(2), (2, 3, 4, 2)),
        "Flatten": (layers.Flatten(), (6, 4)),
        "Reshape": (layers.Reshape((8, 3)), (6, 4)),
        "Permute": (layers.Permute((2, 1)), (6, 4)),
        "RepeatVector": (layers.RepeatVector(3), (6,)),
        "Cropping2D": (layers.Cropping2D(1), (6, 6, 4)),
        "Dropout": (layers.Dropout(0.5), (6, 4)),
        "bilinear": (layers.UpSampling2D(2, interpolation="bilinear"), (6, 6, 4)),
        "AveragePooling2D": (layers.AveragePooling2D(2), (6, 6, 4)),
        "LeakyReLU": (layers.LeakyReLU(0.3), (6, 4)),
    }


COMMUTING = [
    *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "GlobalMaxPooling1D"),
    *("GlobalMaxPooling2D", "GlobalMaxPooling3D", "UpSampling1D", "UpSampling2D", "UpSampling3D", "Flatten", "Reshape", "Permute"),
    *("RepeatVector", "Cropping2D", "Dropout"),
]


@pytest.mark.parametrize("name", [*COMMUTING, "bilinear", "AveragePooling2D", "LeakyReLU"])
def test_a_layer_commutes_with_quantization_exactly_where_the_rules_say_so(name: str) -> None:
    """quantize(layer(x)) == layer(quantize(x)), code for code, for a scale that clips some of the values."""
    from tfqat import numerics
    from tfqat.spec import QuantSpec

    layer, shape = layers_by_name()[name]
    x = np.random.default_rng(3).normal(size=(4, *shape)).astype(np.float32)
    spec, scale = QuantSpec(), numerics.scale_from_amax(1.0, QuantSpec())
    codes = numerics.quantize(x, scale, spec).numpy()
    assert (codes.min(), codes.max()) == (-128, 127)
    after = numerics.quantize(layer(x), scale, spec).numpy().astype(np.float32)
    before = np.asarray(layer(codes.astype(np.float32)))
    node = Node(name=name, class_name=type(layer).__name__, inputs=(), config=layer.get_config())
    assert np.array_equal(before, after) is classes.commutes(node) is (name in COMMUTING)


def test_quantizing_twice_with_one_scale_changes_no_code() -> None:
    """Q(DQ(code)) = code: why a quantizer on both sides of a layer that moves values costs nothing. All 256 codes, 200 scales."""
    from tfqat import numerics
    from tfqat.spec import QuantSpec

    spec = QuantSpec()
    codes = np.arange(-128, 128).astype(np.int8)
    for amax in np.random.default_rng(0).lognormal(0, 4, 200).astype(np.float32):
        scale = numerics.scale_from_amax(amax, spec)
        np.testing.assert_array_equal(numerics.quantize(numerics.dequantize(codes, scale, spec), scale, spec), codes)
