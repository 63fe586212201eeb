"""A small single-stage detector without anchors: a backbone of stride 8 and two heads, about 136 k parameters.

The heads are RetinaNet's (Lin et al. 2017), towers without BatchNorm. What they answer is FCOS's (Tian et al. 2019): for each cell of the
grid a score per class and four distances, here in pixels.
"""

from __future__ import annotations

import math
from typing import Any

import tf_keras as keras
from tf_keras import layers

SIZE, CLASSES = 96, 10
PRIOR = 0.01  # the score that each class starts with, so that the many empty cells do not swamp the first steps (Lin et al. 2017)
FIRST_DISTANCE = 12.0  # pixels


def build() -> keras.Model:
    """The network: images (batch, 96, 96, 1) in [0, 1] -> `classes` (batch, 12, 12, 10), probabilities, and `boxes` (batch, 12, 12, 4)."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    x = _conv_bn(image, 16, 3, strides=2, name="stem")
    x = _conv_bn(x, 32, 3, strides=2, name="down1")
    x = _conv_bn(x, 64, 3, strides=2, name="down2")
    for number in (1, 2):
        x = _residual(x, name=f"block{number}")
    classes = layers.Conv2D(48, 3, padding="same", activation="relu", name="class_tower")(x)
    classes = layers.Conv2D(CLASSES, 1, bias_initializer=_constant(math.log(PRIOR / (1 - PRIOR))), name="class_output")(classes)
    classes = layers.Activation("sigmoid", name="classes")(classes)
    boxes = layers.Conv2D(16, 3, padding="same", activation="relu", name="box_tower")(x)
    boxes = layers.Conv2D(4, 1, bias_initializer=_constant(FIRST_DISTANCE), name="box_output")(boxes)
    boxes = layers.ReLU(name="boxes")(boxes)
    return keras.Model(image, [classes, boxes], name="detector")


def _residual(x: Any, *, name: str) -> Any:
    y = _conv_bn(x, 32, 3, name=f"{name}_reduce")
    y = _conv_bn(y, 64, 3, name=f"{name}_expand", relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _conv_bn(x: Any, channels: int, size: int, *, strides: int = 1, name: str, relu: bool = True) -> Any:
    x = layers.Conv2D(channels, size, strides, "same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _constant(value: float) -> Any:
    return keras.initializers.Constant(value)
