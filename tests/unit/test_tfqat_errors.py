"""The exception tree: one root, the branches that the docstring draws, and the nearest name of a suggestion."""

from __future__ import annotations

import inspect
import re

import pytest

from tfqat import errors

TREE = {
    "TfqatError": "Exception",
    "RecipeError": "TfqatError",
    "ModelError": "TfqatError",
    "PlacementError": "TfqatError",
    "NoMatchError": "PlacementError",
    "DataError": "TfqatError",
    "NotCalibratedError": "TfqatError",
    "OutOfMemoryError": "TfqatError",
    "TrainingError": "TfqatError",
    "WorkerError": "TfqatError",
    "ExportError": "TfqatError",
    "EngineError": "TfqatError",
    "RunDirectoryError": "TfqatError",
    "ProjectError": "TfqatError",
}


def exceptions() -> dict[str, str]:
    return {name: value.__base__.__name__ for name, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)}


def test_tree() -> None:
    assert exceptions() == TREE


def test_docstring_draws_every_exception_at_its_depth() -> None:
    drawn = {name: indent.count("│") + 1 for indent, name in re.findall(r"^ +([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)}
    depth = {name: len(getattr(errors, name).__mro__) - len(errors.TfqatError.__mro__) for name in TREE if name != "TfqatError"}
    assert drawn == depth


def test_recipe_error_keeps_each_problem() -> None:
    error = errors.RecipeError(problem for problem in ("x.yaml:1: a", "x.yaml:2: b"))
    assert error.problems == ("x.yaml:1: a", "x.yaml:2: b")
    assert str(error) == "x.yaml:1: a\nx.yaml:2: b"


NEAREST = {
    "a letter short": ("stem_rel", "; did you mean 'stem_relu'?"),
    "letters swapped": ("haed", "; did you mean 'head'?"),
    "nothing near": ("zzzzzz", ""),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("name", "expected"), NEAREST.values(), ids=NEAREST)
def test_nearest(name: str, expected: str) -> None:
    assert errors.nearest(name, ["head", "stem_relu", "logits"]) == expected


def test_nearest_takes_any_iterable() -> None:
    assert errors.nearest("kernal", {"kernel": 1, "bias": 2}.keys()) == "; did you mean 'kernel'?"
    assert errors.nearest("kernel", iter(())) == ""
