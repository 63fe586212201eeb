"""Replaced blocks: what each built-in and a function of the user's own puts where, exactly, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfqat
from tfqat.errors import DataError, ModelError, NoMatchError
from tfqat.inputs import Origin
from tfqat.placement.replace import replace_blocks
from tfqat.placement.repvgg import NOT_PARALLEL
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


def _spelled(kernel: Any) -> str:
    return str(kernel) if isinstance(kernel, int) else "x".join(map(str, kernel))


def branches(
    *, stride: int = 1, groups: int = 1, size: int = 8, identity: bool = True, norm: bool = True, kernels: tuple[Any, ...] = (3, 1)
) -> Any:
    x = tf_keras.Input((size, size, 6), name="image")

    def normed(y: Any, name: str) -> Any:
        return K.BatchNormalization(name=f"{name}_bn")(y) if norm else y

    joined = [
        normed(
            K.Conv2D(6, kernel, strides=stride, groups=groups, padding="same", name=f"conv{_spelled(kernel)}", use_bias=not norm)(x),
            f"conv{_spelled(kernel)}",
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
    "3 x 1 and 1 x 3, neither of which encloses the other": {"kernels": ((3, 1), (1, 3))},
    "4 x 4 and 3 x 3": {"kernels": (4, 3)},
}


@pytest.mark.parametrize("settings", FUSED.values(), ids=FUSED)
def test_branches_become_one_convolution_with_the_same_output(settings: dict[str, Any]) -> None:
    model = branches(**settings)
    images = np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    found = replaced(model, "Add", "repvgg")
    largest = f"conv{_spelled(settings.get('kernels', (3, 1))[0])}"
    assert [layer.name for layer in found.layers] == ["image", largest, "relu"]
    expected = model(images).numpy()
    assert np.abs(found(images) - expected).max() <= 2e-6 * np.abs(expected).max()
    assert [point.id for point in tfqat.plan(found).weights] == [f"{largest}/kernel"]


def test_a_block_that_is_called_twice_is_fused_once() -> None:
    encoder = branches()
    left, right = (tf_keras.Input((8, 8, 6), name=side) for side in ("left", "right"))
    model = tfqat.load_model(tf_keras.Model([left, right], K.Subtract(name="apart")([encoder(left), encoder(right)])))
    found = replaced(model, "net/add", "repvgg")
    assert [layer.name for layer in found.layers] == ["left", "right", "net/conv3", "net/relu", "apart"]
    expected = model([IMAGES, IMAGES[::-1]]).numpy()
    assert np.abs(found([IMAGES, IMAGES[::-1]]) - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_of_one_element_needs_no_padding(stride: int) -> None:
    model = randomized(pair({"kernel_size": 3, "strides": stride, "name": "conv"}, {"padding": "valid", "strides": stride}))
    expected = model(IMAGES).numpy()
    assert np.abs(replaced(model, "add", "repvgg")(IMAGES) - expected).max() <= 2e-6 * np.abs(expected).max()


def test_a_fused_output_keeps_the_name_of_the_add() -> None:
    model = branches()
    model = tf_keras.Model(model.input, model.get_layer("add").output)
    found = replaced(model, "add", "repvgg")
    assert found.output_names == model.output_names == ["add"]
    assert [point.id for point in tfqat.plan(found).weights] == ["add/kernel"]


def apart(kind: str) -> Any:
    x = tf_keras.Input((8, 8, 6), name="image")
    a = K.Conv2D(6, 3, padding="same", name="a", activation="relu" if kind == "an activation" else None)(x)
    b = K.Conv2D(6, 1, padding="same", name="b")(x if kind != "two tensors" else K.ReLU(name="other")(x))
    if kind == "BatchNorm over rows":
        b = K.BatchNormalization(axis=1, name="rows")(b)
    outputs = [K.Add(name="add")([a, b]), *([a] if kind == "a branch is an output" else [])]
    return tf_keras.Model(x, outputs)


def pair(first: dict[str, Any], second: dict[str, Any], *, size: int | None = 8, identity: bool = False) -> Any:
    x = tf_keras.Input((size, size, 6), name="image")
    made = [K.Conv2D(**{"filters": 6, "kernel_size": 1, "padding": "same", **config})(x) for config in (first, second)]
    return tf_keras.Model(x, K.Add(name="add")([*made, x] if identity else made))


def one_add_twice() -> Any:
    """The second call of the Add joins something else than branches."""
    x, add = tf_keras.Input((8, 8, 6), name="image"), K.Add(name="add")
    y = add([K.Conv2D(6, 3, padding="same")(x), K.Conv2D(6, 1)(x)])
    return tf_keras.Model(x, add([K.ReLU()(y), x]))


def one_convolution_elsewhere() -> Any:
    x, conv = tf_keras.Input((8, 8, 6), name="image"), K.Conv2D(6, 1, name="conv")
    y = K.Add(name="add")([K.Conv2D(6, 3, padding="same")(x), conv(x)])
    return tf_keras.Model(x, conv(K.ReLU()(y)))


def two_calls_crossed() -> Any:
    x = tf_keras.Input((8, 8, 6), name="image")
    a, b, add = K.Conv2D(6, 3, padding="same"), K.Conv2D(6, 1), K.Add(name="add")
    y = K.ReLU()(add([a(x), b(x)]))
    return tf_keras.Model(x, add([b(y), a(y)]))


KEPT: dict[str, tuple[Any, str]] = {
    **{kind: (lambda kind=kind: apart(kind), NOT_PARALLEL) for kind in ("an activation", "two tensors", "a branch is an output")},
    "BatchNorm over rows": (lambda: apart("BatchNorm over rows"), NOT_PARALLEL),
    "dilation": (lambda: pair({"kernel_size": 3, "dilation_rate": 2}, {}), NOT_PARALLEL),
    "one filter beside an identity of six": (
        lambda: pair({"filters": 1}, {"filters": 1}, identity=True),
        "its inputs have different shapes",
    ),
    "groups": (lambda: pair({"groups": 2}, {}), "its convolutions differ in groups"),
    "padding": (
        lambda: pair({"kernel_size": 2, "strides": 2, "padding": "valid"}, {"kernel_size": 3, "strides": 2}),
        "its convolutions differ in padding",
    ),
    "an identity beside strides": (
        lambda: pair({"strides": 2, "kernel_size": 3}, {"strides": 2}, size=1, identity=True),
        "an identity stands beside convolutions with strides",
    ),
    "strides, sizes that are not fixed": (
        lambda: pair({"strides": 2, "kernel_size": 3}, {"strides": 2}, size=None),
        "the padding of its convolutions with strides depends on sizes that are not fixed",
    ),
    "an Add of two calls": (one_add_twice, NOT_PARALLEL),
    "two calls with other branches": (two_calls_crossed, "its calls join different branches"),
    "a convolution of two calls": (one_convolution_elsewhere, "'conv' is called elsewhere too"),
}


@pytest.mark.parametrize(("make", "reason"), KEPT.values(), ids=KEPT)
def test_branches_that_cannot_be_one_convolution_are_left(make: Any, reason: str) -> None:
    message = f"replace[0].match: pattern 'add' matches only layers that 'repvgg' does not apply to: add ({reason})"
    with pytest.raises(NoMatchError, match=f"^{re.escape(message)}$"):
        replaced(make(), "add", "repvgg")


def test_a_multiply_that_is_called_for_something_else_too_is_left() -> None:
    x, multiply = tf_keras.Input((8, 8, 6), name="image"), K.Multiply(name="multiply")
    y = multiply([x, K.Activation("sigmoid")(x)])
    with pytest.raises(NoMatchError, match=r"'hard_swish' does not apply to: multiply$"):
        replaced(tf_keras.Model(x, multiply([K.Conv2D(6, 1)(y), y])), "multiply", "hard_swish")


FUNCTIONS = """
import tf_keras

