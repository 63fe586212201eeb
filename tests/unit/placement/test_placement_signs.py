"""Which tensors cannot be negative, by the layers that make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# name -> from an input of any sign, and from one behind a ReLU: whether the result cannot be negative
LAYERS: dict[str, tuple[Callable[[Any], Any], bool, bool]] = {
    "ReLU": (lambda k: k.ReLU(), True, True),
    "ReLU6": (lambda k: k.ReLU(6.0), True, True),
    "leaky slope in a ReLU": (lambda k: k.ReLU(negative_slope=0.1), False, False),
    "LeakyReLU": (lambda k: k.LeakyReLU(), False, False),
    "sigmoid": (lambda k: k.Activation("sigmoid"), True, True),
    "tanh": (lambda k: k.Activation("tanh"), False, False),
    "swish": (lambda k: k.Activation("swish"), False, False),
    "linear": (lambda k: k.Activation("linear"), False, True),
    "softmax": (lambda k: k.Softmax(), True, True),
    "convolution": (lambda k: k.Conv2D(4, 1), False, False),
    "convolution with its own ReLU": (lambda k: k.Conv2D(4, 1, activation="relu"), True, True),
    "BatchNormalization": (lambda k: k.BatchNormalization(), False, False),
    "max pooling": (lambda k: k.MaxPool2D(), False, True),
    "average pooling": (lambda k: k.GlobalAveragePooling2D(), False, True),
    "padding": (lambda k: k.ZeroPadding2D(1), False, True),
    "flatten": (lambda k: k.Flatten(), False, True),
    "dropout": (lambda k: k.Dropout(0.5), False, True),
    "bilinear": (lambda k: k.UpSampling2D(2, interpolation="bilinear"), False, True),
    "bicubic": (lambda k: k.UpSampling2D(2, interpolation="bicubic"), False, False),
    "Rescaling": (lambda k: k.Rescaling(2.0, offset=-1.0), False, False),
}


@pytest.mark.parametrize("behind_relu", [False, True])
@pytest.mark.parametrize(("layer", "any_sign", "positive"), LAYERS.values(), ids=LAYERS)
def test_a_layer(layer: Any, any_sign: bool, positive: bool, behind_relu: bool) -> None:
    import tf_keras
    from tf_keras import layers

    from tfqat.models.graph import TensorRef, read
    from tfqat.placement.signs import non_negative

    image = tf_keras.Input((8, 8, 4), name="image")
    made = layer(layers)
    made._name = "made"
    model = tf_keras.Model(image, made(layers.ReLU(name="first")(image) if behind_relu else image))
    found = non_negative(read(model))
    assert TensorRef(layer="image") not in found
    assert (TensorRef(layer="made") in found) == (positive if behind_relu else any_sign)


@pytest.mark.parametrize(("signs", "expected"), [((True, True), True), ((True, False), False), ((False, False), False)])
@pytest.mark.parametrize("join", ["Add", "Concatenate", "Multiply", "Maximum"])
def test_a_join_of_two(join: str, signs: tuple[bool, bool], expected: bool) -> None:
    import tf_keras
    from tf_keras import layers

    from tfqat.models.graph import TensorRef, read
    from tfqat.placement.signs import non_negative

    image = tf_keras.Input((8,), name="image")
    sides = [layers.Dense(4, activation="relu" if sign else None)(image) for sign in signs]
    model = tf_keras.Model(image, getattr(layers, join)(name="join")(sides))
    assert (TensorRef(layer="join") in non_negative(read(model))) == expected


def quantized_reads(build: Callable[[Any, Any], Any], target: str) -> dict[str, list[str]]:
    """Point -> the layers that read it quantized."""
    import tf_keras
    from tf_keras import layers

    import tfqat

    image = tf_keras.Input((8, 8, 4), name="image")
    placement = tfqat.plan(tf_keras.Model(image, build(layers, image)), {"target": target})
    return {point.id: [edge.layer for edge in point.edges] for point in placement.activations}


def swish(k: Any, x: Any) -> Any:
    return k.Conv2D(4, 1, name="next")(k.Activation("swish", name="act")(k.Conv2D(4, 1, name="conv")(x)))


def written_out(k: Any, x: Any) -> Any:
    x = k.Conv2D(4, 1, name="conv")(x)
    return k.Conv2D(4, 1, name="next")(k.Multiply(name="mul")([x, k.Activation("sigmoid", name="gate")(x)]))


def relu(k: Any, x: Any) -> Any:
    return k.Conv2D(4, 1, name="next")(k.ReLU(name="act")(k.Conv2D(4, 1, name="conv")(x)))


def residual(k: Any, x: Any) -> Any:
    first = k.ReLU(name="first")(k.Conv2D(4, 1, name="conv")(x))
    return k.Conv2D(4, 1, name="next")(k.Add(name="add")([first, k.Conv2D(4, 1, name="branch")(first)]))


RULES = {
    "swish": (swish, {"image": ["conv"], "act": ["next"]}, {"image": ["conv"], "conv": ["act"], "act": ["next"]}),
    "swish, written out": (
        written_out,
        {"image": ["conv"], "mul": ["next"]},
        {"image": ["conv"], "conv": ["gate", "mul"], "mul": ["next"]},
    ),
    "ReLU": (relu, {"image": ["conv"], "act": ["next"]}, {"image": ["conv"], "act": ["next"]}),
    "residual Add": (
        residual,
        {"image": ["conv"], "first": ["branch", "add"], "add": ["next"]},
        {"image": ["conv"], "first": ["branch", "add"], "add:1": ["add"], "add": ["next"]},
    ),
}


@pytest.mark.parametrize(("build", "tensorrt", "onnxruntime"), RULES.values(), ids=RULES)
def test_where_the_targets_want_quantizers(build: Any, tensorrt: dict[str, list[str]], onnxruntime: dict[str, list[str]]) -> None:
    assert quantized_reads(build, "tensorrt") == tensorrt
    assert quantized_reads(build, "onnxruntime") == onnxruntime
