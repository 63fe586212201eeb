"""`qat_compile`: what quantizers learn, what Keras trains, distillation, and that `fit` computes what the model computes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.errors import ModelError, TrainingError
from tfqat.quantize import state
from tfqat.quantize.quantizers import quantizers
from tfqat.recipe.modifiers import QatPlan, qat_plan

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 8, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 4, 128)
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network() -> Any:
    tf_keras.utils.set_random_seed(1)
    given = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(given)
    x = layers.ReLU(6.0, name="relu1")(layers.BatchNormalization(name="bn1")(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv2")(x)
    y = layers.BatchNormalization(name="bn2")(y)
    x = layers.ReLU(name="relu2")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(given, layers.Dense(4, name="logits")(x))


def calibrated(model: Any = None) -> Any:
    qmodel = tfqat.quantize_model(model or network())
    tfqat.calibrate(qmodel, [X[:64], X[64:]], batches=2)
    return qmodel


def plan(steps: int = 4, *, epochs: int = 2, learning_rate: float = 5.0, **qat: Any) -> QatPlan:
    return qat_plan({"epochs": 10 * epochs, "batch_size": 64, "learning_rate": learning_rate, "steps_per_epoch": steps}, qat)


def trained(qmodel: Any, schedule: QatPlan, **options: Any) -> Any:
    tfqat.qat_compile(qmodel, schedule, LOSS, ["accuracy"], **options)
    qmodel.fit(X, Y, batch_size=32, shuffle=False, epochs=schedule.epochs, callbacks=tfqat.qat_callbacks(schedule), verbose=0)
    return qmodel


def test_the_compiled_steps_compute_what_the_model_computes() -> None:
    qmodel = calibrated()
    plain = qmodel(X).numpy()
    tfqat.qat_compile(qmodel, plan(), LOSS, ["accuracy"])
    assert qmodel.predict(X, verbose=0) == pytest.approx(plain, rel=1e-4, abs=1e-5)
    expected = float(LOSS(Y, plain))
    assert qmodel.evaluate(X, Y, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def test_the_compiled_steps_have_no_branches() -> None:
    """What makes them fast; the model itself still asks each quantizer."""
    qmodel = calibrated()
    tfqat.qat_compile(qmodel, plan(), LOSS)
    kinds = [node.op for node in tf.function(qmodel.test_step).get_concrete_function((X[:2], Y[:2])).graph.as_graph_def().node]
    assert "Round" in kinds and not {"If", "StatelessIf"} & set(kinds)
    plain = [node.op for node in tf.function(qmodel).get_concrete_function(X[:2]).graph.as_graph_def().node]
    assert {"If", "StatelessIf"} & set(plain)


def test_keras_compile_takes_everything_back() -> None:
    model = network()
    qmodel = calibrated(model)
    tfqat.qat_compile(qmodel, plan(), LOSS)
    learned = plan(amax={"weights": "learned"}, distill={"weight": 1.0})
    tfqat.qat_compile(qmodel, learned, LOSS, teacher=model)  # what the first one did is not done twice
    state.set_enabled(qmodel, False)
    assert qmodel.predict(X, verbose=0) != pytest.approx(qmodel(X).numpy(), abs=1e-6)
    qmodel.compile("sgd", LOSS)
    assert qmodel.predict(X, verbose=0) == pytest.approx(qmodel(X).numpy(), abs=1e-6)
    assert not any("amax" in variable.name for variable in qmodel.trainable_variables)
    assert set(qmodel.fit(X, Y, verbose=0).history) == {"loss"}


def test_a_class_that_takes_other_arguments_says_what_to_do() -> None:
    class Own(tf_keras.Model):
        def __init__(self, *arguments: Any, extra: int, **options: Any) -> None:
            super().__init__(*arguments, **options)

    base = network()
    with pytest.raises(ModelError, match=r"is of class Own, which cannot be made as Own\(inputs, outputs, name=\.\.\.\): .*extra"):
        tfqat.quantize_model(Own(base.inputs, base.outputs, extra=1))


def test_a_dead_channel_does_not_stop_learned_ranges() -> None:
    model = network()
    kernel = model.get_layer("conv1").kernel.numpy()
    kernel[..., 3] = 0
    model.get_layer("conv1").kernel.assign(kernel)
    model.get_layer("bn1").gamma.assign([1, 1, 1, 0, 1, 1, 1, 1])  # no gradient reaches it
    qmodel = trained(calibrated(model), plan(amax={"weights": "learned"}))
    assert state.ranges(qmodel)["conv1/kernel"][3] == 0


def test_frozen_ranges_stay_and_weights_train() -> None:
    qmodel = calibrated()
    ranges, kernel = state.ranges(qmodel), qmodel.get_layer("conv1").layer.kernel.numpy()
    trained(qmodel, plan())
    assert all(np.array_equal(value, ranges[name]) for name, value in state.ranges(qmodel).items())
    assert not np.array_equal(kernel, qmodel.get_layer("conv1").layer.kernel)


def test_dynamic_ranges_are_those_of_the_weights_when_an_epoch_has_ended() -> None:
    qmodel = trained(calibrated(), plan(amax={"weights": "dynamic"}))
    for handle in state.handles(qmodel).values():
        if handle.weight is not None:
            assert np.array_equal(handle.amax, np.abs(handle.weight).max(axis=tuple(range(handle.weight.shape.rank - 1))))


@pytest.mark.parametrize("activations", ["learned", "pact"])
def test_learned_ranges_are_trained_saved_and_not_decayed(activations: str, tmp_path: Path) -> None:
    qmodel = calibrated()
    before = state.ranges(qmodel)
    schedule = plan(amax={"weights": "learned", "activations": activations}, weight_decay=0.1)
    trained(qmodel, schedule)
    after = state.ranges(qmodel)
    assert sum(not np.array_equal(before[name], after[name]) for name in before) >= len(before) - 1  # one lies at a ReLU6's cap
    assert max(float(np.max(np.abs(after[name] / before[name] - 1))) for name in before) < 0.5
    learnings = {name: handle.quantizer.learning.amax for name, handle in state.handles(qmodel).items() if handle.weight is None}
    behind_relu = {name for name, handle in state.handles(qmodel).items() if handle.point.source.startswith("relu")}
    expected = "pact" if activations == "pact" else "lsq"
    assert {name for name, amax in learnings.items() if amax == expected} >= behind_relu
    qmodel.save(tmp_path / "q.keras")
    loaded = tfqat.load_model(tmp_path / "q.keras")
    assert all(np.array_equal(value, after[name]) for name, value in state.ranges(loaded).items())
    assert np.array_equal(loaded(X[:8]), qmodel(X[:8]))
    frozen = tfqat.qat_compile(qmodel, plan(), LOSS)
    assert not any("amax" in variable.name for variable in frozen.trainable_variables)


def test_a_loss_that_is_nan_names_the_weight_that_saturated() -> None:
    qmodel, schedule = calibrated(), plan()
    state.set_ranges(qmodel, {"conv2/kernel": 0.25 * state.ranges(qmodel)["conv2/kernel"]})
    tfqat.qat_compile(qmodel, schedule, LOSS)
    images = X.copy()
    images[100] = np.nan
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 .*'conv2/kernel' saturated most before, in \d+\.\d% of its values"):
        qmodel.fit(images, Y, batch_size=32, shuffle=False, epochs=1, callbacks=tfqat.qat_callbacks(schedule), verbose=0)


def test_points_that_share_a_scale_keep_it() -> None:
    given = tf_keras.Input((8, 8, 3), name="image")
    branches = [layers.Conv2D(4, 3, padding="same", activation="relu", name=f"branch{number}")(given) for number in range(2)]
    x = layers.Concatenate(name="concat")(branches)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="last")(x))
    qmodel = calibrated(tf_keras.Model(given, layers.Dense(4, name="logits")(x)))
    shared = [name for name, handle in state.handles(qmodel).items() if handle.point.scale_group]
    assert len(shared) >= 2
    before = state.ranges(qmodel)
    trained(qmodel, plan(amax={"activations": "learned"}))
    assert all(np.array_equal(before[name], state.ranges(qmodel)[name]) for name in shared)


def test_pass_through_moves_what_is_clipped() -> None:
    found = {}
    for gradient in ("clipped", "pass_through"):
        qmodel = calibrated()
        state.set_ranges(qmodel, {"image": np.float32(0.2)})  # most values are clipped
        tfqat.qat_compile(qmodel, plan(gradient=gradient), LOSS)
        image = tf.constant(X[:4])
        with tf.GradientTape() as tape, quantizers(on=True):
            tape.watch(image)
            loss = tf.reduce_sum(qmodel(image) ** 2)
        found[gradient] = float(tf.reduce_mean(tf.cast(tape.gradient(loss, image) != 0, tf.float32)))
    assert found["clipped"] < 0.3 < 0.9 < found["pass_through"]


@pytest.mark.parametrize(("batchnorm", "moves"), [("train", True), ("freeze", False)])
def test_batchnorm_trains_or_is_frozen(batchnorm: str, moves: bool) -> None:
    qmodel = calibrated()
    bn = qmodel.get_layer("bn1")
    before = [value.copy() for value in bn.get_weights()]
    trained(qmodel, plan(batchnorm=batchnorm))
    assert all((not np.array_equal(one, other)) == moves for one, other in zip(before, bn.get_weights(), strict=True))


def test_batchnorm_freezes_after_its_share_of_the_steps() -> None:
    qmodel = calibrated()
    bn, seen = qmodel.get_layer("bn1"), []

    class Record(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(bn.moving_mean.numpy().copy())

    schedule = plan(batchnorm={"freeze_after": 0.5})
    tfqat.qat_compile(qmodel, schedule, LOSS)
    callbacks = [*tfqat.qat_callbacks(schedule), Record()]
    qmodel.fit(X, Y, batch_size=32, shuffle=False, epochs=2, callbacks=callbacks, verbose=0)
    changed = [not np.array_equal(one, other) for one, other in itertools.pairwise(seen)]
    assert changed == [True] * 3 + [False] * 4
    assert bn.trainable
    assert plan(batchnorm={"freeze_after": 0.3}, ema=True, disable_phase_callbacks=False).freeze_batchnorm_step == 4  # an epoch's end


def outputs_distance(qmodel: Any, model: Any) -> float:
    found, wanted = (tf.nn.log_softmax(one.predict(X, verbose=0)) for one in (qmodel, model))  # a shift of all logits does not count
    return float(tf.reduce_mean((found - wanted) ** 2))


@pytest.mark.parametrize("features", [(), ("relu1", "add")])
def test_distillation_alone_brings_the_outputs_to_the_teacher(features: tuple[str, ...]) -> None:
    model = network()
    moved = network()
    for layer in moved.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign_add(0.3 * tf.math.reduce_std(layer.kernel) * tf.random.stateless_normal(layer.kernel.shape, (0, 1)))
    qmodel = calibrated(moved)
    before = outputs_distance(qmodel, model)
    distill = {"weight": 1.0, "temperature": 1.0, "features": features}
    schedule = plan(epochs=20, learning_rate=5.0, distill=distill, batchnorm="freeze")
    tfqat.qat_compile(qmodel, schedule, LOSS, ["accuracy"], teacher=model)
    labels = np.zeros_like(Y)  # wrong ones: they have no weight
    history = qmodel.fit(X, labels, batch_size=32, epochs=20, callbacks=tfqat.qat_callbacks(schedule), verbose=0).history
    assert outputs_distance(qmodel, model) < 0.5 * before
    assert history["distillation"][-1] < 0.5 * history["distillation"][0]


def test_distillation_evaluates_the_teacher_once_for_a_batch_and_without_quantizers() -> None:
    class Counted(layers.Layer):
        calls = tf.Variable(0)

        def call(self, inputs: Any) -> Any:
            self.calls.assign_add(1)
            return tf.identity(inputs)

    given = tf_keras.Input((8, 8, 3), name="image")
    teacher = tf_keras.Model(given, Counted()(network()(given)))
    qmodel = calibrated()
    tfqat.qat_compile(qmodel, plan(distill={}), LOSS, teacher=teacher)
    Counted.calls.assign(0)
    qmodel.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    assert int(Counted.calls) == 8


DISTILL_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({}, r"qat\.distill needs the float model to learn from: qat_compile\(\.\.\., teacher=model\)"),
    "other outputs": (
        {"teacher": lambda: tf_keras.Sequential([tf_keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])},
        r"the teacher's outputs have the shapes \[\(3,\)\], those of the quantized model \[\(4,\)\]",
    ),
    "unknown feature": (
        {"teacher": network, "features": ["relu3"]},
        r"qat\.distill\.features: .* has no layer 'relu3'; did you mean 'relu",
    ),
}


@pytest.mark.parametrize("case", DISTILL_ERRORS)
def test_distillation_errors(case: str) -> None:
    given, message = DISTILL_ERRORS[case]
    teacher = given["teacher"]() if "teacher" in given else None
    with pytest.raises(TrainingError, match=message):
        tfqat.qat_compile(calibrated(), plan(distill={"features": given.get("features", ())}), LOSS, teacher=teacher)


class OwnStep(tf_keras.Model):  # type: ignore[misc]
    """A training step that counts, and trains on half the loss."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = 0.5 * self.compute_loss(x, y, self(x, training=True))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"half": loss}


