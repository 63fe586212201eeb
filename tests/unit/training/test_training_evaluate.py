"""Evaluation: against accuracy by hand, and the same for a model and for its outputs; losses and metrics by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.errors import RecipeError
from tfqat.recipe.schema import LossConfig
from tfqat.training.evaluate import check_fit, check_metrics, evaluate, evaluate_outputs, make_loss

RNG = np.random.default_rng(1)
EXAMPLES = np.float32(RNG.normal(size=(300, 4)))
LABELS, OTHER, WEIGHTS = RNG.integers(0, 3, 300), RNG.integers(0, 2, 300), np.float32(RNG.random(300))
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(outputs: int = 1) -> Any:
    tf_keras.utils.set_random_seed(5)
    x = tf_keras.Input((4,), name="x")
    heads = [tf_keras.layers.Dense(3 - number, name=("zeta", "alpha")[number])(x) for number in range(outputs)]
    return tf_keras.Model(x, heads[0] if outputs == 1 else heads)


def data(*parts: Any, batch_size: int = 64) -> Any:
    return tf.data.Dataset.from_tensor_slices((EXAMPLES, *parts)).batch(batch_size)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


def test_evaluate_equals_accuracy_and_loss_by_hand() -> None:
    model = network()
    logits = model.predict(EXAMPLES, verbose=0)
    found = evaluate(model, data(LABELS), loss=LOSS, metrics=["accuracy"])
    assert found == pytest.approx({"loss": cross_entropy(logits, LABELS), "accuracy": np.mean(logits.argmax(axis=1) == LABELS)}, abs=1e-6)
    assert 0.1 < found["accuracy"] < 0.9
    assert all(type(value) is float for value in found.values())


def test_evaluate_calls_back_once_per_batch() -> None:
    class Count(tf_keras.callbacks.Callback):
        batches = 0

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            self.batches += 1

    count = Count()
    evaluate(network(), data(LABELS), loss=LOSS, metrics=[], callbacks=[count])
    assert count.batches == 5


# outputs of the model, what follows the inputs in the data
LABELLED: dict[str, tuple[int, tuple[Any, ...]]] = {
    "one output": (1, (LABELS,)),
    "two outputs": (2, ((LABELS, OTHER),)),
    "two outputs, labels by name": (2, ({"alpha": OTHER, "zeta": LABELS},)),
    "sample weights": (1, (LABELS, WEIGHTS)),
}


@pytest.mark.parametrize("name", LABELLED)
def test_the_outputs_of_a_model_give_what_the_model_gives(name: str) -> None:
    outputs, parts = LABELLED[name]
    model = network(outputs)
    own = evaluate(model, data(*parts), loss=LOSS, metrics=["accuracy"])
    predicted = model.predict(EXAMPLES, verbose=0)
    arrays = [predicted] if outputs == 1 else predicted
    found = evaluate_outputs(arrays, parts, loss=LOSS, metrics=["accuracy"], names=model.output_names)
    assert found == pytest.approx(own, abs=1e-6)
    assert list(found) == list(own) and len(own) == (2 if outputs == 1 else 5)


def test_sample_weights_weigh_the_loss_but_not_the_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """On purpose, so Keras does not ask in its log whether `weighted_metrics` were meant."""
    model = network()
    plain, weighted = (evaluate(model, data(*parts), loss=LOSS, metrics=["accuracy"]) for parts in ((LABELS,), (LABELS, WEIGHTS * 0)))
    assert weighted == {"loss": 0.0, "accuracy": plain["accuracy"]}
    assert plain["loss"] > 0.5
    assert "sample_weight" not in caplog.text


def test_outputs_without_names_have_names_that_do_not_change() -> None:
    predicted = network(2).predict(EXAMPLES, verbose=0)
    names = {"loss", "output_0_loss", "output_1_loss", "output_0_accuracy", "output_1_accuracy"}
    for _ in range(2):
        assert set(evaluate_outputs(predicted, ((LABELS, OTHER),), loss=LOSS, metrics=["accuracy"])) == names


def test_outputs_are_matched_with_their_labels_in_order() -> None:
    perfect = np.eye(3, dtype=np.float32)[LABELS]
    assert evaluate_outputs([perfect], (LABELS,), loss=LOSS, metrics=["accuracy"])["accuracy"] == 1.0
    share = float(np.mean(LABELS[::-1] == LABELS))
    assert evaluate_outputs([perfect[::-1]], (LABELS,), loss=LOSS, metrics=["accuracy"])["accuracy"] == pytest.approx(share)


def test_labels_and_metrics_that_fit_are_accepted() -> None:
    check_fit(network(1), (EXAMPLES[:8], LABELS[:8]), loss=LOSS, metrics=["accuracy"], where="data.py:validation")
    check_fit(network(2), (EXAMPLES[:8], (LABELS[:8], OTHER[:8])), loss=LOSS, metrics=["accuracy"], where="data.py:validation")


@pytest.mark.parametrize(
    ("labels", "metrics", "message"),
    [
        (
            np.eye(3, dtype=np.float32)[LABELS[:8]],
            ["accuracy"],
            r"^training\.loss: .* does not take outputs of shape \(8, 3\)",
        ),
        (LABELS[:8], ["accuracy", "AUC"], r"^training\.metrics: 'AUC' does not take outputs of shape \(8, 3\)"),
    ],
    ids=["one-hot labels", "a metric of binary outputs"],
)
def test_labels_and_metrics_that_do_not_fit_are_refused(labels: Any, metrics: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_fit(network(1), (EXAMPLES[:8], labels), loss=LOSS, metrics=metrics, where="data.py:validation")


LOSSES = {
    "a class": (LossConfig(name="SparseCategoricalCrossentropy", from_logits=True), True),
    "a class without arguments": (LossConfig(name="SparseCategoricalCrossentropy"), False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_class(name: str) -> None:
    config, from_logits = LOSSES[name]
    loss = make_loss(config)
    assert isinstance(loss, tf_keras.losses.SparseCategoricalCrossentropy)
    assert loss.get_config()["from_logits"] is from_logits
    values = np.float32([[0.5, 0.2, 0.3]])
    expected = cross_entropy(values, np.array([2])) if from_logits else -np.log(0.3)
    assert float(loss([2], values)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "sparse_categorical_crossentropy", "mean_absolute_error"])
def test_loss_function_goes_to_keras_by_its_name(name: str) -> None:
    assert make_loss(LossConfig(name=name)) == name


BAD_LOSSES = {
    "unknown": (
        LossConfig(name="SparseCategoricalCrossEntropy"),
        r"^training.loss: tf_keras has no loss 'SparseCategoricalCrossEntropy'; did you mean 'SparseCategoricalCrossentropy'\?$",
    ),
    "nothing near": (LossConfig(name="qqqq"), r"^training.loss: tf_keras has no loss 'qqqq'$"),
    "arguments for a function": (LossConfig(name="mse", from_logits=True), r"'mse' is a function and takes no arguments; name its class"),
    "arguments it does not take": (
        LossConfig(name="MeanSquaredError", from_logits=True),
        r"MeanSquaredError does not take these arguments",
    ),
    "not a loss": (LossConfig(name="get"), r"tf_keras has no loss 'get'"),
    "the base class": (LossConfig(name="Loss"), r"tf_keras has no loss 'Loss'"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_bad_loss(name: str) -> None:
    config, message = BAD_LOSSES[name]
    with pytest.raises(RecipeError, match=message):
        make_loss(config)


def test_metrics_that_keras_knows() -> None:
    check_metrics(["accuracy", "acc", "crossentropy", "ce", "AUC", "mse", "sparse_top_k_categorical_accuracy", "BinaryIoU"])
    check_metrics([])


def test_all_bad_metrics_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        check_metrics(["acuracy", "mae", "qqqq", "MeanIoU"])
    assert caught.value.problems == (
        "training.metrics: tf_keras has no metric 'acuracy'; did you mean 'accuracy'?",
        "training.metrics: tf_keras has no metric 'qqqq'",
        "training.metrics: 'MeanIoU' needs arguments, which a name alone cannot give; take a metric without",
    )


@pytest.mark.parametrize("name", ["get", "serialize", "Metric", "experimental", "Sum"])
def test_not_every_name_in_the_module_is_a_metric(name: str) -> None:
    with pytest.raises(RecipeError, match=f"tf_keras has no metric '{name}'"):
        check_metrics([name])
