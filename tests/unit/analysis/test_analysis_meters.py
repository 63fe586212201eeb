"""What is measured: by hand, or by Keras's own `evaluate`, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tfqat.analysis.meters import FunctionMeasure, KerasMeasure, OutputError, make_meter
from tfqat.errors import DataError, RecipeError

RNG = np.random.default_rng(7)
X = RNG.normal(size=(20, 4)).astype(np.float32)
CLASSES, WEIGHTS, VALUES = RNG.integers(0, 3, 20), RNG.uniform(0.1, 2, 20).astype(np.float32), RNG.normal(size=(20, 2)).astype(np.float32)


def one_output() -> Any:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, layers.Dense(3, activation="softmax", name="scores")(x))


def two_outputs() -> Any:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, [layers.Dense(3, activation="softmax", name="scores")(x), layers.Dense(2, name="box")(x)])


def of_batches(meter: Any, model: Any, batches: Sequence[Any]) -> float:
    state = meter.start()
    for inputs, *targets in batches:
        state = meter.add(state, tf.nest.flatten(model(inputs)), [], tuple(targets))
    return float(meter.value(state))


def batches(*parts: Any, size: int = 8) -> list[Any]:
    """Of 8, 8 and 4 examples."""
    return list(tf.data.Dataset.from_tensor_slices(parts).batch(size))


def error_of(*steps: tuple[list[Any], list[Any]]) -> float:
    meter = OutputError()
    state = meter.start()
    for outputs, reference in steps:
        state = meter.add(
            state, [np.array(value, np.float32) for value in outputs], [np.array(value, np.float32) for value in reference], ()
        )
    return meter.value(state)


def test_output_error_by_hand() -> None:
    assert error_of(([[[1.0, 2.0]]], [[[1.0, 4.0]]])) == 4 / 17
    assert error_of(([[[1.0, 2.0]]], [[[1.0, 4.0]]]), ([[[0.0, 3.0]]], [[[0.0, 2.0]]])) == 5 / 21  # not the mean of 4/17 and 1/4
    assert error_of(([[[1.0, 2.0]], [[3.0]]], [[[1.0, 4.0]], [[2.0]]])) == (4 / 17 + 1 / 4) / 2  # each output counts alike
    assert error_of(([[[0.5, 0.5]], [[3.0]]], [[[0.0, 0.0]], [[2.0]]])) == (0.5 + 1 / 4) / 2
    assert error_of(([[[1.0]]], [[[1.0]]])) == 0.0
    assert (OutputError.higher_is_better, OutputError.needs_labels, OutputError.name) == (False, False, "output_error")


def test_output_error_sums_in_float64() -> None:
    reference, step = np.full((1, 1000), 1e4, np.float32), np.float32(0.0009765625)  # of float32 at 1e4
    assert error_of(([reference + step], [reference])) == pytest.approx((float(step) / 1e4) ** 2, rel=1e-12)


METRICS = ["accuracy", "sparse_categorical_crossentropy"]
LOSS = "sparse_categorical_crossentropy"


@pytest.mark.parametrize("targets", [(CLASSES,), (CLASSES, WEIGHTS)], ids=["labels", "sample weights"])
@pytest.mark.parametrize("name", ["loss", *METRICS])
def test_one_output_is_measured_as_by_evaluate(name: str, targets: tuple[Any, ...]) -> None:
    model = one_output()
    meter = KerasMeasure(model, LOSS, METRICS, name, batches(X, *targets)[0])
    model.compile(loss=LOSS, metrics=METRICS, weighted_metrics=[])
    expected = model.evaluate(tf.data.Dataset.from_tensor_slices((X, *targets)).batch(8), verbose=0, return_dict=True)
    assert of_batches(meter, model, batches(X, *targets)) == pytest.approx(expected[name], rel=1e-6)
    assert meter.higher_is_better is (name == "accuracy")


def test_sample_weights_count_for_the_loss() -> None:
    model = one_output()
    meter = KerasMeasure(model, LOSS, METRICS, "loss", batches(X, CLASSES)[0])
    assert abs(of_batches(meter, model, batches(X, CLASSES)) - of_batches(meter, model, batches(X, CLASSES, WEIGHTS))) > 0.01


NAMES = ["loss", "scores_loss", "box_loss", "scores_accuracy", "box_mae"]
SETTINGS: dict[str, Any] = {"loss": {"scores": LOSS, "box": "mse"}, "metrics": {"scores": ["accuracy"], "box": ["mae"]}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [(CLASSES, VALUES), {"box": VALUES, "scores": CLASSES}], ids=["tuple", "dict"])
def test_several_outputs_are_measured_as_by_evaluate(name: str, labels: Any) -> None:
    model = two_outputs()
    model.compile(**SETTINGS)
    expected = model.evaluate(tf.data.Dataset.from_tensor_slices((X, labels)).batch(8), verbose=0, return_dict=True)
    proxy = KerasMeasure(model, SETTINGS["loss"], [SETTINGS["metrics"]["scores"], SETTINGS["metrics"]["box"]], name, batches(X, labels)[0])
    assert of_batches(proxy, model, batches(X, labels)) == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "auc", "loss"])
def test_measurements_that_take_turns_do_not_disturb_each_other(name: str) -> None:
    labels = (CLASSES == 1).astype(np.float32)[:, None]
    model = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(1, activation="sigmoid")])
    metrics = ["accuracy", tf_keras.metrics.AUC(name="auc")]
    meter = KerasMeasure(model, "binary_crossentropy", metrics, name, batches(X, labels)[0])
    one, other = batches(X, labels), batches(-X, labels)
    alone = [of_batches(meter, model, found) for found in (one, other)]
    states = [meter.start(), meter.start()]
    for pair in zip(one, other, strict=True):
        states = [meter.add(state, [model(x)], [], (y,)) for state, (x, y) in zip(states, pair, strict=True)]
    assert [meter.value(state) for state in states] == alone
    assert alone[0] != alone[1]


def test_a_function_gets_all_outputs_and_labels_at_once() -> None:
    seen: list[Any] = []

    def spread(outputs: Any, labels: Any) -> float:
        seen.append((outputs, labels))
        return float(outputs[0].sum()) if isinstance(outputs, list) else float(outputs.sum())

    meter = FunctionMeasure(spread)
    assert (meter.name, meter.higher_is_better, meter.needs_labels) == ("spread", True, True)
    single, double = one_output(), two_outputs()
    assert of_batches(meter, single, batches(X, CLASSES)) == pytest.approx(20.0)
    outputs, labels = seen.pop()
    assert (type(outputs), outputs.shape, type(labels), labels.tolist()) == (np.ndarray, (20, 3), np.ndarray, CLASSES.tolist())
    np.testing.assert_allclose(outputs, single(X), rtol=1e-5)
    of_batches(meter, double, batches(X, {"box": VALUES, "scores": CLASSES}, WEIGHTS))
    outputs, labels = seen.pop()
    assert [value.shape for value in outputs] == [(20, 3), (20, 2)]
    assert labels["scores"].tolist() == CLASSES.tolist() and labels["box"].tolist() == VALUES.tolist()


def raising(outputs: Any, labels: Any) -> float:
    raise ZeroDivisionError("no boxes")


def test_the_meter_of_each_kind_of_metric() -> None:
    model, batch = one_output(), batches(X, CLASSES)[0]

    def make(metric: Any, **settings: Any) -> Any:
        return make_meter(metric, model, **{"loss": LOSS, "metrics": (), "batch": batch, **settings})

    assert isinstance(make("output_error", batch=tf.constant(X)), OutputError)
    assert isinstance(make(raising), FunctionMeasure)
    assert [(type(make(name)), make(name).name) for name in ("loss", "accuracy")] == [(KerasMeasure, "loss"), (KerasMeasure, "accuracy")]
    assert make("sparse_categorical_crossentropy", metrics=METRICS).higher_is_better is False


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a metric that the list lacks": (
        lambda: make_meter("acuracy", one_output(), loss=LOSS, metrics=METRICS, batch=batches(X, CLASSES)[0]),
        RecipeError,
        "sensitivity.metric: the model has no metric 'acuracy'; did you mean 'accuracy'?; it has loss, accuracy, "
        "sparse_categorical_crossentropy, and output_error",
    ),
    "a metric that Keras lacks": (
        lambda: make_meter("acuracy", one_output(), loss=LOSS, metrics=(), batch=batches(X, CLASSES)[0]),
        RecipeError,
        "sensitivity.metric: tf_keras has no metric 'acuracy'; did you mean 'accuracy'?",
    ),
    "no loss": (
        lambda: make_meter("loss", one_output(), loss=None, metrics=METRICS, batch=batches(X, CLASSES)[0]),
        RecipeError,
        "sensitivity.metric: loss is not known; give the loss, or measure output_error",
    ),
    "no labels": (
        lambda: make_meter("accuracy", one_output(), loss=LOSS, metrics=(), batch=(X,)),
        DataError,
        "sensitivity: metric 'accuracy' needs labels, and the data have inputs only; give labels, or measure output_error",
    ),
    "a function that raises": (
        lambda: of_batches(FunctionMeasure(raising), one_output(), batches(X, CLASSES)),
        DataError,
        "sensitivity.metric: function 'raising' raised ZeroDivisionError: no boxes",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_messages(case: str) -> None:
    call, kind, message = CASES[case]
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_a_function_that_returns_no_number_is_named() -> None:
    with pytest.raises(DataError, match=r"^sensitivity\.metric: function 'nothing' raised TypeError: "):
        of_batches(FunctionMeasure(nothing), one_output(), batches(X, CLASSES))


def nothing(outputs: Any, labels: Any) -> Any:
    return None


def test_labels_that_do_not_fit_name_the_metric() -> None:
    with pytest.raises(RecipeError, match=r"^sensitivity\.metric: 'mse' does not take the model's outputs and these labels: "):
        make_meter("mse", one_output(), loss=None, metrics=(), batch=batches(X, VALUES)[0])


def test_without_labels_a_function_is_called_by_its_name() -> None:
    with pytest.raises(DataError, match=r"^sensitivity: metric 'raising' needs labels"):
        make_meter(raising, one_output(), loss=None, metrics=(), batch=(X,))