def tanh(layer):
    return tf_keras.layers.Activation("tanh") if type(layer).__name__ == "Activation" else None

def wider(layer):
    return tf_keras.layers.Conv2D(8, 3)

def separable(layer):
    return tf_keras.layers.SeparableConv2D(4, 1)

def number(layer):
    return 3

def fails(layer):
    raise KeyError("weights")

def in_place(layer):
    layer.filters = 8
    return layer

def pool(layer):
    return tf_keras.layers.AveragePooling2D(2)

def bilinear(layer):
    return tf_keras.layers.Dot(axes=1)

tanh_of_all = tf_keras.layers.Activation("tanh")

def one_for_all(layer):
    return tanh_of_all if type(layer).__name__ == "Activation" else None

def two_layers(layer):
    inputs = tf_keras.Input((None, None, 6))
    first = tf_keras.layers.Conv2D(6, 1, name="first", kernel_initializer="ones", bias_initializer="ones")
    return tf_keras.Sequential([inputs, first, tf_keras.layers.ReLU(name="second")])

def with_weights(layer):
    made = type(layer).from_config({**layer.get_config(), "activation": "relu"})
    made.build((None, 8, 8, 6))
    made.set_weights([2 * value for value in layer.get_weights()])
    return made

def without_activation(layer):
    return type(layer).from_config({**layer.get_config(), "activation": None})
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "blocks.py").write_text(FUNCTIONS)
    return tmp_path


def test_a_function_of_the_users_own(functions: Path) -> None:
    found = replaced(swishes(), "act", "blocks.py:tanh", functions)
    assert (found.get_layer("act").get_config()["activation"], len(found.layers)) == ("tanh", len(swishes().layers))


def test_a_layer_without_weights_yet_takes_those_of_the_old_one(functions: Path) -> None:
    model = swishes()
    found = replaced(model, "conv", "blocks.py:without_activation", functions).get_layer("conv")
    assert all(map(np.array_equal, found.get_weights(), model.get_layer("conv").get_weights()))
    assert found.get_config()["activation"] == "linear"


