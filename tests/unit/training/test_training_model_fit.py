"""The model.fit integration as users of Keras have it: several outputs and losses, sample weights, numpy, Keras's own callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.errors import TrainingError
from tfqat.recipe.modifiers import QatPlan, qat_plan

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 8, 8, 3)).astype(np.float32)
LABELS, AMOUNTS = RNG.integers(0, 4, 96), RNG.normal(size=(96, 1)).astype(np.float32)
LOSSES = {"kind": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), "amount": "mse"}


def two_outputs() -> Any:
    tf_keras.utils.set_random_seed(3)
    given = tf_keras.Input((8, 8, 3), name="image")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, padding="same", name="conv")(given))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    return tf_keras.Model(given, {"kind": layers.Dense(4, name="kind")(x), "amount": layers.Dense(1, name="amount")(x)})


def plan(epochs: int = 2, **qat: Any) -> QatPlan:
    return qat_plan({"epochs": 10 * epochs, "batch_size": 64, "learning_rate": 1.0}, qat, examples=96)


def calibrated(model: Any) -> Any:
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [X], batches=1)
    return qmodel


def test_several_outputs_with_losses_weights_and_metrics_of_their_own() -> None:
    qmodel, schedule = calibrated(two_outputs()), plan()
    metrics = {"kind": ["accuracy"], "amount": ["mae"]}
    tfqat.qat_compile(qmodel, schedule, LOSSES, metrics, loss_weights={"kind": 1.0, "amount": 0.1})
    targets = {"kind": LABELS, "amount": AMOUNTS}
    weights = {"kind": np.linspace(0, 1, 96), "amount": np.ones(96)}
    callbacks = tfqat.qat_callbacks(schedule, monitor="val_kind_accuracy")
    given = {"validation_data": (X, targets), "callbacks": callbacks, "verbose": 0}
    history = qmodel.fit(X, targets, sample_weight=weights, batch_size=32, epochs=schedule.epochs, **given).history
    assert {"kind_accuracy", "amount_mae", "val_kind_accuracy"} <= set(history)
    assert callbacks[4].best == pytest.approx(max(history["val_kind_accuracy"]))
    assert set(qmodel.predict(X[:4], verbose=0)) == {"kind", "amount"}


def test_a_sample_weight_of_zero_trains_nothing() -> None:
    qmodel, schedule = calibrated(two_outputs()), plan(batchnorm="freeze")
    before = qmodel.get_weights()
    tfqat.qat_compile(qmodel, schedule, LOSSES)
    data = tf.data.Dataset.from_tensor_slices((X, {"kind": LABELS, "amount": AMOUNTS}, np.zeros(96, np.float32))).batch(32)
    qmodel.fit(data, epochs=2, callbacks=tfqat.qat_callbacks(schedule), verbose=0)
    assert all(np.array_equal(one, other) for one, other in zip(before, qmodel.get_weights(), strict=True))


def test_distillation_of_several_outputs() -> None:
    model = two_outputs()
    qmodel, schedule = calibrated(model), plan(distill={"weight": 0.5})
    tfqat.qat_compile(qmodel, schedule, LOSSES, teacher=model)
    history = qmodel.fit(X, {"kind": LABELS, "amount": AMOUNTS}, batch_size=32, epochs=2, verbose=0).history
    assert {"kind_loss", "amount_loss", "distillation"} <= set(history) and np.all(np.isfinite(history["distillation"]))


class Stop(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training by an error in the second epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_backup_and_restore_of_keras_goes_on_with_the_schedule(tmp_path: Path) -> None:
    def fit(folder: Path, *more: Any) -> Any:
        qmodel, schedule = calibrated(two_outputs()), plan(3)
        tfqat.qat_compile(qmodel, schedule, LOSSES)
        backup = tf_keras.callbacks.BackupAndRestore(str(folder))
        targets = {"kind": LABELS, "amount": AMOUNTS}
        callbacks = [*tfqat.qat_callbacks(schedule), backup, *more]
        qmodel.fit(X, targets, batch_size=32, shuffle=False, epochs=3, callbacks=callbacks, verbose=0)
        return qmodel

    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", Stop())
    resumed = fit(tmp_path / "cut")
    assert int(resumed.optimizer.iterations.numpy()) == int(whole.optimizer.iterations.numpy()) == 9
    assert all(np.array_equal(one, other) for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True))


def test_saved_in_the_middle_it_loads_and_trains_on(tmp_path: Path) -> None:
    qmodel, schedule = calibrated(two_outputs()), plan()
    tfqat.qat_compile(qmodel, schedule, LOSSES)
    targets = {"kind": LABELS, "amount": AMOUNTS}
    qmodel.fit(X, targets, batch_size=32, epochs=1, callbacks=tfqat.qat_callbacks(schedule), verbose=0)
    qmodel.save(tmp_path / "q.keras")
    loaded = tfqat.load_model(tmp_path / "q.keras")
    assert np.array_equal(loaded(X)["kind"], qmodel(X)["kind"])
    tfqat.qat_compile(loaded, schedule, LOSSES)
    loaded.fit(X, targets, batch_size=32, epochs=1, callbacks=tfqat.qat_callbacks(schedule), verbose=0)
    assert not np.array_equal(loaded(X)["kind"], qmodel(X)["kind"])


def test_data_of_unknown_length_says_what_to_give() -> None:
    qmodel = calibrated(two_outputs())
    schedule = qat_plan({"epochs": 10, "batch_size": 64, "learning_rate": 1.0})
    tfqat.qat_compile(qmodel, schedule, LOSSES)
    data = tf.data.Dataset.from_tensor_slices((X, {"kind": LABELS, "amount": AMOUNTS})).batch(32).filter(lambda *_: True)
    with pytest.raises(
        TrainingError, match=r"give qat_plan the number of examples, or training\.steps_per_epoch, or fit data of a known length"
    ):
        qmodel.fit(data, epochs=1, callbacks=tfqat.qat_callbacks(schedule), verbose=0)
