"""`tfqat.sensitivity` as it is called: what it refuses and how it says so, and that its figures agree with each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfqat
from tfqat.analysis.result import loss_text
from tfqat.errors import DataError, NotCalibratedError, PlacementError, RecipeError
from tfqat.quantize import state

X = np.random.default_rng(8).normal(size=(48, 12)).astype(np.float32)
LABELS = tf.constant(np.random.default_rng(9).integers(0, 6, 48))
QUANTIZATION = {"overrides": [{"match": "second", "weights": {"num_bits": 3}}]}


@pytest.fixture(scope="module")
def qmodel(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> Any:
    return calibrated(networks.chain(), X, QUANTIZATION)


def raises(outputs: Any, labels: Any) -> float:
    raise ValueError("no overlap")


def inputs() -> list[Any]:
    return [X[:32], X[32:]]


def labelled() -> list[Any]:
    return [(X[:32], LABELS[:32]), (X[32:], LABELS[32:])]


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no data": ([], {}, DataError, "sensitivity: the data set is empty; expected at least one batch of inputs, or of (inputs, labels)"),
    "another shape": (
        [X, X[:, :5]],
        {},
        DataError,
        "sensitivity: batch 1: a batch of shape (48, 5), but input 'x' of model 'chain' takes (None, 12) (None is the batch size)",
    ),
    "more batches than there are": (
        inputs(),
        {"batches": 3},
        DataError,
        "sensitivity asked for 3 batches, the data held 2: give more data, or set sensitivity.batches to 2",
    ),
    "labels of another length": (
        [(X, LABELS[:3])],
        {"metric": "accuracy"},
        DataError,
        "sensitivity: batch 0 has 48 inputs, but labels of shape (3,); expected one for each input",
    ),
    "no labels": (
        inputs(),
        {"metric": "accuracy"},
        DataError,
        "sensitivity: metric 'accuracy' needs labels, and the data have inputs only; give labels, or measure output_error",
    ),
    "unknown metric": (
        labelled(),
        {"metric": "acuracy"},
        RecipeError,
        "sensitivity.metric: tf_keras has no metric 'acuracy'; did you mean 'accuracy'?",
    ),
    "a function that raises": (
        labelled(),
        {"metric": raises},
        DataError,
        "sensitivity.metric: function 'raises' raised ValueError: no overlap",
    ),
    "unknown method": (
        inputs(),
        {"method": "leave_one_inn"},
        RecipeError,
        "sensitivity.method: expected 'fast', 'leave_one_in' or 'leave_one_out'; got 'leave_one_inn'; did you mean 'leave_one_in'?",
    ),
    "negative drop": (inputs(), {"max_drop": -1}, RecipeError, "sensitivity.max_drop: expected at least 0.0; got -1"),
    "unknown budget": (
        inputs(),
        {"budget": {"int8": 0.5}},
        RecipeError,
        "sensitivity.budget.int8: unknown key; did you mean 'int8_share'?",
    ),
    "a share above one": (
        inputs(),
        {"budget": {"int8_share": 1.5}},
        RecipeError,
        "sensitivity.budget.int8_share: expected at most 1.0; got 1.5",
    ),
    "no batches": (inputs(), {"batches": 0}, RecipeError, "sensitivity.batches: expected at least 1; got 0"),
    "no workers": (inputs(), {"workers": 0}, RecipeError, "sensitivity.workers: expected at least 1; got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_a_message(case: str, qmodel: Any) -> None:
    data, settings, kind, message = REFUSED[case]
    with pytest.raises(kind) as caught:
        tfqat.sensitivity(qmodel, data, **settings)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_both_goals_are_refused(qmodel: Any) -> None:
    with pytest.raises(RecipeError, match=r"^sensitivity: expected max_drop or budget, not both; got "):
        tfqat.sensitivity(qmodel, inputs(), max_drop=0.1, budget={"int8_share": 0.5})


def test_several_mistakes_are_said_at_once(qmodel: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        tfqat.sensitivity(qmodel, inputs(), method="slow", max_drop=-1, workers=0)
    assert [key in str(caught.value) for key in ("sensitivity.method", "sensitivity.max_drop", "sensitivity.workers")] == [True] * 3


def test_a_model_without_quantizers_or_ranges_is_refused(networks: SimpleNamespace) -> None:
    with pytest.raises(PlacementError, match=r"^model 'chain' has no quantizers: make it with tfqat\.quantize_model$"):
        tfqat.sensitivity(networks.chain(), inputs())
    with pytest.raises(NotCalibratedError, match=r"^6 of 6 quantizers of model 'chain' have no range, the first is 'x'"):
        tfqat.sensitivity(tfqat.quantize_model(networks.chain()), inputs())


def test_a_budget_that_cannot_be_met_says_the_best(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    """`first` has 120 of 248 multiply-accumulates, and is float by the recipe."""
    skipping = calibrated(networks.chain(), X, {"preset": "selective", "skip": ["first"]})
    with pytest.raises(PlacementError) as caught:
        tfqat.sensitivity(skipping, inputs(), budget={"int8_share": 0.9})
    assert str(caught.value) == "sensitivity.budget.int8_share: 0.9 cannot be met; the best that this model can is 0.5161"


def test_a_budget_keeps_its_share(qmodel: Any) -> None:
    """Of 120, 80 and 48 multiply-accumulates half may be float: 120, or 80, or 48; the one of 3 bits loses most."""
    found = tfqat.sensitivity(qmodel, inputs(), budget={"int8_share": 0.5})
    assert found.search is not None and dict(found.search.chosen) == {"second": "float"}
    share = {unit.name: unit.macs for unit in found.units}
    assert share == {"first": 120, "second": 80, "third": 48}


def test_labels_may_be_numpy_arrays_as_inputs_may(qmodel: Any) -> None:
    tfqat.sensitivity(qmodel, [(X, LABELS.numpy())], metric="accuracy")


def test_a_later_batch_without_labels_is_refused(qmodel: Any) -> None:
    with pytest.raises(DataError, match="sensitivity: batch 1 has no labels"):
        tfqat.sensitivity(qmodel, [(X, LABELS), X], metric="accuracy")


def test_a_metric_that_is_no_name_and_no_function_is_refused(qmodel: Any) -> None:
    with pytest.raises(RecipeError):
        tfqat.sensitivity(qmodel, labelled(), metric=5)


def test_leave_one_in_and_out_are_what_they_say(qmodel: Any, networks: SimpleNamespace) -> None:
    """Against models that are switched by hand: a Dense layer is a unit, so its two quantizers are the unit's."""

    def error(on: Callable[[str], bool]) -> float:
        copy = tfqat.quantize_model(networks.chain(), QUANTIZATION)
        state.set_ranges(copy, state.ranges(qmodel))
        owner = {"x": "first", "first": "second", "second": "third"}
        for name, handle in state.handles(copy).items():
            handle.enabled.assign(on(name.removesuffix("/kernel") if name.endswith("/kernel") else owner[name]))
        reference = networks.chain()(X).numpy().astype(np.float64)
        return float(((copy(X).numpy() - reference) ** 2).sum() / (reference**2).sum())

    names = ("first", "second", "third")
    alone = tfqat.sensitivity(qmodel, inputs(), method="leave_one_in")
    without = tfqat.sensitivity(qmodel, inputs(), method="leave_one_out")
    all_on = error(lambda name: True)
    assert alone.float_value == without.float_value == 0.0
    assert [alone.quantized_value, without.quantized_value] == [pytest.approx(all_on, rel=1e-3)] * 2
    assert {unit.name: unit.value for unit in alone.units} == {
        unit: pytest.approx(error(lambda name, unit=unit: name == unit), rel=1e-3) for unit in names
    }
    assert {unit.name: unit.value for unit in without.units} == {
        unit: pytest.approx(error(lambda name, unit=unit: name != unit), rel=1e-3) for unit in names
    }
    assert {unit.name: unit.score for unit in alone.units} == {unit.name: unit.value for unit in alone.units}
    assert all(unit.score == pytest.approx(without.quantized_value - unit.value) for unit in without.units)
    for found in (alone, without):
        assert [unit.score for unit in found.units] == sorted((unit.score for unit in found.units), reverse=True)
        assert (found.units[0].name, found.search, found.placement, found.recipe, found.examples) == ("second", None, None, "", 48)


