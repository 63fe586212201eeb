"""The estimate of the fast method: exact where the network is linear, the same order where it is not, right about what is planted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.analysis.bench import Bench, Change
from tfqat.analysis.executors import InProcess
from tfqat.analysis.fast import fast_scores
from tfqat.analysis.measure import Measurements
from tfqat.analysis.meters import OutputError
from tfqat.analysis.subject import Subject
from tfqat.errors import DataError, ModelError

X = np.random.default_rng(4).normal(size=(2048, 12)).astype(np.float32)
W4 = {"weights": {"num_bits": 4}}


def measured(qmodel: Any, batches: list[Any]) -> dict[str, float]:
    """The output error with each unit alone quantized."""
    bench = Bench(qmodel)
    measurements = Measurements(bench=bench, batches=batches, meter=OutputError(), executor=InProcess(bench, batches))
    changes: list[Change] = [(unit.name, "planned") for unit in bench.units]
    found = measurements.sweep(changes, {}, others="float")
    return {unit.name: found[unit.name, "planned"] for unit in bench.units}


def spearman(one: dict[str, float], other: dict[str, float]) -> float:
    ranks = [np.argsort(np.argsort([values[name] for name in one])) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_in_a_linear_network_it_converges_to_what_is_measured(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    """2,048 examples and 4 probes: the standard deviation of the estimate is at most sqrt(2 / 8192) = 1.6%."""
    qmodel = calibrated(networks.chain(), X, W4)
    exact, found = measured(qmodel, [X]), fast_scores(Subject(qmodel), [X], probes=4)
    assert set(found) == {"first", "second", "third"}
    assert found == pytest.approx(exact, rel=0.06)
    assert min(exact.values()) > 1e-4


def test_several_outputs_count_alike_whatever_their_size(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    given = tf_keras.Input((12,), name="x")
    x = layers.Dense(8, name="body")(given)
    model = networks.randomized(tf_keras.Model(given, [layers.Dense(3, name="large")(x), layers.Dense(5, name="small")(x)]))
    model.get_layer("large").kernel.assign(1000 * model.get_layer("large").kernel)
    qmodel = calibrated(model, X, W4)
    assert fast_scores(Subject(qmodel), [X], probes=4) == pytest.approx(measured(qmodel, [X]), rel=0.06)


def test_batches_count_by_their_examples(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    """Of two batches the small one has much the larger error, and the same signal: the whole error is the mean over examples."""
    qmodel = calibrated(networks.chain(), X, W4)
    sizes = (1536, 512)
    batches = [X[: sizes[0]], X[sizes[0] :]]
    each = [measured(qmodel, [batch]) for batch in batches]
    expected = {name: sum(size * found[name] for size, found in zip(sizes, each, strict=True)) / 2048 for name in each[0]}
    calls: list[int] = []
    found = fast_scores(Subject(qmodel), batches, probes=4, advance=lambda: calls.append(1))
    assert found == pytest.approx(expected, rel=0.06)
    assert len(calls) == 2


def test_batches_of_different_signal_weigh_as_in_the_measured_error(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    model = networks.chain()
    for layer in model.layers[1:]:
        layer.bias.assign(tf.zeros_like(layer.bias))
    qmodel, batches = calibrated(model, X, W4), [X[:1024], X[1024:] / 100]
    assert fast_scores(Subject(qmodel), batches, probes=4) == pytest.approx(measured(qmodel, batches), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_in_a_residual_network_it_ranks_as_measured(
    seed: int, networks: SimpleNamespace, images: np.ndarray, calibrated: Callable[..., Any]
) -> None:
    overrides = [{"match": name, "weights": {"num_bits": bits}} for name, bits in (("stem", 6), ("a1", 3), ("b2", 4), ("fc", 5))]
    qmodel = calibrated(networks.residual(seed), images, {"overrides": overrides})
    assert spearman(fast_scores(Subject(qmodel), [images], probes=4), measured(qmodel, [images])) >= 0.9


def bottleneck() -> Any:
    """Eight channels through one, in 4 bits; the other layers are wide."""
    x = given = tf_keras.Input((12,), name="x")
    for name, size in (("wide1", 32), ("narrow", 1), ("wide2", 32), ("last", 4)):
        x = layers.Dense(size, activation="relu" if name == "wide1" else None, name=name)(x)
    return tf_keras.Model(given, x)


def outlier() -> Any:
    """One channel of what `victim` reads is 200 times the others, and hardly counts."""
    x = given = tf_keras.Input((12,), name="x")
    for name in ("one", "source", "victim", "last"):
        x = layers.Dense(12, name=name)(x)
    return tf_keras.Model(given, x)


def planted(case: str, networks: SimpleNamespace) -> tuple[Any, Any, str]:
    if case == "outlier channel":
        model = networks.randomized(outlier())
        kernel, after = model.get_layer("source").kernel, model.get_layer("victim").kernel
        factors = np.array([200.0, *[1.0] * 11], np.float32)
        kernel.assign(kernel * factors)
        after.assign(after / factors[:, None])
        return model, "selective", "victim"
    if case == "2-bit weights":
        return networks.chain(), {"overrides": [{"match": "second", "weights": {"num_bits": 2}}]}, "second"
    return networks.randomized(bottleneck()), {"overrides": [{"match": "narrow", "weights": {"num_bits": 4}}]}, "narrow"


@pytest.mark.parametrize("case", ["bottleneck", "outlier channel", "2-bit weights"])
def test_planted_layers_come_first(case: str, networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    model, quantization, sensitive = planted(case, networks)
    qmodel = calibrated(model, X[:256], quantization)
    found, exact = fast_scores(Subject(qmodel), [X[:256]]), measured(qmodel, [X[:256]])
    assert max(found, key=found.__getitem__) == max(exact, key=exact.__getitem__) == sensitive
    assert found[sensitive] > 3 * sorted(found.values())[-2]


def test_the_same_seed_gives_the_same_scores_and_the_model_stays_as_it_is(
    networks: SimpleNamespace, calibrated: Callable[..., Any]
) -> None:
    qmodel = calibrated(networks.chain(), X[:64])
    before = qmodel(X[:64]).numpy()
    subject = Subject(qmodel)
    once, again, other = (fast_scores(subject, [X[:64]], seed=seed) for seed in (0, 0, 1))
    assert once == again != other
    assert np.array_equal(qmodel(X[:64]).numpy(), before)


def test_a_subject_computes_in_float_and_as_planned(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    model, reference = networks.chain(), networks.chain()
    qmodel = calibrated(model, X[:64], W4)
    reference.get_layer("second").bias.assign_add(tf.ones_like(reference.get_layer("second").bias))
    for like, expected in ((None, model), (reference, reference)):
        subject = Subject(qmodel, like)
        assert np.array_equal(subject.float_outputs(X[:64])[0].numpy(), expected(X[:64]).numpy())
        assert subject.planned_outputs(X[:64])[0].numpy() == pytest.approx(qmodel(X[:64]).numpy(), rel=1e-4, abs=1e-4)


def test_nan_is_an_error(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    images = X[:64].copy()
    images[3, 0] = np.nan
    with pytest.raises(DataError, match="sensitivity: output_error is nan: look at the labels and at the outputs of the model"):
        tfqat.sensitivity(calibrated(networks.chain(), X[:64], W4), [images])


def test_a_float_model_of_other_layers_is_refused(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    given = tf_keras.Input((12,), name="x")
    other = tf_keras.Model(given, layers.Dense(4, name="first")(given))
    with pytest.raises(ModelError, match="the float model given as `like` has no layer 'second'"):
        Subject(calibrated(networks.chain(), X[:64]), other)


def test_a_layer_that_the_outputs_depend_on_by_no_gradient_scores_zero(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    given = tf_keras.Input((12,), name="x")
    rounded = Sign(name="sign")(layers.Dense(4, name="before")(given))
    model = networks.randomized(tf_keras.Model(given, layers.Dense(3, name="after")(rounded)))
    found = fast_scores(Subject(calibrated(model, X[:64], W4)), [X[:64]])
    assert found["before"] == 0.0 < found["after"]


class Sign(layers.Layer):  # type: ignore[misc]
    """sign(x), whose gradient is zero."""

    def call(self, inputs: Any) -> Any:
        return tf.sign(inputs)


def test_a_network_of_integers(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    words = tf_keras.Input((6,), dtype="int32", name="words")
    x = layers.Flatten(name="flat")(layers.Dense(4, name="first")(layers.Embedding(9, 5, name="embedding")(words)))
    model = networks.randomized(tf_keras.Model(words, layers.Dense(3, name="second")(x)))
    given = np.random.default_rng(0).integers(0, 9, (256, 6)).astype(np.int32)
    qmodel = calibrated(model, given, W4)
    assert fast_scores(Subject(qmodel), [given], probes=4) == pytest.approx(measured(qmodel, [given]), rel=0.15)
