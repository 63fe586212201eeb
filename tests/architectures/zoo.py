"""The architectures that must go from a float model to a proven INT8 graph, built with Keras 3 or tf_keras by the same code.

Every builder takes the Keras package as its argument. Weights are random (`randomize`), and sizes chosen for speed: 96 pixels, 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Build = Callable[[Any], Any]
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How to build a network, and the range of its inputs: pixels in [0, 255] for networks that rescale them, [-1, 1] for the others.

    `examples` are what parity is judged on. A network of few layers flips few codes by rounding, and each of them moves many behind
    it, so on few examples the share that differs is chance: of the UNet 1.4 to 2.4 times the noise floor on 16, 1.35 to 1.45 on 96.
    """

    name: str
    build: Build
    pixels: bool = False
    examples: int = 16


def build(name: str, package: Any, *, seed: int = 0) -> Any:
    """The architecture `name` built with `package` (`keras` or `tf_keras`), with random weights that keep activations in range."""
    package.utils.set_random_seed(seed)
    model = ARCHITECTURES[name].build(package)
    randomize(model, seed, batch(model, 8, seed, pixels=ARCHITECTURES[name].pixels))
    return model


def batch(model: Any, size: int, seed: int, *, pixels: bool = False) -> Any:
    """A batch of random inputs for `model`: one array, or a list of one per input."""
    rng = np.random.default_rng(seed)
    arrays = [_smooth_noise(rng, (size, *tensor.shape[1:]), pixels=pixels) for tensor in model.inputs]
    return arrays[0] if len(arrays) == 1 else arrays


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], *, pixels: bool) -> np.ndarray:
    """Noise of two scales, so that networks with large strides see something of each example too; in [-1, 1] or [0, 255]."""
    coarse = rng.uniform(-1.0, 1.0, (shape[0], *(-(-extent // 8) for extent in shape[1:-1]), shape[-1]))
    for axis in range(1, len(shape) - 1):
        coarse = np.repeat(coarse, 8, axis=axis).take(range(shape[axis]), axis=axis)
    noise = 0.6 * coarse + 0.4 * rng.uniform(-1.0, 1.0, shape)
    return (127.5 * (noise + 1.0) if pixels else noise).astype(np.float32)


# --- weights -------------------------------------------------------------------------------------------------------------------------


def randomize(model: Any, seed: int, inputs: Any) -> None:
    """Give every layer of `model`, nested ones too, random weights; the same for the same seed.

    Kernels are He normal; gammas are in [0.5, 1.5], an eighth of them negative, so that folding has to negate codes. Moving means and
    variances are those of `inputs`, as a trained network's are those of its data, so that activations keep their range through the depth.
    """
    rng = np.random.default_rng(seed)
    layers = list(_leaves(model))
    for layer in layers:
        if layer.weights:
            layer.set_weights([_draw(rng, variable.name, tuple(variable.shape)) for variable in layer.weights])
    _settle_batch_norms(model, [layer for layer in layers if type(layer).__name__ == "BatchNormalization"], inputs)


def _leaves(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer


def _draw(rng: np.random.Generator, variable_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value for the variable: `conv1/kernel:0` in tf_keras, `kernel` in Keras 3."""
    name = variable_name.split("/")[-1].split(":")[0]
    if name == "gamma":
        signs = np.where(rng.random(shape) < 0.125, -1.0, 1.0)
        return signs * rng.uniform(0.5, 1.5, shape)
    if name.endswith("kernel") or name == "embeddings":
        return rng.normal(0.0, np.sqrt(2.0 / _fan_in(name, shape)), shape)
    if name in ("moving_variance", "variance"):
        return np.ones(shape)
    if name in ("beta", "bias"):
        return rng.normal(0.0, 0.1, shape)
    return np.zeros(shape)


def _fan_in(name: str, shape: tuple[int, ...]) -> float:
    """How many products one output sums: all axes of a depthwise kernel but its channels, all of another but the last."""
    summed = shape[:-2] if name == "depthwise_kernel" else shape[:-1]
    return float(np.prod(summed)) or 1.0


def _settle_batch_norms(model: Any, batch_norms: list[Any], inputs: Any) -> None:
    """One pass in training mode in which each BatchNorm takes the statistics of the batch whole."""
    momenta = [layer.momentum for layer in batch_norms]
    for layer in batch_norms:
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer, momentum in zip(batch_norms, momenta, strict=True):
        layer.momentum = momentum


# --- keras.applications --------------------------------------------------------------------------------------------------------------


def application(name: str, size: int = 96) -> Build:
    """A builder of `package.applications.<name>`, without its trained weights."""

    def build(package: Any) -> Any:
        return getattr(package.applications, name)(weights=None, input_shape=(size, size, 3), classes=CLASSES)

    return build


# --- written here --------------------------------------------------------------------------------------------------------------------


def _conv_bn_relu(layers: Any, x: Any, channels: int, name: str, *, kernel: int = 3, strides: int = 1) -> Any:
    x = layers.Conv2D(channels, kernel, strides=strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def unet(package: Any) -> Any:
    """Three scales, Conv2DTranspose on the way up, and a Concatenate with the skip of each scale."""
    layers = package.layers
    image = package.Input((64, 64, 3), name="image")
    skips, x = [], image
    for depth, channels in enumerate((16, 32, 64)):
        x = _conv_bn_relu(layers, x, channels, f"down{depth}_a")
        x = _conv_bn_relu(layers, x, channels, f"down{depth}_b")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{depth}_pool")(x)
    x = _conv_bn_relu(layers, x, 128, "bottom")
    for depth, channels in reversed(tuple(enumerate((16, 32, 64)))):
        x = layers.Conv2DTranspose(channels, 2, strides=2, padding="same", name=f"up{depth}_transpose")(x)
        x = layers.BatchNormalization(name=f"up{depth}_bn")(x)
        x = layers.ReLU(name=f"up{depth}_relu")(x)
        x = layers.Concatenate(name=f"up{depth}_concat")([skips[depth], x])
        x = _conv_bn_relu(layers, x, channels, f"up{depth}_a")
    return package.Model(image, layers.Conv2D(4, 1, name="mask")(x), name="unet")


def detector(package: Any) -> Any:
    """SSD on a depthwise separable backbone: class and box heads on two feature maps, joined over all anchors."""
    layers = package.layers
    image = package.Input((96, 96, 3), name="image")
    x = _conv_bn_relu(layers, image, 16, "stem", strides=2)
    features = []
    for number, (channels, strides) in enumerate(((32, 1), (64, 2), (64, 1), (128, 2), (128, 2))):
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=f"block{number}_depthwise")(x)
        x = layers.ReLU(max_value=6.0, name=f"block{number}_relu6")(layers.BatchNormalization(name=f"block{number}_bn")(x))
        x = _conv_bn_relu(layers, x, channels, f"block{number}_point", kernel=1)
        if number >= 3:
            features.append(x)
    heads = []
    for kind, width in (("classes", 6), ("boxes", 4)):
        maps = [layers.Conv2D(3 * width, 3, padding="same", name=f"{kind}{number}")(x) for number, x in enumerate(features)]
        flat = [layers.Reshape((-1, width), name=f"{kind}{number}_flat")(x) for number, x in enumerate(maps)]
        heads.append(layers.Concatenate(axis=1, name=kind)(flat))
    return package.Model(image, heads, name="detector")


def vit(package: Any) -> Any:
    """A pre-norm vision transformer of two blocks.

    The position embedding is the bias of an EinsumDense that has one per token: all that needs no layer of one's own.
    """
    layers, width, tokens = package.layers, 64, 36
    image = package.Input((48, 48, 3), name="image")
    x = layers.Conv2D(width, 8, strides=8, name="patches")(image)
    x = layers.Reshape((tokens, width), name="tokens")(x)
    x = layers.EinsumDense("btc,cd->btd", output_shape=(tokens, width), bias_axes="td", name="positions")(x)
    for number in range(2):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block{number}_norm1")(x)
        y = layers.MultiHeadAttention(4, 16, name=f"block{number}_attention")(y, y)
        x = layers.Add(name=f"block{number}_add1")([x, y])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"block{number}_norm2")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"block{number}_mlp1")(y)
        y = layers.Dense(width, name=f"block{number}_mlp2")(y)
        x = layers.Add(name=f"block{number}_add2")([x, y])
    x = layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return package.Model(image, layers.Dense(CLASSES, name="logits")(x), name="vit")


def repvgg(package: Any) -> Any:
    """RepVGG as it is trained: 3x3 and 1x1 convolutions and the identity, a BatchNorm on each, added up before the ReLU."""
    layers = package.layers
    image = package.Input((64, 64, 3), name="image")
    x = image
    for number, (channels, strides) in enumerate(((32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1))):
        branches = []
        for kernel in (3, 1):
            name = f"block{number}_{kernel}x{kernel}"
            y = layers.Conv2D(channels, kernel, strides=strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
            branches.append(layers.BatchNormalization(name=f"{name}_bn")(y))
        if strides == 1 and x.shape[-1] == channels:
            branches.append(layers.BatchNormalization(name=f"block{number}_identity_bn")(x))
        x = layers.ReLU(name=f"block{number}_relu")(layers.Add(name=f"block{number}_add")(branches))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return package.Model(image, layers.Dense(CLASSES, name="logits")(x), name="repvgg")


def audio(package: Any) -> Any:
    """Keyword spotting on a waveform: 1-D convolutions, plain and separable."""
    layers = package.layers
    wave = package.Input((2048, 1), name="wave")
    x = layers.Conv1D(16, 16, strides=4, padding="same", use_bias=False, name="stem_conv")(wave)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    for number, channels in enumerate((32, 64)):
        x = layers.MaxPooling1D(4, name=f"block{number}_pool")(x)
        x = layers.Conv1D(channels, 5, padding="same", dilation_rate=2, use_bias=False, name=f"block{number}_conv")(x)
        x = layers.ReLU(name=f"block{number}_relu")(layers.BatchNormalization(name=f"block{number}_bn")(x))
    x = layers.SeparableConv1D(64, 5, padding="same", use_bias=False, name="separable")(x)
    x = layers.ReLU(name="separable_relu")(layers.BatchNormalization(name="separable_bn")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return package.Model(wave, layers.Dense(CLASSES, name="logits")(x), name="audio")


def twins(package: Any) -> Any:
    """Two images through one encoder, a functional model that is called twice; their codes are compared by Dense layers."""
    layers = package.layers
    image = package.Input((48, 48, 3), name="encoder_image")
    x = image
    for number, channels in enumerate((16, 32, 64)):
        x = _conv_bn_relu(layers, x, channels, f"scale{number}", strides=2)
    encoder = package.Model(image, layers.GlobalAveragePooling2D(name="pool")(x), name="encoder")
    left, right = (package.Input((48, 48, 3), name=side) for side in ("left", "right"))
    first, second = encoder(left), encoder(right)
    apart = layers.Subtract(name="apart")([first, second])
    x = layers.Concatenate(name="both")([first, second, apart])
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    return package.Model([left, right], layers.Dense(2, name="same")(x), name="twins")


_ALL = (
    *(Architecture(name=name, build=application(name)) for name in ("VGG16", "ResNet50", "ResNet50V2", "ResNet101")),
    *(Architecture(name=name, build=application(name)) for name in ("MobileNet", "MobileNetV2", "InceptionV3", "Xception")),
    Architecture(name="EfficientNetB0", build=application("EfficientNetB0"), pixels=True),
    *(Architecture(name=build.__name__, build=build, examples=96) for build in (unet, detector, vit, repvgg, audio, twins)),
)
ARCHITECTURES: Mapping[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
