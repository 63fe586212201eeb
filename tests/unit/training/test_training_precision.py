"""Mixed precision: layers compute in 16 bits while `fit` trains; fake quantization, variables, evaluation and export are float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 8, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 4, 128)
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
POLICIES = {"mixed_bfloat16": tf.bfloat16, "mixed_float16": tf.float16}


def network(policy: str | None = None) -> Any:
    tf_keras.utils.set_random_seed(1)
    given = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="conv1", dtype=policy)(given)
    x = layers.ReLU(6.0, name="relu1", dtype=policy)(layers.BatchNormalization(name="bn1", dtype=policy)(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv2", dtype=policy)(x)
    x = layers.ReLU(name="relu2", dtype=policy)(layers.Add(name="add", dtype=policy)([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool", dtype=policy)(x)
    x = layers.Dense(8, activation="relu", name="hidden", dtype=policy)(x)
    return tf_keras.Model(given, layers.Dense(4, name="logits", dtype="float32")(x))


def calibrated(model: Any) -> Any:
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [X[:64], X[64:]], batches=2)
    return qmodel


def plan(**qat: Any) -> Any:
    return tfqat.qat_plan({"epochs": 20, "batch_size": 64, "learning_rate": 20.0, "steps_per_epoch": 4}, qat)


def fitted(qmodel: Any, **qat: Any) -> Any:
    chosen = plan(**qat)
    tfqat.qat_compile(qmodel, chosen, LOSS, ["accuracy"])
    return qmodel.fit(X, Y, batch_size=32, shuffle=False, epochs=chosen.epochs, callbacks=tfqat.qat_callbacks(chosen), verbose=0)


def operations(qmodel: Any) -> list[tf.Operation]:
    """Those of the training step."""
    data = iter(tf.data.Dataset.from_tensor_slices((X, Y)).batch(32))
    graph = qmodel.make_train_function(force=True).get_concrete_function(data).graph
    functions = [graph, *(graph._get_function(name).graph for name in graph._functions)]
    return [operation for one in functions for operation in one.get_operations()]


@pytest.mark.parametrize("policy", POLICIES)
def test_products_in_16_bits_and_codes_in_32(policy: str) -> None:
    qmodel = calibrated(network())
    tfqat.qat_compile(qmodel, plan(precision=policy), LOSS, ["accuracy"])
    found = operations(qmodel)
    convolutions = [operation for operation in found if operation.type == "Conv2D"]
    rounds = [operation for operation in found if operation.type == "Round"]
    assert len(convolutions) == 2 and len(rounds) >= 7
    assert {operation.inputs[index].dtype for operation in convolutions for index in (0, 1)} == {POLICIES[policy]}
    assert {operation.inputs[0].dtype for operation in rounds} == {tf.float32}
    assert all(layer.compute_dtype == "float32" for layer in qmodel._flatten_layers())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("amax", [{}, {"weights": "learned", "activations": "learned"}], ids=["frozen", "learned"])
def test_it_trains_as_float32_does_to_the_digits_of_16_bits(policy: str, amax: dict[str, str]) -> None:
    before, full, mixed = calibrated(network()), calibrated(network()), calibrated(network())
    history = fitted(full, amax=amax).history
    assert fitted(mixed, amax=amax, precision=policy).history["loss"] == pytest.approx(history["loss"], rel=0.02)
    assert all(weight.dtype in (tf.float32, tf.bool) for weight in mixed.weights)
    start, end, other = (model.get_layer("conv1").layer.kernel.numpy() for model in (before, full, mixed))
    moved, apart = np.max(np.abs(start - end)), np.max(np.abs(other - end))
    assert moved > 0.01 and apart < 0.3 * moved


def test_what_is_evaluated_exported_and_proven_is_float32(tmp_path: Path) -> None:
    qmodel = calibrated(network())
    fitted(qmodel, precision="mixed_bfloat16")
    assert np.array_equal(qmodel.predict(X, verbose=0), calibrated_like(qmodel).predict(X, verbose=0))
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", [X], examples=128).passed


def calibrated_like(qmodel: Any) -> Any:
    """The same weights in a model that was never trained."""
    other = tfqat.quantize_model(network())
    other.set_weights(qmodel.get_weights())
    plain = plan()
    return tfqat.qat_compile(other, plain, LOSS, ["accuracy"])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_of_mixed_precision_is_taken_in_float32_and_gets_its_weights_back(policy: str) -> None:
    mixed, full = network(policy), network()
    full.set_weights(mixed.get_weights())
    qmodel = calibrated(mixed)
    assert {layer.compute_dtype for layer in qmodel.layers} == {"float32"}
    assert np.array_equal(tfqat.strip(qmodel)(X).numpy(), full(X).numpy())
    fitted(qmodel, precision=policy)
    mine = tfqat.strip(qmodel, like=mixed)
    assert mine.get_layer("conv1").dtype_policy.name == policy
    assert np.array_equal(mine.get_layer("conv1").kernel.numpy(), qmodel.get_layer("conv1").layer.kernel.numpy())
    assert not np.array_equal(mine.get_layer("conv1").kernel.numpy(), mixed.get_layer("conv1").kernel.numpy())


def test_a_global_policy_changes_nothing(tmp_path: Path) -> None:
    expected = calibrated(network())
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = network()
        model.set_weights(tfqat.strip(expected).get_weights())
        qmodel = calibrated(model)
        assert tf_keras.mixed_precision.global_policy().name == "mixed_bfloat16"
        assert all(np.array_equal(one, other) for one, other in zip(qmodel.get_weights(), expected.get_weights(), strict=True))
        tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
        assert tfqat.verify(qmodel, tmp_path / "model.onnx", [X], examples=64).passed
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def test_a_loss_scale_that_is_too_large_skips_steps_and_training_goes_on() -> None:
    """float16: the first scale is 2^15; what overflows halves it, and changes nothing else."""
    qmodel = calibrated(network())
    chosen = plan(precision="mixed_float16")
    tfqat.qat_compile(qmodel, chosen, LOSS, ["accuracy"])
    qmodel.optimizer._loss_scale.current_loss_scale.assign(2.0**40)
    qmodel.fit(X, Y, batch_size=32, shuffle=False, epochs=chosen.epochs, callbacks=tfqat.qat_callbacks(chosen), verbose=0)
    assert int(qmodel.optimizer.iterations.numpy()) == 8  # Keras counts the steps that it leaves out
    assert float(qmodel.optimizer.loss_scale.numpy()) < 2.0**40
    assert all(np.all(np.isfinite(weight)) for weight in qmodel.get_weights())
