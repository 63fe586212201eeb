"""A float model that does no better than chance is told of; one that has learnt anything is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tfqat.stages import quantized_model


def warnings_of(accuracy: float, *, classes: int = 10, examples: int = 1000, metric: str = "accuracy") -> list[str]:
    said: list[str] = []
    run: Any = SimpleNamespace(
        inputs=SimpleNamespace(
            float_model=SimpleNamespace(outputs=[SimpleNamespace(shape=(None, classes))]),
            test=SimpleNamespace(name="data.test", examples=examples, batches=1),
        ),
        evaluate=lambda *arguments: {"loss": 2.3, metric: accuracy},
        measured={},
        first_metric=metric,
        warn=said.append,
    )
    run.measure = lambda name, values: run.measured.update({name: values})
    quantized_model.evaluate_float(run)
    return said


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.12])
def test_at_chance(accuracy: float) -> None:
    (text,) = warnings_of(accuracy)
    assert text.startswith(f"the float model is no better than guessing: its accuracy on data.test is {accuracy:.4g}, and ")
    assert "guessing gives 0.1. Check" in text


def test_what_is_chance_depends_on_classes_and_examples() -> None:
    assert warnings_of(0.13) == []
    assert warnings_of(0.13, examples=100)
    assert warnings_of(0.13, classes=5)
    assert warnings_of(0.5, classes=1) and not warnings_of(0.6, classes=1)
    assert warnings_of(0.1, metric="mean_absolute_error") == []
