"""The callbacks of fine-tuning: the rate of every step, the stop on NaN, the best weights, and what is written per epoch."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.errors import TrainingError
from tfqat.recipe.modifiers import QatPlan, qat_plan
from tfqat.training.callbacks import BestWeights, StepSchedule, StopOnNaN, Ticker, qat_callbacks

EXAMPLES = np.float32(np.random.default_rng(0).normal(size=(20, 3)))
TARGETS = EXAMPLES @ np.float32([[1.0], [-2.0], [0.5]])


def network() -> Any:
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.build((None, 3))
    model.compile(tf_keras.optimizers.SGD(0.5), loss="mse", metrics=["mae"])
    return model


def data(batch_size: int = 4) -> Any:
    return tf.data.Dataset.from_tensor_slices((EXAMPLES, TARGETS)).batch(batch_size)


def plan(steps_per_epoch: int | None = None, epochs: int = 3) -> QatPlan:
    training = {"epochs": 10 * epochs, "batch_size": 8, "learning_rate": 1.0}
    return qat_plan(training | ({"steps_per_epoch": steps_per_epoch} if steps_per_epoch else {}))


class Rates(tf_keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate.numpy()))


@pytest.mark.parametrize("steps_per_epoch", [None, 5], ids=["steps from fit", "steps from the plan"])
def test_every_step_has_the_rate_of_the_plan(steps_per_epoch: int | None) -> None:
    seen = Rates()
    history = network().fit(data(), epochs=3, callbacks=[StepSchedule(plan(steps_per_epoch)), seen], verbose=0)
    expected = [plan(5).learning_rate_at(step) for step in range(15)]
    assert seen.rates == [float(np.float32(rate)) for rate in expected]
    assert len(set(seen.rates)) > 12
    assert history.history["learning_rate"] == [seen.rates[4], seen.rates[9], seen.rates[14]]


def test_the_rate_follows_the_optimizers_own_count() -> None:
    model, seen = network(), Rates()
    schedule = StepSchedule(plan(5))
    model.fit(data(), epochs=1, callbacks=[schedule], verbose=0)
    model.fit(data(), epochs=2, callbacks=[schedule, seen], verbose=0)
    assert seen.rates == [float(np.float32(plan(5).learning_rate_at(step))) for step in range(5, 15)]


def test_a_step_is_taken_with_its_rate() -> None:
    model = network()
    model.fit(data(20), epochs=1, callbacks=[StepSchedule(plan(1, epochs=1))], verbose=0)
    gradient = -2 * EXAMPLES.T @ TARGETS / 20  # of the mean squared error at weights 0
    assert np.allclose(model.get_weights()[0], -0.01 * gradient, rtol=1e-5)


def test_an_unknown_number_of_steps_is_an_error() -> None:
    unknown = data().filter(lambda inputs, labels: True)
    with pytest.raises(TrainingError, match=r"steps per epoch is not known: give qat_plan the number of examples, or training\.steps_per"):
        network().fit(unknown, epochs=1, callbacks=[StepSchedule(plan())], verbose=0)


def averaging(steps_per_epoch: int) -> QatPlan:
    training = {"epochs": 30, "batch_size": 8, "learning_rate": 1.0, "steps_per_epoch": steps_per_epoch}
    return qat_plan(training, {"ema": True, "disable_phase_callbacks": False})


OTHER_STEPS = {
    "more batches": (lambda: data(4), "fit runs 5 steps"),
    "fewer batches": (lambda: data(10), "fit runs 2 steps"),
    "unknown length": (lambda: data(5).filter(lambda inputs, labels: True), "fit runs an unknown number of steps"),
}


@pytest.mark.parametrize(("make", "runs"), OTHER_STEPS.values(), ids=OTHER_STEPS)
def test_averaging_over_another_number_of_steps_than_fit_runs_is_an_error(make: Any, runs: str) -> None:
    with pytest.raises(TrainingError) as caught:
        network().fit(make(), epochs=1, callbacks=[StepSchedule(averaging(4))], verbose=0)
    assert str(caught.value) == (f"qat.ema averages over epochs of 4 steps, but {runs}: give fit steps_per_epoch=4 and data that repeats")


def test_averaging_over_the_steps_that_fit_runs() -> None:
    seen = Rates()
    network().fit(data(4).repeat(), epochs=2, steps_per_epoch=4, callbacks=[StepSchedule(averaging(4)), seen], verbose=0)
    network().fit(data(5), epochs=2, callbacks=[StepSchedule(averaging(4)), seen], verbose=0)
    assert len(seen.rates) == 16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_stops_as_soon_as_the_loss_is_not_finite(value: float) -> None:
    targets = TARGETS.copy()
    targets[9] = value  # in the third batch of four
    bad = tf.data.Dataset.from_tensor_slices((EXAMPLES, targets)).batch(4)
    seen = Rates()
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step 2 of an epoch: lower qat.lr_decay_factor"):
        network().fit(bad, epochs=1, callbacks=[seen, StopOnNaN()], verbose=0)
    assert len(seen.rates) == 3


def test_stops_at_the_end_of_an_epoch_if_a_weight_is_not_finite() -> None:
    class Break(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 4:
                self.model.layers[0].kernel.assign([[1.0], [np.nan], [1.0]])

    with pytest.raises(TrainingError, match=r"weight 'dense.*/kernel:0' holds NaN or Inf after epoch 1"):
        network().fit(data(), epochs=2, callbacks=[Break(), StopOnNaN()], verbose=0)


def test_a_finite_loss_does_not_stop() -> None:
    assert len(network().fit(data(), epochs=2, callbacks=[StopOnNaN()], verbose=0).history["loss"]) == 2


def rehearse(values: list[float], **settings: Any) -> tuple[BestWeights, float]:
    """Epochs whose monitored metric is `values`, the weights of epoch n being n + 1, before them 0; the callback and the weights after."""
    model, callback = network(), BestWeights(**settings)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.set_weights([np.full((3, 1), epoch + 1.0)])
        callback.on_epoch_end(epoch, {"loss": 1.0, settings["monitor"]: value})
    callback.on_train_end()
    return callback, float(model.get_weights()[0][0, 0])


# monitor, values, baseline -> best, epoch, beat the baseline
NAN = float("nan")
BEST: dict[str, tuple[str, list[float], float | None, float | None, int | None, bool]] = {
    "accuracy goes up": ("val_accuracy", [0.5, 0.7, 0.6], 0.6, 0.7, 1, True),
    "loss goes down": ("val_loss", [0.5, 0.7, 0.4, 0.6], 0.45, 0.4, 2, True),
    "accuracy misses the baseline": ("val_accuracy", [0.5, 0.7], 0.8, 0.7, 1, False),
    "loss misses the baseline": ("val_loss", [0.5, 0.7], 0.4, 0.5, 0, False),
    "equal to the baseline is not better": ("val_accuracy", [0.7], 0.7, 0.7, 0, False),
    "the first of equals": ("val_accuracy", [0.6, 0.7, 0.7], None, 0.7, 1, True),
    "no baseline": ("val_loss", [0.5], None, 0.5, 0, True),
    "NaN is never better": ("val_accuracy", [0.5, NAN, 0.4], 0.45, 0.5, 0, True),
    "NaN first": ("val_accuracy", [NAN, 0.5, 0.4], 0.45, 0.5, 1, True),
    "no epoch": ("val_accuracy", [], 0.5, None, None, False),
}


@pytest.mark.parametrize("name", BEST)
def test_best_weights(name: str) -> None:
    monitor, values, baseline, best, epoch, beat = BEST[name]
    callback, weight = rehearse(values, monitor=monitor, baseline=baseline)
    assert (callback.best, callback.best_epoch, callback.beat_baseline) == (best, epoch, beat)
    assert weight == (0.0 if epoch is None else epoch + 1.0)  # without an epoch, what training began with


MONITORS = {
    "a metric comes before the loss": ({"loss": 1.0, "mae": 1.0, "val_loss": 1.0, "val_mae": 1.0}, "val_mae"),
    "the loss alone": ({"loss": 1.0, "val_loss": 1.0}, "val_loss"),
    "nothing to watch": ({"loss": 1.0}, None),
}


@pytest.mark.parametrize("name", MONITORS)
def test_the_monitor_is_found(name: str) -> None:
    logs, expected = MONITORS[name]
    callback = BestWeights()
    callback.set_model(network())
    callback.on_epoch_end(0, logs)
    assert callback.monitor == expected
    assert (callback.best_epoch == 0) == (expected is not None)


def test_a_monitor_that_is_not_reported_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"training reports no 'val_mae'; it reports loss, mae: give validation data"):
        network().fit(data(), epochs=1, callbacks=[BestWeights(monitor="val_mae")], verbose=0)


def test_fit_ends_with_the_weights_of_the_best_epoch() -> None:
    class Weights(tf_keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.after: list[np.ndarray] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                self.model.optimizer.learning_rate.assign(-0.5)  # from here on it gets worse

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.after.append(self.model.get_weights()[0])

    model, seen, best = network(), Weights(), BestWeights(monitor="val_loss")
    model.optimizer.learning_rate.assign(0.05)
    history = model.fit(data(), validation_data=data(), epochs=4, callbacks=[seen, best], verbose=0).history
    assert best.best_epoch == 1 and best.best == min(history["val_loss"])
    assert np.array_equal(model.get_weights()[0], seen.after[1])
    assert not np.array_equal(seen.after[1], seen.after[3])


ALWAYS = ["StepSchedule", "BatchNormFreeze", "RangesInStep", "StopOnNaN", "BestWeights"]


def test_qat_callbacks_write_a_row_per_epoch(tmp_path: Path) -> None:
    callbacks = qat_callbacks(plan(), monitor="val_mae", baseline=9.0, history=tmp_path / "history.csv")
    assert [type(callback).__name__ for callback in callbacks] == [*ALWAYS, "EpochHistory"]
    network().fit(data(), validation_data=data(), epochs=3, callbacks=callbacks, verbose=0)
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([plan(5).learning_rate_at(step) for step in (4, 9, 14)], rel=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(float(row["val_mae"]) for row in rows))
    assert callbacks[4].best == pytest.approx(float(rows[2]["val_mae"])) and callbacks[4].beat_baseline


def test_qat_callbacks_without_history_write_nothing() -> None:
    assert [type(callback).__name__ for callback in qat_callbacks(plan())] == ALWAYS


def test_ticker_counts_training_and_evaluation_steps() -> None:
    trained, tested = [], []
    ticker = Ticker(on_train=lambda: trained.append(1), on_test=lambda: tested.append(1))
    network().fit(data(), validation_data=data(10), epochs=2, callbacks=[ticker], verbose=0)
    assert (len(trained), len(tested)) == (10, 4)
    network().fit(data(), validation_data=data(10), epochs=1, callbacks=[Ticker()], verbose=0)
