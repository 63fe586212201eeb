"""Equalization: the same bits in float, channels of like range, less error once quantized, and a reason for what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers as L  # noqa: N812

import tfqat
from tfqat.calibration.equalize import Equalized, equalize
from tfqat.calibration.predicted_error import EXPONENTS, PredictedError, Seen
from tfqat.errors import DataError, ModelError
from tfqat.models import graph as model_graph
from tfqat.models.layers import ChannelReLU

RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32)
BATCHES = [IMAGES[start : start + 8] for start in range(0, 32, 8)]
UNEQUAL = np.float32(2.0) ** np.array([0, -3, -1, -2, -4, 0, -2, -3])  # of 8 channels


def model_of(build: Callable[[Any], Any], *, unequal: tuple[str, ...] = ()) -> Any:
    """A model of images with BatchNorms as after training; the channels of the layers of `unequal` differ in range up to 16 times."""
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input((8, 8, 3), name="image")
    model = tf_keras.Model(image, build(image), name="net")
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights([rng.uniform(0.5, 2, shape), rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.5, 2, shape)])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(size=layer.bias.shape))
        if layer.name in unequal:
            layer.set_weights([value * UNEQUAL for value in layer.get_weights()[:2]] + layer.get_weights()[2:])
    return model


def conv_relu_conv(x: Any) -> Any:
    x = L.ReLU(name="relu")(L.Conv2D(8, 3, name="a")(x))
    return L.Conv2D(4, 1, name="b")(x)


def inverted(x: Any) -> Any:
    x = L.ReLU(6.0, name="relu1")(L.BatchNormalization(name="bn1")(L.Conv2D(8, 1, use_bias=False, name="expand")(x)))
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = L.Activation(tf.nn.relu6, name="relu2")(L.BatchNormalization(name="bn2")(x))
    return L.Conv2D(4, 1, name="project")(x)


def flattened(x: Any) -> Any:
    x = L.MaxPooling2D()(L.LeakyReLU(name="leaky")(L.Conv2D(8, 3, padding="same", name="a")(x)))
    return L.Dense(5, name="dense")(L.Dropout(0.1)(L.Flatten()(x)))


def two_readers(x: Any) -> Any:
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="a")(x)
    return [L.Conv2D(4, 1, name="b")(x), L.Dense(5, name="c")(L.GlobalAveragePooling2D()(x))]


def normalized(x: Any) -> Any:
    x = L.LayerNormalization(name="norm")(L.Dense(8, name="in")(L.Reshape((64, 3))(x)))
    return [L.Dense(4, name="q")(x), L.Dense(4, name="k")(x)]


NETWORKS = {
    "Conv, ReLU, Conv": (conv_relu_conv, ("a",), {"a", "b"}, {}),
    "BatchNorm, ReLU6, depthwise, BatchNorm, relu6": (inverted, ("bn1", "bn2"), {"bn1", "depthwise", "bn2", "project"}, {"relu1", "relu2"}),
    "Dense behind Flatten": (flattened, ("a",), {"a", "dense"}, {}),
    "two readers": (two_readers, ("a",), {"a", "b", "c"}, {}),
    "LayerNormalization": (normalized, ("norm",), {"norm", "q", "k"}, {}),
}


@pytest.mark.parametrize(("build", "unequal", "scaled", "caps"), NETWORKS.values(), ids=NETWORKS)
def test_the_float_outputs_are_the_same_bits_and_undo_gives_the_weights_back(
    build: Any, unequal: tuple[str, ...], scaled: set[str], caps: set[str]
) -> None:
    model = model_of(build, unequal=unequal)
    before = model.get_weights()
    equalized = equalize(model, BATCHES, batches=4)
    assert set(equalized.factors) == scaled
    assert set(equalized.caps) == set(caps)
    assert not all(np.array_equal(old, new) for old, new in zip(before, equalized.model.get_weights(), strict=True))
    for old, new in zip(
        tf.nest.flatten(model(IMAGES, training=False)), tf.nest.flatten(equalized.model(IMAGES, training=False)), strict=True
    ):
        assert np.array_equal(old, new)
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))  # not changed
    back = equalized.undo(equalized.model)
    assert all(np.array_equal(old, new) for old, new in zip(before, back.get_weights(), strict=True))
    assert not any(isinstance(layer, ChannelReLU) for layer in back.layers)
    for old, new in zip(tf.nest.flatten(model(IMAGES, training=False)), tf.nest.flatten(back(IMAGES, training=False)), strict=True):
        assert np.array_equal(old, new)


def add_reads(x: Any) -> Any:
    x = L.Conv2D(8, 1, name="a")(x)
    y = L.Conv2D(8, 1, name="c")(L.ReLU(name="relu")(L.Conv2D(8, 1, name="b")(x)))
    return L.Conv2D(4, 1, name="d")(L.Add(name="add")([x, y]))


def shared(x: Any) -> Any:
    conv = L.Conv2D(3, 1, name="conv")
    return L.Conv2D(4, 1, name="b")(conv(conv(x)))


def chain(*middle: Any) -> Callable[[Any], Any]:
    def build(x: Any) -> Any:
        x = L.Conv2D(8, 1, name="a")(x)
        for layer in middle:
            x = type(layer).from_config(layer.get_config())(x)
        return L.Conv2D(4, 1, name="b")(x)

    return build


LEFT = {
    "residual": (add_reads, "b", "Add add is not positively homogeneous in each channel by itself"),
    "behind a residual": (add_reads, "d", "Add add is not positively homogeneous in each channel by itself"),
    "input": (conv_relu_conv, "a", "they come from image, an input of the model"),
    "shared": (shared, "b", "conv is called several times"),
    "sigmoid": (chain(L.Activation("sigmoid", name="act")), "b", "sigmoid of act is not positively homogeneous"),
    "threshold": (chain(L.ReLU(threshold=1.0, name="act")), "b", "act is a ReLU with a threshold, or with a bound and a slope"),
    "no gamma": (chain(L.BatchNormalization(scale=False, name="bn")), "b", "bn, a BatchNormalization, has no gamma that could be divided"),
    "groups": (
        lambda x: L.Conv2D(4, 1, groups=2, name="b")(L.Conv2D(8, 1, name="a")(x)),
        "b",
        "b is a convolution of 2 groups",
    ),
    "output": (lambda x: [y := L.Conv2D(8, 1, name="a")(x), L.Conv2D(4, 1, name="b")(y)], "b", "it is an output of the model"),
    "relu6 within": (
        lambda x: L.Conv2D(4, 1, name="b")(L.Conv2D(8, 1, activation=tf.nn.relu6, name="a")(x)),
        "b",
        "relu6 is part of a, and no layer of its own",
    ),
}


@pytest.mark.parametrize(("build", "product", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_left_alone_has_a_reason(build: Any, product: str, reason: str) -> None:
    image = tf_keras.Input((8, 8, 3), name="image")
    equalized = equalize(tf_keras.Model(image, build(image)), BATCHES, batches=4)
    assert equalized.left[product] == reason
    assert product not in equalized.factors or equalized.factors[product].reads is None


def largest(model: Any, name: str) -> np.ndarray:
    return np.abs(tf_keras.Model(model.input, model.get_layer(name).output)(IMAGES)).max(axis=(0, 1, 2))


def test_before_a_depthwise_convolution_all_channels_get_half_the_range_or_more() -> None:
    model = model_of(inverted, unequal=("bn1",))
    equalized = equalize(model, BATCHES, batches=4)
    before, after = largest(model, "relu1"), largest(equalized.model, "relu1")
    assert before.min() < before.max() / 8
    assert after.max() == before.max()
    assert np.all(after > after.max() / 2)


@pytest.mark.parametrize(("build", "read"), [(conv_relu_conv, "relu"), (inverted, "relu2")])
def test_no_range_grows(build: Any, read: str) -> None:
    model = model_of(build, unequal=("a", "bn2"))
    assert largest(equalize(model, BATCHES, batches=4).model, read).max() <= largest(model, read).max()


def error_of(model: Any, reference: np.ndarray, calibrator: str, bits: int) -> float:
    first = model.layers[1].name  # it reads the images, so its input cannot be equalized
    qmodel = tfqat.quantize_model(model, {"activations": {"calibrator": calibrator}, "weights": {"num_bits": bits}, "skip": [first]})
    tfqat.calibrate(qmodel, BATCHES, batches=4)
    return float(np.mean((qmodel(IMAGES, training=False) - reference) ** 2))


@pytest.mark.parametrize("calibrator", ["max", "mse"])
@pytest.mark.parametrize(
    ("build", "unequal", "bits"), [(conv_relu_conv, ("a",), 8), (conv_relu_conv, ("a",), 4), (inverted, ("bn1", "bn2"), 8)]
)
def test_the_quantized_error_falls_where_channels_are_unequal(build: Any, unequal: tuple[str, ...], bits: int, calibrator: str) -> None:
    model = model_of(build, unequal=unequal)
    for name in ("b", "project", "depthwise"):  # the weights are large where the channels are small, as after training
        for layer in model.layers:
            if layer.name == name:
                kernel, *rest = layer.get_weights()
                layer.set_weights([kernel / UNEQUAL[:, None], *rest])
    reference = model(IMAGES, training=False)
    equalized = equalize(model, BATCHES, batches=4, weight_bits=bits)
    assert error_of(equalized.model, reference, calibrator, bits) < 0.5 * error_of(model, reference, calibrator, bits)


def test_the_choice_is_the_best_of_all_for_two_channels() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(400, 2)) * [1.0, 0.1]
    rows = rng.normal(size=(2, 3, 5)) * np.array([0.1, 1.0])[:, None, None]
    seen = Seen(amax=np.abs(values).max(axis=0), values=values)

    def found(amounts: Any) -> PredictedError:
        error = PredictedError(channels=2)
        error.add(rows, np.ones(5), seen, 127, 127)
        return error

    def total(k: tuple[int, int]) -> float:
        error = found(None)
        for channel, exponent in enumerate(k):
            error.weights[0].move(channel, exponent)
        return (
            sum(error.rounding[channel, exponent - EXPONENTS[0]] for channel, exponent in enumerate(k))
            + error.weights[0].change(0, k[0])
            + error.weights[0].value
        )

    every = {(int(a), int(b)): total((int(a), int(b))) for a in EXPONENTS for b in EXPONENTS}
    chosen = tuple(int(one) for one in found(None).descend())
    assert chosen != (0, 0)
    assert every[chosen] == pytest.approx(min(every.values()), rel=1e-6)


def test_a_channel_without_values_is_left_alone() -> None:
    model = model_of(conv_relu_conv, unequal=("a",))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., 4], bias[4] = 0.0, -1.0
    model.get_layer("a").set_weights([kernel, bias])
    assert equalize(model, BATCHES, batches=4).factors["a"].output[4] == 1.0


def test_it_survives_json_and_a_file(tmp_path: Path) -> None:
    model = model_of(inverted, unequal=("bn1", "bn2"))
    equalized = equalize(model, BATCHES, batches=4)
    equalized.model.save(tmp_path / "equalized.keras")
    loaded = tfqat.load_model(tmp_path / "equalized.keras")
    assert np.array_equal(loaded(IMAGES), model(IMAGES))
    again = Equalized.from_dict(json.loads(json.dumps(equalized.to_dict())))
    assert all(np.array_equal(old, new) for old, new in zip(model.get_weights(), again.undo(loaded).get_weights(), strict=True))


def test_trained_weights_come_back_into_the_users_model() -> None:
    model = model_of(inverted, unequal=("bn1", "bn2"))
    equalized = equalize(model, BATCHES, batches=4)
    qmodel = tfqat.quantize_model(equalized.model)
    project = next(layer for layer in qmodel.layers if layer.name.endswith("project"))
    project.layer.bias.assign_add(np.ones(4))
    stripped = tfqat.strip(equalized.undo(tfqat.strip(qmodel)), like=model)
    assert np.array_equal(stripped.get_layer("project").bias, model.get_layer("project").bias + 1)
    for name in ("expand", "bn1", "depthwise", "bn2"):
        assert all(
            np.array_equal(*pair) for pair in zip(stripped.get_layer(name).get_weights(), model.get_layer(name).get_weights(), strict=True)
        )


def test_a_bound_for_each_channel_counts_as_the_activation_of_its_convolution() -> None:
    equalized = equalize(model_of(inverted, unequal=("bn1", "bn2")), BATCHES, batches=4)
    assert [node.class_name for node in model_graph.read(equalized.model).nodes].count("ChannelReLU") == 2
    placement = tfqat.plan(equalized.model)
    assert [point.id for point in placement.activations] == ["image", "relu1", "relu2"]
    assert {layer.layer: layer.reason for layer in placement.float_layers}["relu1"] == "fuses with expand; Q/DQ come after the activation"


def test_too_few_batches_and_bad_values_are_refused() -> None:
    model = model_of(conv_relu_conv)
    with pytest.raises(DataError, match=r"equalization asked for 9 batches, the data held 4: give more data, or ask for fewer"):
        equalize(model, BATCHES, batches=9)
    with pytest.raises(DataError, match=r"equalization batch 1: tensor 'image' holds NaN or Inf"):
        equalize(model, [BATCHES[0], BATCHES[0] * np.inf], batches=2)


def test_undo_of_another_model_is_refused() -> None:
    equalized = equalize(model_of(conv_relu_conv, unequal=("a",)), BATCHES, batches=4)
    with pytest.raises(ModelError, match="model 'net' lacks layers that were equalized: a, b"):
        equalized.undo(model_of(inverted))
