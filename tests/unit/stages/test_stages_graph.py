"""Measuring the exported graph: both sessions and the labels see the same batches, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import DataError
from tfqat.stages.graph import outputs_and_targets


class Reshuffled:
    """Another order in every pass; counts the passes."""

    def __init__(self, *parts: Any) -> None:
        self.passes = 0
        self._parts = parts

    def __iter__(self) -> Any:
        self.passes += 1
        order = np.random.default_rng(self.passes).permutation(len(tf.nest.flatten(self._parts)[0]))
        for chosen in np.split(order, range(7, len(order), 7)):
            yield tf.nest.map_structure(lambda value, chosen=chosen: tf.constant(value[chosen]), self._parts)


@pytest.fixture(scope="module")
def sessions(tiny_onnx: Path) -> dict[str, Any]:
    return {"onnx": runtime.session(tiny_onnx, literal=True), "onnx_deployed": runtime.session(tiny_onnx, literal=False)}


IMAGES = np.random.default_rng(3).uniform(size=(40, 12, 12, 1)).astype(np.float32)
NUMBERS = np.arange(40)


@pytest.mark.parametrize(
    "rest",
    [(NUMBERS,), (NUMBERS, np.float32(NUMBERS)), ({"a": NUMBERS, "b": (NUMBERS, NUMBERS)},)],
    ids=["labels", "labels and weights", "nested labels"],
)
def test_outputs_and_labels_of_a_reshuffling_set_belong_together(rest: tuple[Any, ...], sessions: dict[str, Any]) -> None:
    data = Reshuffled(IMAGES, *rest)
    outputs, targets = outputs_and_targets(sessions, data, name="data.test")
    assert data.passes == 1
    tf.nest.assert_same_structure(targets, rest)
    order = tf.nest.flatten(targets)[0].astype(int)
    assert sorted(order) == list(NUMBERS) != list(order)
    assert all(np.array_equal(part, order) for part in tf.nest.flatten(targets))
    for name, session in sessions.items():
        np.testing.assert_allclose(outputs[name][0], session.run(None, {"image": IMAGES[order]})[0], atol=1e-6)


def test_labels_that_cannot_be_joined(sessions: dict[str, Any]) -> None:
    batches = [(IMAGES[:2], np.zeros((2, 3))), (IMAGES[:2], np.zeros((2, 4)))]
    with pytest.raises(DataError, match=r"^data\.test: outputs or labels of different shapes cannot be joined"):
        outputs_and_targets(sessions, batches, name="data.test")
