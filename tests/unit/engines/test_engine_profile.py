"""Shapes: how they are written, which are refused, and the profile that they and the batch make."""

from __future__ import annotations

import pytest

from tfqat.engines.options import BuildOptions
from tfqat.engines.profile import GraphInput, check_batch, check_shapes, parse_shape, profile_of
from tfqat.errors import EngineError

FIXED = GraphInput(name="mask", dims=(4, 2))
BATCHED = GraphInput(name="image", dims=(None, 12, 12, 3))
FREE = GraphInput(name="x:0", dims=(None, None, None, 3))
SHAPES = ((1, 8, 8, 3), (4, 16, 16, 3), (8, 32, 16, 3))


@pytest.mark.parametrize("batch", [(1, 8, 32), [4, 4, 4]])
def test_batch_sizes_in_order_are_taken(batch: list[int]) -> None:
    assert check_batch(batch) == tuple(batch)


@pytest.mark.parametrize("batch", [(0, 8, 32), (8, 1, 32), (1, 32, 8), (1, 8), 8, "189", (1, 8.0, 32)])
def test_other_batch_sizes_are_refused(batch: object) -> None:
    with pytest.raises(EngineError, match=r"batch must be three whole numbers"):
        check_batch(batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "name", "shapes"),
    [
        ("image=1x8x8x3:4x16x16x3:8x32x16x3", "image", SHAPES),
        ("x:0=1x8x8x3:4x16x16x3:8x32x16x3", "x:0", SHAPES),
        ("a=b=2:2:2", "a=b", ((2,), (2,), (2,))),
    ],
)
def test_a_shape_as_it_is_written(text: str, name: str, shapes: object) -> None:
    assert parse_shape(text) == (name, shapes)


@pytest.mark.parametrize(
    "text", ["image", "image=1x8", "=1:1:1", "image=1x8:1x8", "image=1x8:1xH:1x8", "image=1x8:-1x8:1x8", "image=::", "i=²:2:2"]
)
def test_a_shape_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(EngineError) as refused:
        parse_shape(text)
    assert str(refused.value) == (
        f"a shape has the form NAME=MIN:OPT:MAX, for example image=1x32x32x3:8x64x64x3:32x128x128x3; got {text!r}"
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([[1, 8], [1, 8]], r"the shapes of 'x' must be three lists of one length"),
        ([[1, 8], [1, 8], [1, 8, 3]], r"the shapes of 'x' must be three lists of one length"),
        ([[0, 8], [1, 8], [1, 8]], r"whole numbers from 1"),
        ([[1, 8.0], [1, 8], [1, 8]], r"whole numbers from 1"),
        (8, r"the shapes of 'x' must be three lists"),
        ([[1, 8], [1, 4], [1, 8]], r"must ascend on every axis, min <= opt <= max; got \[\[1, 8\], \[1, 4\], \[1, 8\]\]"),
    ],
)
def test_shapes_that_are_no_profile(shapes: object, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_shapes({"x": shapes})  # type: ignore[dict-item]


def test_the_profile_has_every_input_that_is_free() -> None:
    found = profile_of([FIXED, BATCHED, FREE], (1, 2, 3), {"x:0": SHAPES})
    assert found == {"image": ((1, 12, 12, 3), (2, 12, 12, 3), (3, 12, 12, 3)), "x:0": SHAPES}


def test_a_free_axis_without_a_shape_is_refused_with_the_option_to_give() -> None:
    with pytest.raises(EngineError) as refused:
        profile_of([BATCHED, FREE], (1, 8, 32), {})
    message = str(refused.value)
    assert message.startswith("input 'x:0' [?, ?, ?, 3] has no fixed size on axis 1, 2: say which sizes the engine takes with ")
    option = message.partition("--shape ")[2].partition(" ")[0]
    assert option == "x:0=1x32x32x3:8x64x64x3:32x128x128x3"
    assert profile_of([FREE], (1, 8, 32), dict([parse_shape(option)]))  # what it shows can be given


@pytest.mark.parametrize(
    ("inputs", "name", "message"),
    [
        ([BATCHED], "imag", r"a shape is given for 'imag', but the inputs of the graph are image; did you mean 'image'\?"),
        ([BATCHED], "image", r"do not fit the input 'image' \[\?, 12, 12, 3\]: rank and fixed sizes must be its own"),
        ([GraphInput(name="image", dims=(None, None, 3))], "image", r"do not fit the input 'image' \[\?, \?, 3\]"),
    ],
)
def test_shapes_that_do_not_fit_the_graph(inputs: list[GraphInput], name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        profile_of(inputs, (1, 8, 32), {name: SHAPES})


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True])
def test_a_time_limit_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(EngineError, match="timeout_s must be a number of seconds above 0; got"):
        BuildOptions(timeout_s=seconds)
