"""Replaced blocks: what each built-in and a function of the user's own puts where, exactly, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfqat
from tfqat.errors import ModelError, NoMatchError
from tfqat.placement.replace import replace_blocks
from tfqat.recipe.schema import Replacement

K = tf_keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 6)).astype(np.float32)


def randomized(model: Any) -> Any:
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in layer.weights])
        if isinstance(layer, K.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.1, 2.0, layer.moving_variance.shape))
    return model


def replaced(model: Any, match: str, name: str, base: Path | None = None) -> Any:
    return replace_blocks(model, [Replacement.model_validate({"match": match, "with": name})], base=base)


def swishes() -> Any:
    x = tf_keras.Input((8, 8, 6), name="image")
    y = K.Conv2D(6, 3, activation="swish", name="conv")(x)
    y = K.Activation("swish", name="act")(y)
    y = K.Multiply(name="written_out")([y, K.Activation("sigmoid", name="gate")(y)])
    return randomized(tf_keras.Model(x, K.Conv2D(4, 1, name="head")(y), name="net"))


def hard_swish(x: Any) -> Any:
    return x * tf.nn.relu6(x + 3.0) / 6.0


def test_swish_becomes_hard_swish_in_all_its_forms() -> None:
    model = swishes()
    found = replaced(model, "*", "hard_swish")
    conv, head = (found.get_layer(name) for name in ("conv", "head"))
    assert np.array_equal(conv.get_weights()[0], model.get_layer("conv").get_weights()[0])
    linear = tf.nn.conv2d(IMAGES, conv.kernel, 1, "VALID") + conv.bias
    wanted = head(hard_swish(hard_swish(hard_swish(linear))))
    np.testing.assert_allclose(found(IMAGES), wanted, rtol=1e-5, atol=1e-5)
    assert "gate" not in [layer.name for layer in found.layers]
    assert model.get_layer("act").get_config()["activation"] == "swish"


def test_relu6_becomes_relu() -> None:
    x = tf_keras.Input((8, 8, 6), name="image")
    y = K.ReLU(6.0, name="a")(K.Conv2D(6, 1, name="conv", activation=tf.nn.relu6)(x))
    model = randomized(tf_keras.Model(x, K.ReLU(name="b")(y)))
    found = replaced(model, "*", "relu")
    conv = found.get_layer("conv")
    np.testing.assert_allclose(found(IMAGES), tf.nn.relu(tf.nn.conv2d(IMAGES, conv.kernel, 1, "VALID") + conv.bias), rtol=1e-6)
    assert float(np.max(found(IMAGES))) > 6.0


def branches(
    *, stride: int = 1, groups: int = 1, size: int = 8, identity: bool = True, norm: bool = True, kernels: tuple[int, ...] = (3, 1)
) -> Any:
    x = tf_keras.Input((size, size, 6), name="image")

    def normed(y: Any, name: str) -> Any:
        return K.BatchNormalization(name=f"{name}_bn")(y) if norm else y

    joined = [
        normed(
            K.Conv2D(6, kernel, strides=stride, groups=groups, padding="same", name=f"conv{kernel}", use_bias=not norm)(x), f"conv{kernel}"
        )
        for kernel in kernels
    ]
    joined += [normed(x, "identity")] if identity else []
    return randomized(tf_keras.Model(x, K.ReLU(name="relu")(K.Add(name="add")(joined)), name="net"))


FUSED: dict[str, dict[str, Any]] = {
    "three branches": {},
    "grouped": {"groups": 2},
    "without identity": {"identity": False},
    "without BatchNorm": {"norm": False},
    "1 x 1 and identity": {"kernels": (1,)},
    "stride 2, even size": {"stride": 2, "identity": False},
    "stride 2, odd size": {"stride": 2, "identity": False, "size": 9},
    "5 x 5, 3 x 3 and 1 x 1": {"kernels": (5, 3, 1)},
}


@pytest.mark.parametrize("settings", FUSED.values(), ids=FUSED)
def test_branches_become_one_convolution_with_the_same_output(settings: dict[str, Any]) -> None:
    model = branches(**settings)
    images = np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    found = replaced(model, "Add", "repvgg")
    largest = f"conv{settings.get('kernels', (3, 1))[0]}"
    assert [layer.name for layer in found.layers] == ["image", largest, "relu"]
    expected = model(images).numpy()
    assert np.abs(found(images) - expected).max() <= 2e-6 * np.abs(expected).max()
    assert [point.id for point in tfqat.plan(found).weights] == [f"{largest}/kernel"]


def apart(kind: str) -> Any:
    x = tf_keras.Input((8, 8, 6), name="image")
    a = K.Conv2D(6, 3, padding="same", name="a", activation="relu" if kind == "an activation" else None)(x)
    b = K.Conv2D(6, 1, padding="same", name="b")(x if kind != "two tensors" else K.ReLU(name="other")(x))
    outputs = [K.Add(name="add")([a, b]), *([a] if kind == "a branch is an output" else [])]
    return tf_keras.Model(x, outputs)


@pytest.mark.parametrize("kind", ["an activation", "two tensors", "a branch is an output"])
def test_branches_that_cannot_be_one_convolution_are_left(kind: str) -> None:
    with pytest.raises(
        NoMatchError, match=r"^replace\[0\]\.match: pattern 'add' matches only layers that 'repvgg' does not apply to: add$"
    ):
        replaced(apart(kind), "add", "repvgg")


FUNCTIONS = """
import tf_keras

def tanh(layer):
    return tf_keras.layers.Activation("tanh") if type(layer).__name__ == "Activation" else None

def wider(layer):
    return tf_keras.layers.Conv2D(8, 3)

def number(layer):
    return 3
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "blocks.py").write_text(FUNCTIONS)
    return tmp_path


def test_a_function_of_the_users_own(functions: Path) -> None:
    found = replaced(swishes(), "act", "blocks.py:tanh", functions)
    assert (found.get_layer("act").get_config()["activation"], len(found.layers)) == ("tanh", len(swishes().layers))


REFUSED: dict[str, tuple[str, str, type[Exception], str]] = {
    "no such layer": (
        "actt",
        "hard_swish",
        NoMatchError,
        r"^replace\[0\]\.match: pattern 'actt' matches none of the 6 layers; did you mean 'act'\?",
    ),
    "nothing to do": ("head", "relu", NoMatchError, r"matches only layers that 'relu' does not apply to: head$"),
    "no layer": (
        "conv",
        "blocks.py:number",
        ModelError,
        r"blocks\.py:number returned builtins\.int for layer 'conv'; expected a tf_keras layer",
    ),
    "other weights": ("conv", "blocks.py:wider", ModelError, r"^replacement of layer 'conv' has weights of shapes .* give it the same"),
}


@pytest.mark.parametrize(("match", "name", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(functions: Path, match: str, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replaced(swishes(), match, name, functions)


def test_the_recipe_names_built_ins_and_references_only() -> None:
    assert Replacement.model_validate({"match": "*", "with": "a.py:f"}).with_ == "a.py:f"
    with pytest.raises(ValueError, match="hard_swish, relu, repvgg, or module:function"):
        Replacement.model_validate({"match": "*", "with": "gelu"})


def test_replacements_follow_each_other() -> None:
    first = Replacement.model_validate({"match": "act", "with": "hard_swish"})
    with pytest.raises(NoMatchError, match=r"^replace\[1\]\.match: "):
        replace_blocks(swishes(), [first, first])
