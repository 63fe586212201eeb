"""Small random networks of several kinds, and a way to give their quantizers ranges without the calibration package."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def randomized(model: Any, seed: int = 0) -> Any:
    """The model with random weights; variances of BatchNorm are positive."""
    rng = np.random.default_rng(seed)
    named = [(weight.name, weight.shape) for weight in model.weights]
    model.set_weights([rng.normal(0, 0.5, shape) ** (2 if "variance" in name else 1) for name, shape in named])
    return model


def residual(seed: int = 0) -> Any:
    """stem, two residual blocks, pool, Dense."""
    import tf_keras
    from tf_keras import layers

    x = image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.ReLU(name="stem_relu")(layers.Conv2D(6, 3, padding="same", name="stem")(x))
    for block in ("a", "b"):
        shortcut = x
        x = layers.ReLU(name=f"{block}1_relu")(layers.Conv2D(6, 3, padding="same", name=f"{block}1")(x))
        x = layers.BatchNormalization(name=f"{block}2_bn")(layers.Conv2D(6, 3, padding="same", use_bias=False, name=f"{block}2")(x))
        x = layers.ReLU(name=f"{block}_relu")(layers.Add(name=f"{block}_add")([x, shortcut]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomized(tf_keras.Model(image, layers.Dense(5, name="fc")(x), name="residual"), seed)


def mobile(seed: int = 0) -> Any:
    """Inverted residual: expand, depthwise, project, Add; then padding read by two convolutions, Concat, pool, Dropout, Dense."""
    import tf_keras
    from tf_keras import layers

    image = tf_keras.Input((8, 8, 3), name="image")
    shortcut = layers.ReLU(6.0, name="stem_relu")(layers.Conv2D(4, 3, padding="same", name="stem")(image))
    x = layers.ReLU(6.0, name="expand_relu")(layers.Conv2D(8, 1, name="expand")(shortcut))
    x = layers.ReLU(6.0, name="dw_relu")(layers.DepthwiseConv2D(3, padding="same", name="dw")(x))
    x = layers.Add(name="add")([layers.Conv2D(4, 1, name="project")(x), shortcut])
    padded = layers.ZeroPadding2D(1, name="pad")(layers.ReLU(6.0, name="add_relu")(x))
    left, right = (layers.ReLU(name=f"{side}_relu")(layers.Conv2D(4, 3, name=side)(padded)) for side in ("left", "right"))
    x = layers.Conv2D(6, 1, name="head")(layers.Concatenate(name="concat")([left, right]))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="head_relu")(x))
    x = layers.Dense(5, name="fc")(layers.Dropout(0.2, name="dropout")(x))
    return randomized(tf_keras.Model(image, x, name="mobile"), seed)


def chain(seed: int = 0) -> Any:
    """Three Dense layers and nothing else: linear."""
    import tf_keras
    from tf_keras import layers

    x = given = tf_keras.Input((12,), name="x")
    for name, size in (("first", 10), ("second", 8), ("third", 6)):
        x = layers.Dense(size, name=name)(x)
    return randomized(tf_keras.Model(given, x, name="chain"), seed)


@pytest.fixture(scope="session")
def networks() -> SimpleNamespace:
    """Functions seed -> a new float model: `residual`, `mobile`, `chain`; and `randomized(model, seed)`."""
    return SimpleNamespace(residual=residual, mobile=mobile, chain=chain, randomized=randomized)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """24 images that `residual` and `mobile` take."""
    return np.random.default_rng(1).normal(size=(24, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def calibrated() -> Callable[..., Any]:
    """calibrated(model, inputs, quantization) -> a quantized model, each of its ranges the largest magnitude that `inputs` give."""

    def calibrated(model: Any, inputs: Any, quantization: Any = "selective") -> Any:
        import tf_keras

        import tfqat
        from tfqat import numerics
        from tfqat.quantize import state

        qmodel = tfqat.quantize_model(model, quantization)
        tensors = state.activation_inputs(qmodel)
        values = tf_keras.Model(qmodel.inputs, list(tensors.values()))(inputs) if tensors else []
        found = {
            name: numerics.weight_amax(handle.weight, handle.point.spec).numpy()
            for name, handle in state.handles(qmodel).items()
            if handle.weight is not None
        }
        found |= {name: np.max(np.abs(value)) for name, value in zip(tensors, values if len(tensors) > 1 else [values], strict=True)}
        for point in (handle.point for handle in state.handles(qmodel).values()):
            if point.scale_group:
                found[point.id] = max(found[other.id] for other in members(qmodel, point.scale_group))
        state.set_ranges(qmodel, found)
        return qmodel

    return calibrated


def members(qmodel: Any, group: str) -> list[Any]:
    from tfqat.quantize import state

    return [handle.point for handle in state.handles(qmodel).values() if handle.point.scale_group == group]