def test_a_limit_raises_what_is_needed_and_the_placement_computes_what_was_measured(qmodel: Any, networks: SimpleNamespace) -> None:
    found = tfqat.sensitivity(qmodel, inputs(), max_drop=1e-3)
    assert found.search is not None and found.placement is not None
    assert dict(found.search.chosen) == {"second": "int8"}
    assert found.recipe.split() == ["quantization:", "overrides:", "-", "match:", "second", "weights:", "{num_bits:", "8}"]
    assert found.search.value <= 1e-3 < found.quantized_value
    built = tfqat.quantize_model(networks.chain(), found.placement)
    ranges = {name: value for name, value in state.ranges(qmodel).items() if name != "second/kernel"}
    state.set_ranges(built, {**ranges, "second/kernel": np.abs(networks.chain().get_layer("second").kernel).max(axis=0)})
    reference = networks.chain()(X).numpy().astype(np.float64)
    assert float(((built(X).numpy() - reference) ** 2).sum() / (reference**2).sum()) == pytest.approx(found.search.value, rel=1e-3)
    reason = next(point.reason for point in found.placement.points if point.id == "second/kernel")
    value = next(unit.value for unit in found.units if unit.name == "second")
    assert reason == f"weight of Dense; sensitive: +{value:.3g} output error alone; 8 bits"