def test_a_built_layer_keeps_its_weights(functions: Path) -> None:
    model = swishes()
    found = replaced(model, "conv", "blocks.py:with_weights", functions).get_layer("conv")
    assert all(np.array_equal(new, 2 * old) for new, old in zip(found.get_weights(), model.get_layer("conv").get_weights(), strict=True))


def test_a_model_of_several_layers_is_put_in_flat(functions: Path) -> None:
    model = swishes()
    found = replaced(model, "act", "blocks.py:two_layers", functions)
    assert [layer.name for layer in found.layers] == ["image", "conv", "act/first", "act/second", "gate", "written_out", "head"]
    conv, head = (model.get_layer(name) for name in ("conv", "head"))
    inner = tf.nn.relu(tf.reduce_sum(conv(IMAGES), axis=-1, keepdims=True) + 1.0) * tf.ones(6)
    np.testing.assert_allclose(found(IMAGES), head(inner * tf.sigmoid(inner)), rtol=1e-4, atol=1e-4)


def test_the_source_is_untouched_by_a_function_that_changes_what_it_is_given(functions: Path) -> None:
    model = swishes()
    with pytest.raises(ModelError, match=r"^replace\[0\]\.with: blocks\.py:in_place changes layer 'conv' in place: return a new one"):
        replaced(model, "conv", "blocks.py:in_place", functions)
    assert model.get_layer("conv").filters == 6


REFUSED: dict[str, tuple[str, str, type[Exception], str]] = {
    "no such layer": (
        "actt",
        "hard_swish",
        NoMatchError,
        r"^replace\[0\]\.match: pattern 'actt' matches none of the 6 layers; did you mean 'act'\?",
    ),
    "nothing to do": ("head", "relu", NoMatchError, r"matches only layers that 'relu' does not apply to: head$"),
    "inputs are no layers to replace": ("InputLayer", "blocks.py:pool", NoMatchError, r"does not apply to: image$"),
    "no layer": (
        "conv",
        "blocks.py:number",
        ModelError,
        r"^replace\[0\]\.with: blocks\.py:number returned builtins\.int for layer 'conv'; expected a tf_keras layer",
    ),
    "other weights": (
        "conv",
        "blocks.py:wider",
        ModelError,
        r"^replace\[0\]\.with: the Conv2D that blocks\.py:wider returned for layer 'conv' makes \(None, 6, 6, 8\) of \(None, 8, 8, 6\); "
        r"expected \(None, 6, 6, 6\)$",
    ),
    "other weights of the same shape of output": (
        "head",
        "blocks.py:separable",
        ModelError,
        r"^replace\[0\]\.with: replacement of layer 'head' has weights of shapes .* give it the same, or return a layer that is built",
    ),
    "another shape": (
        "act",
        "blocks.py:pool",
        ModelError,
        r"^replace\[0\]\.with: the AveragePooling2D that blocks\.py:pool returned for layer 'act' makes \(None, 3, 3, 6\) of "
        r"\(None, 6, 6, 6\); expected \(None, 6, 6, 6\)$",
    ),
    "another number of inputs": (
        "act",
        "blocks.py:bilinear",
        ModelError,
        r"^replace\[0\]\.with: the Dot that blocks\.py:bilinear returned for layer 'act' cannot read what the layer reads, "
        r"\(None, 6, 6, 6\): ValueError: ",
    ),
    "a function that raises": (
        "act",
        "blocks.py:fails",
        ModelError,
        r"^replace\[0\]\.with: blocks\.py:fails raises KeyError for layer 'act': ",
    ),
    "one layer for two": (
        "Activation",
        "blocks.py:one_for_all",
        ModelError,
        r"^replace\[0\]\.with: blocks\.py:one_for_all returned the same layer for 'act' and 'gate': make a new one for each$",
    ),
    "no such function": ("act", "blocks.py:tan", DataError, r"^replace\[0\]\.with: 'blocks\.py:tan': .* did you mean 'tanh'\?$"),
}


@pytest.mark.parametrize(("match", "name", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(functions: Path, match: str, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replaced(swishes(), match, name, functions)


@pytest.mark.parametrize("name", ["fails", "tan"])
def test_what_is_wrong_with_a_function_is_found_by_its_line(functions: Path, name: str) -> None:
    origin = Origin(file="r.yaml", folder=functions, lines={"replace[0].with": "r.yaml:6"})
    with pytest.raises((ModelError, DataError), match=rf"^r\.yaml:6: replace\[0\]\.with: .*blocks\.py:{name}"), origin.with_lines():
        replaced(swishes(), "act", f"blocks.py:{name}", functions)


def test_the_recipe_names_built_ins_and_references_only() -> None:
    assert Replacement.model_validate({"match": "*", "with": "a.py:f"}).with_ == "a.py:f"
    with pytest.raises(ValueError, match="hard_swish, relu, repvgg, or module:function"):
        Replacement.model_validate({"match": "*", "with": "gelu"})


def test_replacements_follow_each_other() -> None:
    first = Replacement.model_validate({"match": "act", "with": "hard_swish"})
    with pytest.raises(NoMatchError, match=r"^replace\[1\]\.match: "):
        replace_blocks(swishes(), [first, first])
