"""The whole road, float model to engine, of small architectures always, and of every architecture and package in the slow tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
architectures = importlib.import_module("architectures")
sys.path.pop(0)
zoo = architectures.zoo

SMALL = [("audio", "keras"), ("twins", "tf_keras"), ("repvgg", "keras")]
SAMPLE = [("MobileNetV2", "keras"), ("EfficientNetB0", "tf_keras")]


def has_engine() -> bool:
    from tfqat.engines import tensorrt_rtx

    return tensorrt_rtx.is_available()[0]


@pytest.mark.parametrize(("name", "package"), SMALL)
def test_a_small_network_comes_through_with_nothing_out_of_its_limit(name: str, package: str) -> None:
    row = architectures.run_in_process(name, package, engine=has_engine())
    assert row.reasons == []
    assert row.local[0] >= 0.9999
    assert row.float_products == ([] if has_engine() else None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), SAMPLE)
def test_a_sample_of_the_large_ones_comes_through(name: str, package: str) -> None:
    row = architectures.run_in_process(name, package, engine=has_engine())
    assert row.reasons == []


@pytest.mark.sweep
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("name", list(zoo.ARCHITECTURES))
def test_every_architecture_comes_through(name: str, package: str) -> None:
    row = architectures.run_in_process(name, package, engine=has_engine())
    assert row.reasons == []


def test_an_error_ends_a_run_and_names_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tfqat

    def refuse(*_: object) -> None:
        raise ValueError("no such layer")

    monkeypatch.setattr(tfqat, "plan", refuse, raising=False)
    row = architectures.run("audio", "tf_keras", tmp_path)
    assert row.reasons == ["plan: ValueError: no such layer"]
    assert (row.counts, row.local) == (None, None)
    assert architectures.line(row).endswith("FAIL")


def test_random_weights_are_the_same_for_a_seed_and_keep_activations_in_range() -> None:
    import tf_keras

    first, second, other = (zoo.build("repvgg", tf_keras, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one, two) for one, two in zip(first.get_weights(), second.get_weights(), strict=True))
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])
    logits = np.asarray(first(zoo.batch(first, 8, 9), training=False))
    assert 0.2 < logits.std() < 5.0
    gammas = np.concatenate([layer.gamma.numpy() for layer in first.layers if hasattr(layer, "gamma")])
    assert 0.05 < np.mean(gammas < 0) < 0.2
    assert (np.abs(gammas).min() >= 0.5, np.abs(gammas).max() <= 1.5) == (True, True)


def test_the_same_weights_come_from_both_packages() -> None:
    import keras
    import tf_keras

    models = [zoo.build("audio", package) for package in (keras, tf_keras)]
    inputs = zoo.batch(models[0], 4, 9)
    one, two = (np.asarray(model(inputs, training=False)) for model in models)
    assert np.abs(one - two).max() <= 1e-4 * np.abs(one).max()
