"""The main job on every kind of data that it takes: what comes out does not depend on how the data is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfqat.errors import TrainingError

KINDS_PY = '''
import tensorflow as tf

from data import arrays, calibration, train, validation


def as_generator(data):
    """No length, no shapes."""
    return tf.data.Dataset.from_generator(lambda: iter(data), output_types=(tf.float32, tf.int64))


def train_generator():
    return as_generator(train())


def validation_generator():
    return as_generator(validation())


def calibration_generator():
    return as_generator(calibration())


def reshuffled():
    return validation().unbatch().shuffle(1000, reshuffle_each_iteration=True).batch(90)


def train_endless():
    return train().repeat()


def ones(images, labels):
    return images, labels, tf.ones_like(labels, tf.float32)


def train_weighted():
    return train().map(ones)


def validation_weighted():
    return validation().map(ones)


def validation_999():
    return validation().unbatch().take(999).batch(100)


def by_name(images, labels):
    return images, {"logits": labels, "parity": labels % 2}


def in_order(images, labels):
    return images, (labels, labels % 2)


def train_two():
    return train().map(in_order)


def two_in_order():
    return validation().map(in_order)


def two_by_name():
    return validation().map(by_name)
'''


@pytest.fixture(scope="module")
def project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("kinds") / "project"
    shutil.copytree(tiny_project, copy, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (copy / "kinds.py").write_text(KINDS_PY)
    return copy


def run(project: Path, out: Path, *overrides: str) -> Any:
    import tfqat

    return tfqat.run(project / "tiny.yaml", overrides=["compile.enabled=false", *overrides], out=out / "runs")


def test_generators_without_a_length_or_shapes(project: Path, tmp_path: Path, tiny_run: Any) -> None:
    splits = ("train", "validation", "calibration")
    result = run(project, tmp_path, *(f"data.{split}=kinds.py:{split}_generator" for split in splits))
    assert result.metrics["examples"] == 1000
    for stage in ("float", "ptq", "qat", "onnx"):
        assert result.metrics[stage] == pytest.approx(tiny_run.metrics[stage], abs=1e-5), stage


def test_a_test_set_that_reshuffles(project: Path, tmp_path: Path, tiny_run: Any) -> None:
    result = run(project, tmp_path, "data.test=kinds.py:reshuffled", "ptq_only=true")
    for stage in ("float", "ptq", "onnx"):
        expected = tiny_run.metrics["ptq" if stage == "onnx" else stage]["accuracy"]
        assert result.metrics[stage]["accuracy"] == expected, stage
    assert abs(result.metrics["onnx_deployed"]["accuracy"] - result.metrics["onnx"]["accuracy"]) < 0.05


def test_endless_training_data_with_its_steps(project: Path, tmp_path: Path) -> None:
    result = run(project, tmp_path, "data.train=kinds.py:train_endless", "training.steps_per_epoch=5")
    assert "Fine-tune 1 epochs of 5 steps" in (result.directory / "run.log").read_text()
    assert result.qat is not None


def test_sample_weights_of_one_change_nothing(project: Path, tmp_path: Path, tiny_run: Any) -> None:
    result = run(project, tmp_path, "data.train=kinds.py:train_weighted", "data.validation=kinds.py:validation_weighted")
    for stage in ("float", "ptq", "qat", "onnx"):
        assert result.metrics[stage] == pytest.approx(tiny_run.metrics[stage], abs=1e-5), stage


@pytest.mark.parametrize("labels", ["two_in_order", "two_by_name"])
def test_two_outputs_and_two_losses(labels: str, project: Path, tmp_path: Path) -> None:
    """Fine-tuned at a rate that ruins the model, so that the calibrated one is loaded again and exported."""
    import tf_keras

    import tfqat

    model = tfqat.load_model(project / "float.keras")
    parity = tf_keras.layers.Dense(2, name="parity")(model.get_layer("pool").output)
    tf_keras.Model(model.input, [model.output, parity]).save(project / "two.keras")
    data = ["data.train=kinds.py:train_two", f"data.validation=kinds.py:{labels}"]
    result = run(project, tmp_path, "model.source=two.keras", "training.learning_rate=30", *data)
    assert (result.exported, result.qat.monitor) == ("ptq", "val_logits_accuracy")
    names = {"loss", "logits_loss", "parity_loss", "logits_accuracy", "parity_accuracy"}
    for stage in ("float", "ptq", "qat", "onnx", "onnx_deployed"):
        assert set(result.metrics[stage]) == names, stage
    for name in names:
        assert result.metrics["onnx"][name] == pytest.approx(result.metrics["ptq"][name], abs=1e-3), name
    accuracies = [result.metrics["onnx"][f"{output}_accuracy"] for output in ("logits", "parity")]
    assert accuracies[0] > 0.6 and abs(accuracies[0] - accuracies[1]) > 0.05  # each output has its own labels


def test_fine_tuning_has_to_beat_the_calibrated_model_as_it_was_measured(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded, the baseline of 999 examples would lie below the value that it draws with."""
    from tfqat.stages import together

    baselines: list[float] = []

    def record(*_: Any, baseline: float, **__: Any) -> Any:
        baselines.append(baseline)
        raise TrainingError("seen enough")

    monkeypatch.setattr(together, "fine_tune", record)
    own = "data.validation=kinds.py:validation_999"
    for folder, overrides in {"shared": [own], "apart": [own, "data.test=data.py:validation"]}.items():
        with pytest.raises(TrainingError):
            run(project, tmp_path / folder, *overrides)
    (directory,) = (tmp_path / "shared" / "runs").iterdir()
    rounded = json.loads((directory / "metrics.json").read_text())["ptq"]["accuracy"]
    correct = round(rounded * 999)
    assert rounded == round(correct / 999, 6)
    assert baselines == [float(np.float32(correct) / np.float32(999))] * 2
    assert baselines[0] != rounded
