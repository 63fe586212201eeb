"""Patterns held against a model: what each selects, and every pattern that is refused, with its whole message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfqat.errors import NoMatchError, PlacementError
from tfqat.models.graph import ModelGraph, Node
from tfqat.models.names import given_name, legal_name
from tfqat.placement.patterns import Target, found, matching, names_of, selected, settings_of
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan_graph
from tfqat.recipe.load import quantization_config

Draw = Callable[..., ModelGraph]
LINES = ("image InputLayer", "stem Conv2D image", "conv Conv2D stem", "add Add stem conv", "up Conv2DTranspose add", "fc Dense up")


def made(draw: Draw, lines: tuple[str, ...] = LINES, **block: Any) -> Placement:
    return plan_graph(draw(*lines), quantization_config(block))


def refused(draw: Draw, error: type[Exception], lines: tuple[str, ...] = LINES, **block: Any) -> str:
    with pytest.raises(error) as caught:
        made(draw, lines, **block)
    assert type(caught.value) is error
    return str(caught.value)


# --- what a pattern selects ---

NESTED = (
    "image InputLayer",
    "backbone/conv Conv2D image",
    "backbone/block/dw DepthwiseConv2D backbone/conv",
    "head Dense backbone/block/dw",
)
# pattern -> layers
SELECTED: dict[str, tuple[str, list[str]]] = {
    "a name": ("head", ["head"]),
    "a path": ("backbone/conv", ["backbone/conv"]),
    "a nested model: all that is in it": ("backbone", ["backbone/conv", "backbone/block/dw"]),
    "a model nested twice": ("backbone/block", ["backbone/block/dw"]),
    "a glob": ("*/dw", ["backbone/block/dw"]),
    "a regular expression": ("re:.*(conv|head)", ["backbone/conv", "head"]),
    "a regular expression takes no path as a prefix": ("re:backbone", []),
    "a class": ("Dense", ["head"]),
    "part of a name": ("back", []),
}


@pytest.mark.parametrize(("pattern", "layers"), SELECTED.values(), ids=SELECTED)
def test_selected(draw: Draw, pattern: str, layers: list[str]) -> None:
    assert selected(draw(*NESTED), [pattern], "skip") == dict.fromkeys(layers, "quantization.skip[0]")


def test_the_first_pattern_that_selects_a_layer_is_named(draw: Draw) -> None:
    found = selected(draw(*LINES), ["none", "Conv2D", "stem", "add:shortcut"], "force")
    assert found == {"stem": "quantization.force[1]", "conv": "quantization.force[1]", "add": "quantization.force[3]"}


def test_a_layer_is_found_by_the_name_it_had_in_the_users_model() -> None:
    legal = legal_name("_hidden")
    assert (legal != "_hidden", given_name(legal)) == (True, "_hidden")
    node = Node(name=f"{legal}@2", class_name="Conv2D", inputs=())
    names = [name for name, _ in names_of(node)]
    assert names == [legal, f"{legal}@2", "_hidden"]
    assert [pattern for pattern in (legal, "_hidden", "_hid*", "Conv2D", "hidden") if found(pattern, names_of(node))] == [
        legal, "_hidden", "_hid*", "Conv2D"
    ]  # fmt: skip


def test_matching_and_settings_of_overrides() -> None:
    more = [{"match": "z", "weights": {"num_bits": 5}}, {"match": "Conv2D", "activations": {"calibrator": "max", "percentile": 99.0}}]
    block = {"overrides": [{"match": "c*", "weights": {"num_bits": 4}, "activations": {}}, *more]}
    config = quantization_config(block)
    target = Target(id="conv/kernel", names=(("conv", "Conv2D"),))
    assert [override.match for override in matching(config, target)] == ["c*", "Conv2D"]
    assert [settings_of(override) for override in config.overrides] == [
        {("weights", "num_bits"): 4},
        {("weights", "num_bits"): 5},
        {("activations", "calibrator"): "max", ("activations", "percentile"): 99.0},
    ]


# --- skip and force ---

CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "skipped and forced by name": (
        {"skip": ["up"], "force": ["up"]},
        "quantization.force[0] wants layer 'up' quantized, quantization.skip[0] wants it float; remove it from one of them",
    ),
    "skipped by a glob, forced by name": (
        {"skip": ["stem", "u*"], "force": ["fc", "up"]},
        "quantization.force[1] wants layer 'up' quantized, quantization.skip[1] wants it float; remove it from one of them",
    ),
    "naive takes no skip": (
        {"preset": "naive", "skip": ["up"]},
        "quantization.skip: preset 'naive' quantizes every supported layer; use 'hybrid' or 'selective' to skip layers",
    ),
    "force of a layer that cannot be quantized": (
        {"force": ["up", "image"]},
        "quantization.force[1]: layer 'image' (InputLayer) cannot be quantized: InputLayer: no rule for it, computes in float. "
        "Remove it from `force`; a class of your own can be described under quantization.custom_layers",
    ),
}


@pytest.mark.parametrize(("block", "message"), CHOICES.values(), ids=CHOICES)
def test_a_choice_that_cannot_be_obeyed(draw: Draw, block: dict[str, Any], message: str) -> None:
    assert refused(draw, PlacementError, **block) == message


def test_force_of_a_class_of_which_one_layer_cannot_be_quantized_names_the_layer(draw: Draw) -> None:
    lines = (*LINES, "a Activation fc", "b Lambda a")
    message = refused(draw, PlacementError, lines, force=["re:(up|b)"])
    assert message.startswith("quantization.force[0]: layer 'b' (Lambda) cannot be quantized: Lambda: Python code")


def test_force_that_matches_nothing_is_named_with_the_nearest_layer(draw: Draw) -> None:
    assert refused(draw, NoMatchError, force=["upp"]) == (
        "quantization.force[0]: pattern 'upp' matches none of the 6 layers; did you mean 'up'? "
        "(a pattern is a layer name or glob, a regular expression after 're:', or a layer class)"
    )


def test_a_skip_that_only_undoes_what_is_float_anyway(draw: Draw) -> None:
    assert refused(draw, NoMatchError, skip=["up"]) == (
        "quantization.skip[0]: pattern 'up' matches only layers without a quantizer (up), so it changes nothing; "
        "name the layers that read the tensor"
    )


def test_a_class_of_the_users_own_that_the_model_does_not_have(draw: Draw) -> None:
    message = refused(draw, NoMatchError, custom_layers=[{"class_name": "MyDens"}])
    assert message.startswith("quantization.custom_layers[0].class_name: pattern 'MyDens' matches none of the 6 layers")


def test_everything_that_has_no_effect_comes_in_one_message(draw: Draw) -> None:
    block = {
        "skip": ["stem", "zzz"],
        "force": ["yyy"],
        "overrides": [{"match": "xxx", "weights": {"num_bits": 4}}],
        "custom_layers": [{"class_name": "Www"}],
    }
    assert [line.partition(": ")[0] for line in refused(draw, NoMatchError, **block).splitlines()] == [
        *("quantization.skip[1]", "quantization.force[0]", "quantization.overrides[0].match", "quantization.custom_layers[0].class_name")
    ]


# --- overrides that conflict ---

INT4, INT5 = {"num_bits": 4}, {"num_bits": 5}
CONFLICTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "the same layer twice": (
        [{"match": "fc", "weights": INT4}, {"match": "fc", "weights": INT5}],
        "quantization.overrides[0].match: 'fc' sets weights.num_bits to 4, and quantization.overrides[1].match: 'fc' sets it to 5 for "
        "'fc/kernel': the two conflict; keep one of them, or put the narrower one last",
    ),
    "a layer, then its class": (
        [{"match": "stem", "weights": INT4}, {"match": "Conv2D", "weights": INT5}],
        "quantization.overrides[0].match: 'stem' sets weights.num_bits to 4, and quantization.overrides[1].match: 'Conv2D' sets it to 5 "
        "for 'stem/kernel': the two conflict; keep one of them, or put the narrower one last",
    ),
    "several layers, then all": (
        [{"match": "Conv2D", "weights": INT4}, {"match": "*", "weights": INT5}],
        "quantization.overrides[0].match: 'Conv2D' sets weights.num_bits to 4, and quantization.overrides[1].match: '*' sets it to 5 for "
        "all that it matches: the two conflict; keep one of them, or put the narrower one last",
    ),
    "activations": (
        [{"match": "fc", "activations": {"calibrator": "max"}}, {"match": "Dense", "activations": {"calibrator": "mse"}}],
        "quantization.overrides[0].match: 'fc' sets activations.calibrator to 'max', and quantization.overrides[1].match: 'Dense' sets it "
        "to 'mse' for 'up': the two conflict; keep one of them, or put the narrower one last",
    ),
    "one of two settings": (
        [{"match": "fc", "weights": {"num_bits": 4, "granularity": "per_tensor"}}, {"match": "fc", "weights": INT5}],
        "quantization.overrides[0].match: 'fc' sets weights.num_bits to 4, and quantization.overrides[1].match: 'fc' sets it to 5 for "
        "'fc/kernel': the two conflict; keep one of them, or put the narrower one last",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), CONFLICTS.values(), ids=CONFLICTS)
def test_an_override_that_a_later_one_undoes_is_an_error(draw: Draw, overrides: list[dict[str, Any]], message: str) -> None:
    assert refused(draw, PlacementError, overrides=overrides) == message


BOTH_COUNT: dict[str, tuple[list[dict[str, Any]], dict[str, int]]] = {
    "the narrower one last": (
        [{"match": "Conv2D", "weights": INT4}, {"match": "stem", "weights": INT5}], {"stem/kernel": 5, "conv/kernel": 4, "fc/kernel": 8}
    ),
    "the same value twice": (
        [{"match": "stem", "weights": INT4}, {"match": "Conv2D", "weights": INT4}], {"stem/kernel": 4, "conv/kernel": 4, "fc/kernel": 8}
    ),
    "other settings": (
        [{"match": "fc", "weights": {"granularity": "per_tensor"}}, {"match": "fc", "weights": INT4}],
        {"stem/kernel": 8, "conv/kernel": 8, "fc/kernel": 4},
    ),
    "weights here, activations there": (
        [{"match": "fc", "weights": INT4}, {"match": "fc", "activations": {"calibrator": "max"}}],
        {"stem/kernel": 8, "conv/kernel": 8, "fc/kernel": 4},
    ),
    "each has a layer of its own": (
        [{"match": "re:(stem|conv)", "weights": INT4}, {"match": "re:(conv|fc)", "weights": INT5}],
        {"stem/kernel": 4, "conv/kernel": 5, "fc/kernel": 5},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "bits"), BOTH_COUNT.values(), ids=BOTH_COUNT)
def test_overrides_that_both_count(draw: Draw, overrides: list[dict[str, Any]], bits: dict[str, int]) -> None:
    assert {point.id: point.spec.num_bits for point in made(draw, overrides=overrides).weights} == bits