def test_reasons_say_the_loss_of_the_unit_alone_for_every_method(qmodel: Any) -> None:
    reasons = []
    for method in ("leave_one_in", "leave_one_out"):
        placement = tfqat.sensitivity(qmodel, inputs(), method=method, max_drop=1e-3).placement
        assert placement is not None
        reasons.append([point.reason for point in placement.points if "sensitive" in point.reason])
    assert reasons[0] == reasons[1] != []


def test_a_metric_of_accuracy(qmodel: Any, networks: SimpleNamespace) -> None:
    found = tfqat.sensitivity(qmodel, labelled(), metric="accuracy", method="leave_one_in")
    expected = np.mean(networks.chain()(X).numpy().argmax(axis=1) == LABELS.numpy())
    assert (found.metric, found.higher_is_better, found.float_value) == ("accuracy", True, pytest.approx(expected))
    assert found.quantized_value == pytest.approx(np.mean(qmodel(X).numpy().argmax(axis=1) == LABELS.numpy()))
    assert all(unit.score == pytest.approx(found.float_value - unit.value) for unit in found.units)


def test_the_model_that_is_given_stays_as_it_was(qmodel: Any) -> None:
    before = [weight.numpy().tolist() for weight in qmodel.weights]
    tfqat.sensitivity(qmodel, inputs(), max_drop=1e-3)
    assert [weight.numpy().tolist() for weight in qmodel.weights] == before


def test_only_so_many_batches_are_taken(qmodel: Any) -> None:
    taken = tfqat.sensitivity(qmodel, inputs(), batches=1)
    assert (taken.examples, taken.quantized_value) == (32, tfqat.sensitivity(qmodel, inputs()[:1]).quantized_value)


def test_a_loss_for_people() -> None:
    assert loss_text("accuracy", True, 0.0043, 0.93) == "-0.43 accuracy"
    assert loss_text("points", True, 4.5, 93.0) == "-4.5 points"
    assert loss_text("output_error", False, 0.0123, 0.0) == "+0.0123 output error"
