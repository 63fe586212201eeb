"""Tensors that share one scale: which ones, under which name, and that overrides set all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfqat.models.graph import ModelGraph
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan_graph
from tfqat.recipe.load import quantization_config

Draw = Callable[..., ModelGraph]
PAIR = ("image InputLayer", "a Conv2D image", "b Conv2D image", "cat Concatenate a b", "conv Conv2D cat")


def made(draw: Draw, lines: tuple[str, ...], **block: Any) -> Placement:
    return plan_graph(draw(*lines), quantization_config(block))


def groups(placement: Placement) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for point in placement.points:
        if point.scale_group is not None:
            found.setdefault(point.scale_group, []).append(point.id)
    return found


# lines -> name of the group -> ids of its points
GROUPS: dict[str, tuple[tuple[str, ...], dict[str, list[str]]]] = {
    "the inputs and the output of a concatenation": (PAIR, {"a": ["a", "b", "cat"]}),
    "of three inputs": (
        ("image InputLayer", "a Conv2D image", "b Conv2D image", "c Conv2D image", "cat Concatenate a b c", "conv Conv2D cat"),
        {"a": ["a", "b", "c", "cat"]},
    ),
    "a concatenation of a concatenation": (
        (*PAIR[:4], "c Conv2D image", "more Concatenate cat c", "conv Conv2D more"), {"a": ["a", "b", "cat", "c", "more"]}
    ),
    "both sides of a max pooling": (
        ("image InputLayer", "a Conv2D image", "pool MaxPooling2D a", "b Conv2D a", "c Conv2D pool"), {"a": ["a", "pool"]}
    ),
    "both sides of a chain that moves values": (
        ("image InputLayer", "a Conv2D image", "b Conv2D a", "pool MaxPooling2D a", "flat Flatten pool", "fc Dense flat"),
        {"a": ["a", "flat"]},
    ),
    "nearest resizing into a concatenation": (
        ("image InputLayer", "a Conv2D image", "up UpSampling2D a", "b Conv2D image", "cat Concatenate up b", "c Conv2D cat", "d Conv2D a"),
        {"up": ["a", "up", "b", "cat"]},  # the first that is read
    ),
    "two concatenations that share an input": (
        (*PAIR, "c Conv2D image", "other Concatenate b c", "d Conv2D other"), {"a": ["a", "b", "cat", "c", "other"]}
    ),
    "two concatenations apart": (
        (*PAIR, "d Conv2D image", "e Conv2D image", "other Concatenate d e", "f Conv2D other"),
        {"a": ["a", "b", "cat"], "d": ["d", "e", "other"]}
    ),
    "average pooling is not moving": (
        ("image InputLayer", "a Conv2D image", "pool AveragePooling2D a", "b Conv2D pool"), {}
    ),
    "a concatenation that is float": (("image InputLayer", "a Conv2D image", "b Conv2D a", "cat Concatenate a b"), {}),
    "one quantizer on one side only": (("image InputLayer", "a Conv2D image", "pool MaxPooling2D a", "b Conv2D pool"), {}),
    "an Add": (("image InputLayer", "a Conv2D image", "b Conv2D a", "add Add a b", "c Conv2D add"), {}),
    "a Multiply": (("image InputLayer", "a Conv2D image", "b Conv2D image", "m Multiply a b", "c Conv2D m"), {}),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), GROUPS.values(), ids=GROUPS)
def test_groups(draw: Draw, lines: tuple[str, ...], expected: dict[str, list[str]]) -> None:
    found = groups(made(draw, lines))
    assert {name: sorted(members) for name, members in found.items()} == {name: sorted(members) for name, members in expected.items()}


def test_bilinear_resizing_ends_a_group(draw: Draw) -> None:
    lines = ("image InputLayer", "a Conv2D image", "up UpSampling2D a", "b Conv2D up", "c Conv2D a")
    for interpolation, expected in (("nearest", {"up": ["up", "a"]}), ("bilinear", {})):
        graph = draw(*lines, configs={"up": {"interpolation": interpolation}})
        assert groups(plan_graph(graph, quantization_config("selective"))) == expected


def test_a_group_that_starts_with_the_shortcut_of_an_add_has_its_id(draw: Draw) -> None:
    lines = (
        *("image InputLayer", "a Conv2D image", "b Conv2D image", "up UpSampling2D b", "c Conv2D a", "add Add b c"),
        *("cat Concatenate up add", "conv Conv2D cat"),
    )
    placement = made(draw, lines)
    ids = {point.id for point in placement.points}
    (group,) = groups(placement)
    assert group in ids
    assert sorted(groups(placement)[group]) == sorted({"add:shortcut", "up", "add", "cat"})


def entropy(placement: Placement) -> set[str]:
    return {point.id for point in placement.activations if point.calibrator.method == "entropy"}


# A pattern that names any of them, as what reads it or by its id.
@pytest.mark.parametrize("pattern", ["conv", "cat", "Concatenate"])
def test_an_override_of_one_point_sets_the_whole_group(draw: Draw, pattern: str) -> None:
    overrides = [{"match": pattern, "activations": {"calibrator": "entropy"}}]
    placement = made(draw, PAIR, overrides=overrides)
    assert entropy(placement) == {"a", "b", "cat"}


def test_an_override_outside_a_group_leaves_it_alone(draw: Draw) -> None:
    overrides = [{"match": "d", "activations": {"calibrator": "entropy"}}]
    assert entropy(made(draw, (*PAIR, "d Dense conv"), overrides=overrides)) == {"conv"}


def test_skipping_the_reader_of_a_concatenation_dissolves_its_group(draw: Draw) -> None:
    placement = made(draw, PAIR, skip=["conv"])
    assert (groups(placement), [point.id for point in placement.activations]) == ({}, ["image"])


def test_skipping_the_concatenation_dissolves_its_group_and_quantizes_its_output_alone(draw: Draw) -> None:
    placement = made(draw, PAIR, skip=["cat"])
    assert (groups(placement), [point.id for point in placement.activations]) == ({}, ["image", "cat"])


def test_a_group_goes_through_json(draw: Draw) -> None:
    placement = made(draw, PAIR)
    assert Placement.from_dict(placement.to_dict()) == placement
    assert [point["scale_group"] for point in placement.to_dict()["points"] if point["id"] == "cat"] == ["a"]