def test_a_train_step_of_the_users_own_class_is_kept() -> None:
    base = network()
    qmodel = calibrated(OwnStep(base.inputs, base.outputs))
    assert isinstance(qmodel, OwnStep)
    tfqat.qat_compile(qmodel, plan(), LOSS)
    assert set(qmodel.fit(X, Y, epochs=1, verbose=0).history) == {"half"}
    with pytest.raises(TrainingError, match=r"qat\.distill replaces the training step, and OwnStep has one of its own"):
        tfqat.qat_compile(qmodel, plan(distill={}), LOSS, teacher=base)


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}])
def test_the_options_of_compile(options: dict[str, Any]) -> None:
    reference, qmodel = trained(calibrated(), plan()), calibrated()
    trained(qmodel, plan(), **options)
    for one, other in zip(reference.get_weights(), qmodel.get_weights(), strict=True):
        assert np.asarray(one, np.float32) == pytest.approx(np.asarray(other, np.float32), rel=0.05, abs=0.02)


def test_tensorboard_gets_ranges_and_codes(tmp_path: Path) -> None:
    qmodel, schedule = calibrated(), plan()
    tfqat.qat_compile(qmodel, schedule, LOSS)
    callbacks = tfqat.qat_callbacks(schedule, tensorboard=tmp_path, tensorboard_batch=X[:8])
    qmodel.fit(X, Y, batch_size=32, epochs=2, callbacks=callbacks, verbose=0)
    files = list((tmp_path / "quantization").glob("events*"))
    tags = {value.tag for file in files for event in tf.compat.v1.train.summary_iterator(str(file)) for value in event.summary.value}
    names = list(state.handles(qmodel))
    assert tags == {f"{kind}/{name}" for kind in ("amax", "codes") for name in names}
