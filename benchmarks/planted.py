"""Small networks with one layer that int8 hurts more than the others, for benchmarks and tests of sensitivity analysis.

Each returns (model, names of the planted layers). Weights are random with a fixed seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras
from tf_keras import layers

WIDTH = 24
OFFSET = 40.0


def bottleneck(seed: int = 0) -> tuple[Any, tuple[str, ...]]:
    """Everything goes through one channel, which varies little around a large value that the next layer takes away again."""
    x = image = tf_keras.Input((28, 28, 1), name="image")
    x = _block(x, WIDTH, "conv1", strides=2)
    x = _block(x, WIDTH, "conv2")
    x = _block(x, 1, "narrow", relu=False)
    x = _block(x, WIDTH, "wide", size=1)
    x = _block(x, WIDTH, "conv3", strides=2)
    model = _head(image, x)
    _randomize(model, seed)
    gamma, beta, mean, variance = model.get_layer("narrow_bn").get_weights()
    model.get_layer("narrow_bn").set_weights([gamma, beta + OFFSET, mean, variance])
    gamma, beta, mean, variance = model.get_layer("wide_bn").get_weights()
    model.get_layer("wide_bn").set_weights([gamma, beta, mean + OFFSET * model.get_layer("wide").get_weights()[0].sum((0, 1, 2)), variance])
    return model, ("wide",)


def outlier_channel(seed: int = 0) -> tuple[Any, tuple[str, ...]]:
    """One channel has 200 times the range of the others, and the layer behind it weighs it 200 times less: the rest gets few codes."""
    x = image = tf_keras.Input((28, 28, 1), name="image")
    for number in range(1, 6):
        x = _block(x, WIDTH, f"conv{number}", strides=2 if number in (1, 4) else 1)
    model = _head(image, x)
    _randomize(model, seed)
    _scale_channel(model, "conv2", "conv3", channel=3, factor=200.0)
    return model, ("conv3",)


def regression_head(seed: int = 0) -> tuple[Any, tuple[str, ...]]:
    """Beside the classes a distance: a sum of features, two of which are large and nearly cancel."""
    x = image = tf_keras.Input((28, 28, 1), name="image")
    for number in range(1, 5):
        x = _block(x, WIDTH, f"conv{number}", strides=2 if number in (1, 3) else 1)
    features = layers.GlobalAveragePooling2D(name="pool")(x)
    classes = layers.Dense(10, name="classes")(features)
    distance = layers.Dense(1, name="distance")(features)
    model = tf_keras.Model(image, [classes, distance])
    _randomize(model, seed)
    kernel, bias = model.get_layer("distance").get_weights()
    kernel[0], kernel[1] = 30.0, -30.0 * np.float32(1.02)
    model.get_layer("distance").set_weights([kernel, bias])
    return model, ("distance",)


def plain(seed: int = 0, *, units: int = 7) -> tuple[Any, tuple[str, ...]]:
    """Convolutions of which two have weights that 4 bits cannot hold: one weight of each of their channels is 12 times the others."""
    x = image = tf_keras.Input((28, 28, 1), name="image")
    for number in range(1, units):
        x = _block(x, WIDTH, f"conv{number}", strides=2 if number in (1, 3) else 1)
    model = _head(image, x)
    _randomize(model, seed)
    for name in ("conv2", "conv4"):
        kernel = model.get_layer(name).get_weights()[0]
        kernel[1, 1, 0, :] *= 12.0
        model.get_layer(name).set_weights([kernel])
    return model, ("conv2", "conv4")


def _block(x: Any, channels: int, name: str, *, strides: int = 1, size: int = 3, relu: bool = True) -> Any:
    x = layers.Conv2D(channels, size, strides, "same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _head(image: Any, x: Any) -> Any:
    return tf_keras.Model(image, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D(name="pool")(x)))


def _randomize(model: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            kernel = layer.get_weights()[0]
            fan_in = int(np.prod(kernel.shape[:-1]))
            values = generator.normal(0.0, np.sqrt(2.0 / fan_in), kernel.shape).astype(np.float32)
            layer.set_weights([values, *layer.get_weights()[1:]])


def _scale_channel(model: Any, source: str, reader: str, *, channel: int, factor: float) -> None:
    """Multiply a channel behind `source` and divide it again in the weights of `reader`."""
    norm = model.get_layer(f"{source}_bn")
    gamma, beta, *rest = norm.get_weights()
    gamma[channel] *= factor
    beta[channel] *= factor
    norm.set_weights([gamma, beta, *rest])
    kernel = model.get_layer(reader).get_weights()[0]
    kernel[:, :, channel, :] /= factor
    model.get_layer(reader).set_weights([kernel])
