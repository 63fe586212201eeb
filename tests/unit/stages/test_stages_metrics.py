"""Metrics of the model and of its graph on the same examples: exact figures, the limit, and why they are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfqat.recipe.schema import TrainingConfig
from tfqat.stages.metrics import GraphMetrics, Measuring

LOSS = {"name": "SparseCategoricalCrossentropy", "from_logits": True}


def training(**changes: Any) -> TrainingConfig:
    settings = {"epochs": 1, "batch_size": 64, "learning_rate": 0.1, "loss": LOSS, "metrics": ["accuracy"]}
    return TrainingConfig.model_validate({**settings, **changes})


def measured(qmodel: Any, path: Path, data: Any, *, examples: int = 400, max_drop: float = 0.0, **changes: Any) -> GraphMetrics:
    measuring = Measuring(qmodel, path, examples=examples)
    for _ in measuring.through(data):
        pass
    return measuring.result(training(**changes), max_drop=max_drop)


@pytest.fixture
def shifted(tiny_onnx: Path, tmp_path: Path) -> Path:
    """The graph with a bias that lets class 2 win everywhere."""
    model = onnx.load(tiny_onnx)
    (bias,) = (one for one in model.graph.initializer if one.name == "logits/BiasAdd.in1")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 0, 100, 0]), bias.name))
    onnx.save(model, str(tmp_path / "shifted.onnx"))
    return tmp_path / "shifted.onnx"


def test_the_same_examples_in_all_three(tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any]) -> None:
    data = list(tiny_data("validation"))  # batches of 250
    found = measured(tiny_quantized, tiny_onnx, data, max_drop=0.0026)
    labels = np.concatenate([labels for _, labels in data])[:400]
    outputs = np.concatenate([tiny_quantized(images, training=False) for images, _ in data])[:400]
    assert (found.examples, found.first, found.skipped, found.failures) == (400, "accuracy", "", ())
    assert found.keras["accuracy"] == pytest.approx(float((outputs.argmax(-1) == labels).mean()), abs=1e-6)
    assert set(found.keras) == set(found.graph) == set(found.deployed) == {"loss", "accuracy"}
    assert str(found) == (
        f"accuracy: Keras {found.keras['accuracy']:.4f}, graph {found.graph['accuracy']:.4f}, as deployed {found.deployed['accuracy']:.4f}"
    )
    assert found.to_dict()["difference"] == found.graph["accuracy"] - found.keras["accuracy"]


def test_a_graph_that_loses_accuracy(tiny_quantized: Any, shifted: Path, tiny_data: Callable[[str], Any]) -> None:
    data = list(tiny_data("validation"))
    found = measured(tiny_quantized, shifted, data, examples=100, max_drop=0.05)
    labels = data[0][1][:100].numpy()
    assert found.graph["accuracy"] == pytest.approx(float((labels == 2).mean()))
    (failure,) = found.failures
    assert failure == (
        f"accuracy: Keras {found.keras['accuracy']:.4f}, graph {found.graph['accuracy']:.4f} on 100 examples; "
        "at most 0.05 apart is allowed (--max-drop)"
    )
    assert measured(tiny_quantized, shifted, data, examples=100, max_drop=1.0).failures == ()


IMAGES = np.zeros((4, 12, 12, 1), np.float32)
SKIPPED = {
    "no labels": ([(IMAGES,)], {}, "the data has no labels; expected batches of (inputs, labels)"),
    "a metric of the user's": ([(IMAGES, np.zeros(4))], {"metrics": ["my_metric"]}, "tf_keras has no metric 'my_metric'"),
    "a loss of the user's": ([(IMAGES, np.zeros(4))], {"loss": {"name": "my_loss"}}, "tf_keras has no loss 'my_loss'"),
    "labels of another kind": ([(IMAGES, np.zeros((4, 7)))], {}, "the recipe's loss and metrics do not take these labels: "),
    "no data": ([], {}, "the data set is empty"),
}


@pytest.mark.parametrize(("data", "changes", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_skipped_with_the_reason(data: list[Any], changes: dict[str, Any], reason: str, tiny_quantized: Any, tiny_onnx: Path) -> None:
    found = measured(tiny_quantized, tiny_onnx, data, **changes)
    assert reason in found.skipped
    assert found.failures == ()
    assert str(found) == f"metrics: skipped: {found.skipped}"
    assert found.to_dict() == {"skipped": found.skipped}


def test_every_batch_is_handed_on(tiny_quantized: Any, tiny_onnx: Path) -> None:
    batches = [(IMAGES, np.zeros(4)), (IMAGES + 1, np.ones(4))]
    assert list(Measuring(tiny_quantized, tiny_onnx, examples=2).through(batches)) == batches


@pytest.mark.parametrize(
    ("value", "examples", "allowed"),
    [(0.93, 10_000, 0.0002), (0.93, 1000, 0.002), (2500.0, 10_000, 0.5), (-40.0, 100, 0.8)],
)
def test_what_a_metric_may_lose_by_default(value: float, examples: int, allowed: float) -> None:
    from tfqat.stages.metrics import allowed_drop

    assert allowed_drop(value, examples) == pytest.approx(allowed)
