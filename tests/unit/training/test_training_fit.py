"""Fine-tuning of a quantized model: the optimizer, the result, the weights that are left, and what stops it."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.calibration.calibrate import calibrate
from tfqat.errors import NotCalibratedError, TrainingError
from tfqat.quantize import state
from tfqat.quantize.apply import quantize_model
from tfqat.recipe.modifiers import QatPlan, qat_plan
from tfqat.training.compile import qat_compile
from tfqat.training.evaluate import evaluate
from tfqat.training.fit import fine_tune

RNG = np.random.default_rng(4)
CENTRES = RNG.normal(0, 1.5, (4, 6))
LABELS = RNG.integers(0, 4, 1280)
EXAMPLES = np.float32(CENTRES[LABELS] + RNG.normal(0, 1, (1280, 6)))
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(first: int, last: int, batch_size: int = 64) -> Any:
    return tf.data.Dataset.from_tensor_slices((EXAMPLES[first:last], LABELS[first:last])).batch(batch_size)


TRAIN, VALIDATION = data(0, 768), data(768, 1280)


def quantized(*, bits: int = 8, calibrated: bool = True, epochs: int = 3) -> Any:
    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((6,), name="x")
    y = tf_keras.layers.Dense(16, activation="relu", name="a")(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(4, name="logits")(y))
    model.compile(tf_keras.optimizers.Adam(0.01), loss=LOSS)
    model.fit(TRAIN, epochs=epochs, verbose=0)
    qmodel = quantize_model(model, {"weights": {"num_bits": bits}})
    if calibrated:
        calibrate(qmodel, TRAIN, batches=4)
    return qmodel


def plan(*, epochs: int = 2, **qat: Any) -> QatPlan:
    training = {"epochs": 10 * epochs, "batch_size": 64, "learning_rate": 5.0, "weight_decay": 0.01}
    return qat_plan(training | qat.pop("training", {}), qat, examples=768)


def tune(qmodel: Any, folder: Path, **given: Any) -> Any:
    arguments: dict[str, Any] = {"plan": plan(), "validation": VALIDATION} | {
        name: value for name, value in given.items() if name != "train"
    }
    return fine_tune(
        qmodel,
        arguments.pop("plan"),
        lambda: given.get("train", TRAIN),
        arguments.pop("validation"),
        **{"loss": LOSS, "metrics": ["accuracy"], "monitor": "val_accuracy", "baseline": 0.0, "history": folder / "history.csv"}
        | arguments,
    )


def accuracy(qmodel: Any) -> float:
    return float(np.mean(qmodel.predict(EXAMPLES[768:], verbose=0).argmax(axis=1) == LABELS[768:]))


def test_two_bit_weights_win_back_accuracy_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    qmodel = quantized(bits=2)
    before, ranges = accuracy(qmodel), state.ranges(qmodel)
    result = tune(qmodel, tmp_path, plan=plan(epochs=4), baseline=before)
    after = accuracy(qmodel)
    rows = [float(row["val_accuracy"]) for row in csv.DictReader((tmp_path / "history.csv").read_text().splitlines())]
    assert len(rows) == 4
    assert after == pytest.approx(result.best, abs=1e-6) and result.best == pytest.approx(max(rows), abs=1e-6)
    assert result.best_epoch == rows.index(max(rows)) and result.monitor == "val_accuracy"
    assert after > before + 0.02 and result.beat_ptq
    assert all(np.array_equal(amax, ranges[name]) for name, amax in state.ranges(qmodel).items())  # ranges are not trained


def test_eight_bits_hold(tmp_path: Path) -> None:
    qmodel = quantized()
    before = accuracy(qmodel)
    result = tune(qmodel, tmp_path, baseline=before)
    assert accuracy(qmodel) >= before - 0.01
    assert result.beat_ptq == (result.best > before)


def test_a_worse_epoch_does_not_beat_the_calibrated_model(tmp_path: Path) -> None:
    assert not tune(quantized(), tmp_path, baseline=0.9999).beat_ptq


def test_the_loss_can_choose(tmp_path: Path) -> None:
    qmodel = quantized()
    result = tune(qmodel, tmp_path, monitor="val_loss", baseline=9.0)
    assert result.beat_ptq
    assert evaluate(qmodel, VALIDATION, loss=LOSS, metrics=["accuracy"])["loss"] == pytest.approx(result.best, rel=1e-5)


def test_training_data_is_rebatched_to_the_plan(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Sizes(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            sizes.append(int(self.model.optimizer.iterations.numpy()))

    tune(quantized(epochs=1), tmp_path, train=data(0, 768, 100), callbacks=[Sizes()])
    assert sizes == [24, 48]  # 768 examples in batches of 32
    sizes.clear()
    tune(quantized(epochs=1), tmp_path, plan=plan(training={"steps_per_epoch": 7}), callbacks=[Sizes()])
    assert sizes == [7, 14]
    sizes.clear()
    tune(quantized(epochs=1), tmp_path, plan=plan(training={"steps_per_epoch": 30}), callbacks=[Sizes()])
    assert sizes == [30, 60]  # more than one pass over the data


OPTIMIZERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "default": ({}, "SGD", {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}),
    "nesterov": ({"optimizer": {"name": "sgd", "momentum": 0.5, "nesterov": True}}, "SGD", {"momentum": 0.5, "nesterov": True}),
    "no weight decay": ({"training": {"weight_decay": 0.0}}, "SGD", {"weight_decay": None}),
    "adam": ({"optimizer": {"name": "adam"}}, "Adam", {"weight_decay": 1e-4}),
    "adam without weight decay": ({"optimizer": {"name": "adam"}, "training": {"weight_decay": 0.0}}, "Adam", {"weight_decay": None}),
    "adamw": ({"optimizer": {"name": "adamw"}}, "AdamW", {"weight_decay": 1e-4}),
    "adamw without weight decay": ({"optimizer": {"name": "adamw"}, "training": {"weight_decay": 0.0}}, "AdamW", {"weight_decay": 0.0}),
    "rmsprop": ({"optimizer": {"name": "rmsprop", "momentum": 0.5}}, "RMSprop", {"momentum": 0.5, "weight_decay": 1e-4}),
    "own weight decay": ({"weight_decay": 0.5}, "SGD", {"weight_decay": 0.5}),
    "clipped gradients": ({"clip_norm": 2.0}, "SGD", {"global_clipnorm": 2.0}),
    "ema": ({"ema": True, "disable_phase_callbacks": False}, "SGD", {"use_ema": True}),
    "ema disabled": ({"ema": True}, "SGD", {"use_ema": False}),
}


@pytest.fixture(scope="module")
def shared() -> Any:
    return quantized(epochs=1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name: str, shared: Any) -> None:
    qat, kind, expected = OPTIMIZERS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert qat_compile(shared, plan(**qat), LOSS, ["accuracy"]) is shared
    texts = [str(warning.message) for warning in caught]
    assert [text.split(" divides each step")[0] for text in texts] == ([f"qat.optimizer: {kind.lower()}"] if kind != "SGD" else [])
    optimizer = shared.optimizer
    assert type(optimizer).__name__ == kind
    assert {key: getattr(optimizer, key) for key in expected} == pytest.approx(expected)
    assert float(optimizer.learning_rate.numpy()) == pytest.approx(0.05)


def test_a_model_without_ranges_is_refused(tmp_path: Path) -> None:
    qmodel = quantized(calibrated=False, epochs=1)
    with pytest.raises(NotCalibratedError, match=r"4 of 4 quantizers .* call tfqat.calibrate"):
        qat_compile(qmodel, plan(), LOSS, ["accuracy"])
    with pytest.raises(NotCalibratedError):
        tune(qmodel, tmp_path)
    assert not (tmp_path / "history.csv").exists()


def nan_examples() -> Any:
    examples = EXAMPLES[:768].copy()
    examples[500] = np.nan
    return tf.data.Dataset.from_tensor_slices((examples, LABELS[:768])).batch(64)


def broken() -> Any:
    def check(examples: Any, labels: Any) -> Any:
        tf.debugging.assert_none_equal(tf.reduce_sum(examples), float(EXAMPLES[500].sum()), message="broken record")
        return examples, labels

    return data(0, 768, 1).map(check)


STOPPED = {
    "NaN in the training data": (nan_examples, r"the loss is nan|holds NaN or Inf after epoch 1"),
    "data that raises in the middle of an epoch": (broken, r"^fine-tuning stopped, the training or the validation data raised: .*"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_it_leaves_the_weights_as_they_were(name: str, tmp_path: Path) -> None:
    make, message = STOPPED[name]
    qmodel = quantized(epochs=1)
    before = qmodel.get_weights()
    with pytest.raises(TrainingError, match=message):
        tune(qmodel, tmp_path, train=make())
    assert all(np.array_equal(one, other) for one, other in zip(before, qmodel.get_weights(), strict=True))


def test_ema_validates_and_keeps_the_averaged_weights(tmp_path: Path) -> None:
    """By hand: average = 0.99 * average + 0.01 * weights after each step, and the averages become the weights after each epoch."""
    qmodel = quantized(epochs=1)
    kernel = qmodel.get_layer("a").layer.kernel
    average, validated, raw = kernel.numpy(), [], []

    class Record(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raw.append(kernel.numpy())

        def on_test_begin(self, logs: Any = None) -> None:
            validated.append(kernel.numpy())

    averaging = plan(epochs=1, ema=True, disable_phase_callbacks=False)
    result = tune(qmodel, tmp_path, plan=averaging, callbacks=[Record()])
    moved = np.abs(raw[-2] - average).max()
    assert averaging.steps_per_epoch == len(raw) == 24
    assert moved > 0
    # 24 steps at momentum 0.99 follow the weights by 1 - 0.99 ** 24 = 0.21 of the way at most.
    assert 0 < np.abs(validated[0] - average).max() < 0.5 * moved
    assert np.array_equal(kernel.numpy(), validated[result.best_epoch])


def test_ema_without_the_steps_per_epoch_is_an_error(shared: Any) -> None:
    unknown = qat_plan({"epochs": 10, "batch_size": 64, "learning_rate": 1.0}, {"ema": True, "disable_phase_callbacks": False})
    with pytest.raises(TrainingError, match=r"^qat\.ema needs the steps per epoch"):
        qat_compile(shared, unknown, LOSS, ["accuracy"])
