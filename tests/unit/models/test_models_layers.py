"""Layers of our own: what they compute, and that they save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from tfqat.models.layers import CUSTOM_OBJECTS, MatMul


def product(transpose_b: bool) -> Any:
    first, second = tf_keras.Input((2, 3, 4)), tf_keras.Input((2, 5, 4) if transpose_b else (2, 4, 5))
    return tf_keras.Model([first, second], MatMul(transpose_b=transpose_b, name="product")([first, second]))


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul(transpose_b: bool, tmp_path: Path) -> None:
    model = product(transpose_b)
    model.save(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    first, second = rng.integers(-5, 5, (3, 2, 3, 4)), rng.integers(-5, 5, (3, 2, 4, 5))
    given = [first.astype(np.float32), (second.swapaxes(2, 3) if transpose_b else second).astype(np.float32)]
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    for either in (model, loaded):
        assert either.output_shape == (None, 2, 3, 5)
        assert np.array_equal(either(given), first @ second)


def test_custom_objects_are_named_as_files_name_them() -> None:
    assert {name: tf_keras.saving.get_registered_name(kind) for name, kind in CUSTOM_OBJECTS.items()} == {
        name: name for name in CUSTOM_OBJECTS
    }
    assert set(CUSTOM_OBJECTS) == {"tfqat>MatMul", "tfqat>ChannelReLU"}
