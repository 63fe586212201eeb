"""A small network that has a point of every kind, with random weights, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def build() -> Any:
    import tf_keras
    from tf_keras import layers

    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    split = layers.ReLU(6.0, name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(split)
    x = layers.ReLU(name="dw_relu")(x)
    x = layers.Conv2D(6, 1, name="project")(x)
    x = layers.Add(name="add")([x, split])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(5, name="fc")(x), name="net")


@pytest.fixture
def net() -> Any:
    """The float model; a new one for each test."""
    model = build()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, value.shape) ** (2 if "variance" in name else 1) for name, value in named(model)])
    return model


def named(model: Any) -> list[tuple[str, np.ndarray]]:
    return [(weight.name, weight.numpy()) for weight in model.weights]


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def with_ranges(images: np.ndarray) -> Callable[[Any], Any]:
    """Give each quantizer of a model its largest magnitude on `images`, without the calibration package; returns the model."""

    def with_ranges(qmodel: Any) -> Any:
        import tf_keras

        from tfqat import numerics
        from tfqat.quantize import state

        inputs = state.activation_inputs(qmodel)
        seen = dict(zip(inputs, tf_keras.Model(qmodel.inputs, list(inputs.values()))(images), strict=True))
        found = {
            name: numerics.weight_amax(handle.weight, handle.point.spec).numpy()
            if handle.weight is not None
            else np.max(np.abs(seen[name].numpy()))
            for name, handle in state.handles(qmodel).items()
        }
        state.set_ranges(qmodel, found)
        return qmodel

    return with_ranges
