"""The networks that the recipes by family start from, with random weights: stand-ins for a trained model of yours.

The networks of `keras.applications` are built for 96 x 96 pixels, so that a run on a CPU takes minutes. With ImageNet's weights:

    keras.applications.ResNet50(weights="imagenet", classifier_activation=None)

In the place of trained weights every BatchNorm takes the statistics of a few real images, so that activations keep their range through the
depth as they do in a trained network. What the networks answer is nonsense all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from tfqat.recipe.references import load_reference

SEED = 0
CLASSES = 10
IMAGE = (96, 96, 3)
CANVAS = 64
PATCHES = 6  # along each side, so 36 tokens
WIDTH = 64

# By path: another example's module may go by the same name.
_DATA = Path(__file__).resolve().with_name("data.py")


def resnet50() -> keras.Model:
    """ResNet50 (He et al. 2016): images (batch, 96, 96, 3) in [-1, 1] -> logits (batch, 10)."""
    return _with_statistics(_application(keras.applications.ResNet50), "images_calibration")


def mobilenet_v2() -> keras.Model:
    """MobileNetV2 (Sandler et al. 2018): images (batch, 96, 96, 3) in [-1, 1] -> logits (batch, 10)."""
    return _with_statistics(_application(keras.applications.MobileNetV2), "images_calibration")


def inception_v3() -> keras.Model:
    """InceptionV3 (Szegedy et al. 2016): images (batch, 96, 96, 3) in [-1, 1] -> logits (batch, 10)."""
    return _with_statistics(_application(keras.applications.InceptionV3), "images_calibration")


def efficientnet_b0() -> keras.Model:
    """EfficientNetB0 (Tan and Le 2019): images (batch, 96, 96, 3) in [0, 255], which it rescales itself -> logits (batch, 10)."""
    return _with_statistics(_application(keras.applications.EfficientNetB0), "pixels_calibration")


def _application(network: Callable[..., keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    return network(weights=None, input_shape=IMAGE, classes=CLASSES, classifier_activation=None)


def unet() -> keras.Model:
    """A U-Net (Ronneberger et al. 2015) of three scales: images (batch, 32, 32, 1) in [0, 1] -> the foreground's probability, same size."""
    keras.utils.set_random_seed(SEED)
    image = keras.Input((32, 32, 1), name="image")
    x, skips = image, []
    for scale, channels in enumerate((16, 32)):
        x = _twice(x, channels, name=f"down{scale}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{scale}_pool")(x)
    x = _twice(x, 64, name="bottom")
    for scale, channels in ((1, 32), (0, 16)):
        x = layers.Conv2DTranspose(channels, 2, 2, "same", name=f"up{scale}_transpose")(x)
        x = layers.Concatenate(name=f"up{scale}_concat")([skips[scale], x])
        x = _twice(x, channels, name=f"up{scale}")
    mask = layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x)
    return _with_statistics(keras.Model(image, mask, name="unet"), "masks_calibration")


def detector() -> keras.Model:
    """A detector of one garment: images (batch, 64, 64, 1) in [0, 1] -> `box` (batch, 4) and `kind` (batch, 10), probabilities.

    A MobileNet-like backbone of two scales; the finer one reaches the heads through a nearest up-sampling, as in a feature pyramid. The
    box is (top, left, bottom, right) in units of the image's side.
    """
    keras.utils.set_random_seed(SEED)
    image = keras.Input((CANVAS, CANVAS, 1), name="image")
    x = _conv_bn(image, 16, 3, strides=2, name="stem")
    for number, (channels, strides) in enumerate(((32, 2), (64, 1)), start=1):
        x = _separable(x, channels, strides, name=f"block{number}")
    fine = x
    coarse = _separable(fine, 64, 2, name="block3")
    coarse = layers.UpSampling2D(name="pyramid_up")(coarse)
    x = _conv_bn(layers.Concatenate(name="pyramid_concat")([fine, coarse]), 64, 3, name="pyramid")
    kind = layers.GlobalAveragePooling2D(name="kind_pool")(_conv_bn(x, 64, 3, name="kind_tower"))
    kind = layers.Dense(CLASSES, activation="softmax", name="kind")(kind)
    box = layers.Flatten(name="box_flat")(_conv_bn(x, 16, 3, strides=2, name="box_tower"))
    box = layers.Dense(4, activation="sigmoid", name="box")(box)
    return _with_statistics(keras.Model(image, [box, kind], name="detector"), "boxes_calibration")


def vit() -> keras.Model:
    """A vision transformer (Dosovitskiy et al. 2021) of two pre-norm blocks: images (batch, 48, 48, 1) in [0, 1] -> logits (batch, 10)."""
    keras.utils.set_random_seed(SEED)
    image = keras.Input((48, 48, 1), name="image")
    x = layers.Conv2D(WIDTH, 8, 8, name="patches")(image)
    x = layers.Reshape((PATCHES * PATCHES, WIDTH), name="tokens")(x)
    # A bias of its own for each token is a position embedding; an EinsumDense has it, so that no custom layer is needed.
    x = layers.EinsumDense("btc,cd->btd", output_shape=(PATCHES * PATCHES, WIDTH), bias_axes="td", name="positions")(x)
    for number in range(2):
        x = _transformer(x, name=f"block{number}")
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="vit")


def _transformer(x: Any, *, name: str) -> Any:
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(4, WIDTH // 4, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_add1")([x, y])
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = layers.Dense(4 * WIDTH, activation="gelu", name=f"{name}_mlp1")(y)
    return layers.Add(name=f"{name}_add2")([x, layers.Dense(WIDTH, name=f"{name}_mlp2")(y)])


def _twice(x: Any, channels: int, *, name: str) -> Any:
    return _conv_bn(_conv_bn(x, channels, 3, name=f"{name}_a"), channels, 3, name=f"{name}_b")


def _separable(x: Any, channels: int, strides: int, *, name: str) -> Any:
    """Depthwise 3x3, then 1x1, a BatchNorm and a ReLU behind each (Howard et al. 2017)."""
    x = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(layers.BatchNormalization(name=f"{name}_depthwise_bn")(x))
    return _conv_bn(x, channels, 1, name=f"{name}_point")


def _conv_bn(x: Any, channels: int, size: int, *, strides: int = 1, name: str) -> Any:
    x = layers.Conv2D(channels, size, strides, "same", use_bias=False, name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def _with_statistics(model: keras.Model, data: str) -> keras.Model:
    """The model, its BatchNorms holding the mean and variance of 16 images: those of one pass in training mode, taken over whole."""
    images, _ = next(iter(load_reference(f"{_DATA}:{data}", base=_DATA.parent)()))
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(tf.convert_to_tensor(images)[:16], training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return model
