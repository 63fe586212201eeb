"""Layers that are split into one product each: the parts, their names and weights, what stays whole, and that both compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from tfqat.models.canonical import canonicalize, is_canonical

RNG = np.random.default_rng(0)


def ended(inputs: Any, outputs: Any) -> Any:
    """A model whose outputs are not those of the layer in question, with random weights."""
    ends = [layers.Activation("linear", name=f"end_{index}")(output) for index, output in enumerate(outputs)]
    model = tf_keras.Model(inputs, ends)
    model.set_weights([RNG.normal(size=weight.shape).astype(np.float32) for weight in model.weights])
    return model


def values_for(model: Any) -> list[Any]:
    shapes = [[size or 3 for size in tensor.shape] for tensor in model.inputs]
    values = [RNG.normal(size=shape) for shape in shapes]
    return [
        value > -0.5 if tensor.dtype == "bool" else value.astype(np.float32) for value, tensor in zip(values, model.inputs, strict=True)
    ]


def parts(model: Any) -> list[tuple[str, str]]:
    kept = [layer for layer in model.layers if not isinstance(layer, layers.InputLayer) and not layer.name.startswith("end_")]
    return [(layer.name, type(layer).__name__) for layer in kept]


def check_equal(model: Any, folder: Path) -> Any:
    """The canonical form, after making sure that it and its reloaded copy compute what `model` does."""
    result = canonicalize(model)
    result.model.save(folder / "model.keras")
    loaded = tf_keras.models.load_model(folder / "model.keras")
    values = values_for(model)
    expected = model(values)
    for made in (result.model, loaded):
        assert is_canonical(made)
        for one, other in zip(expected, made(values), strict=True):
            assert np.abs(one).max() > 0.1
            assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()
    return result


def test_separable_convolution(tmp_path: Path) -> None:
    image = layers.Input((9, 8, 3), name="image")
    layer = layers.SeparableConv2D(5, 3, strides=2, padding="same", depth_multiplier=2, activation="relu", name="s", bias_regularizer="l2")
    model = ended(image, [layer(image)])
    result = check_equal(model, tmp_path)
    assert parts(result.model) == [("s/depthwise", "DepthwiseConv2D"), ("s/pointwise", "Conv2D")]
    depthwise, pointwise = result.model.get_layer("s/depthwise"), result.model.get_layer("s/pointwise")
    assert (
        depthwise.get_config() | {"padding": "same", "strides": (2, 2), "use_bias": False, "activation": "linear"} == depthwise.get_config()
    )
    assert pointwise.get_config() | {"kernel_size": (1, 1), "strides": (1, 1), "activation": "relu"} == pointwise.get_config()
    assert type(pointwise.bias_regularizer).__name__ == "L2"
    assert result.origins == {"s/depthwise": (layer.depthwise_kernel,), "s/pointwise": (layer.pointwise_kernel, layer.bias)}


SEPARABLE: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "dilated, without bias": (
        layers.SeparableConv2D(5, 3, dilation_rate=2, use_bias=False, name="s"),
        (9, 9, 3),
        ["depthwise", "pointwise"],
    ),
    "1-D": (layers.SeparableConv1D(5, 3, strides=2, padding="same", name="s"), (9, 3), ["depthwise", "pointwise"]),
    "1-D, causal": (
        layers.SeparableConv1D(5, 3, padding="causal", dilation_rate=2, name="s"),
        (9, 3),
        ["padding", "depthwise", "pointwise"],
    ),
}


@pytest.mark.parametrize("case", SEPARABLE)
def test_separable_convolutions(case: str, tmp_path: Path) -> None:
    layer, shape, expected = SEPARABLE[case]
    x = layers.Input(shape, name="x")
    result = check_equal(ended(x, [layer(x)]), tmp_path)
    assert [name for name, _ in parts(result.model)] == [f"s/{part}" for part in expected]


def test_a_layer_that_makes_an_output_keeps_its_name() -> None:
    image = layers.Input((9, 8, 3), name="image")
    model = tf_keras.Model(
        image, [layers.SeparableConv2D(5, 3, name="heat")(image), layers.EinsumDense("...x,xyz->...yz", (2, 3), name="box")(image)]
    )
    result = canonicalize(model)
    assert result.model.output_names == ["heat", "box"]
    assert sorted(parts(result.model)) == [
        ("box", "Reshape"),
        ("box/dense", "Dense"),
        ("heat", "Conv2D"),
        ("heat/depthwise", "DepthwiseConv2D"),
    ]
    assert canonicalize(result.model).model.get_config() == result.model.get_config()


# equation, output shape, bias axes, activation, input shape, the layers
DENSE: dict[str, tuple[str, Any, str | None, str | None, tuple[int | None, ...], list[tuple[str, str]]]] = {
    "last axis": ("abc,cd->abd", (6, 7), "d", "relu", (6, 4), [("e", "Dense")]),
    "any rank": ("...x,xy->...y", 5, "y", "softmax", (6, 4), [("e", "Dense")]),
    "rank 2": ("ab,bc->ac", 5, None, None, (4,), [("e", "Dense")]),
    "unknown length": ("abc,cd->abd", (None, 7), "d", None, (None, 4), [("e", "Dense")]),
    "two new axes": ("abc,cde->abde", (6, 2, 3), "de", "gelu", (6, 4), [("e", "Dense"), ("e/reshape_out", "Reshape")]),
    "two summed axes": ("abcd,cde->abe", (6, 5), "e", "softmax", (6, 2, 4), [("e/reshape_in", "Reshape"), ("e", "Dense")]),
    "two of both": (
        "abcd,cdef->abef",
        (None, 5, 3),
        None,
        None,
        (None, 2, 4),
        [("e/reshape_in", "Reshape"), ("e", "Dense"), ("e/reshape_out", "Reshape")],
    ),
    "softmax of one of two new axes": ("abc,cde->abde", (6, 2, 3), "de", "softmax", (6, 4), [("e", "EinsumDense")]),
    "bias of one of two new axes": ("abc,cde->abde", (6, 2, 3), "e", None, (6, 4), [("e", "EinsumDense")]),
    "bias of a position": ("abc,cd->abd", (6, 7), "bd", None, (6, 4), [("e", "EinsumDense")]),
    "not the last axis": ("abc,bd->acd", (4, 3), None, None, (6, 4), [("e", "EinsumDense")]),
    "new axes in another order": ("abc,cde->abed", (6, 3, 2), None, None, (6, 4), [("e", "EinsumDense")]),
    "a product per position": ("abc,bcd->abd", (6, 7), None, None, (6, 4), [("e", "EinsumDense")]),
    "summed axes in another order": ("abcd,dce->abe", (6, 5), None, None, (6, 2, 4), [("e", "EinsumDense")]),
}


@pytest.mark.parametrize("case", DENSE)
def test_einsum_dense(case: str, tmp_path: Path) -> None:
    equation, shape, bias, activation, given, expected = DENSE[case]
    x = layers.Input(given, name="x")
    layer = layers.EinsumDense(equation, shape, bias_axes=bias, activation=activation, name="e")
    result = check_equal(ended(x, [layer(x)]), tmp_path)
    assert parts(result.model) == expected
    assert result.origins == {"e": tuple(layer.weights)}


Attend = Callable[..., Any]


def attention(call: Attend, *shapes: Sequence[int | None], mask: bool = False, **options: Any) -> Any:
    """A model of one attention of 2 heads called as `call(layer, *inputs)` says."""
    inputs = [layers.Input(shape, name=f"x{index}") for index, shape in enumerate(shapes)]
    if mask:
        inputs[-1] = layers.Input(shapes[-1], dtype="bool", name="mask")
    made = call(layers.MultiHeadAttention(**{"num_heads": 2, "key_dim": 4, "name": "a"} | options), *inputs)
    return ended(inputs, made if isinstance(made, tuple) else [made])


WHOLE = [
    ("a/query", "Dense"),
    ("a/query_scale", "Rescaling"),
    ("a/query_reshape", "Reshape"),
    ("a/query_permute", "Permute"),
    ("a/key", "Dense"),
    ("a/key_reshape", "Reshape"),
    ("a/key_permute", "Permute"),
    ("a/value", "Dense"),
    ("a/value_reshape", "Reshape"),
    ("a/value_permute", "Permute"),
    ("a/scores", "MatMul"),
    ("a/softmax", "Softmax"),
    ("a/product", "MatMul"),
    ("a/output_permute", "Permute"),
    ("a/output_reshape", "Reshape"),
    ("a/output", "Dense"),
]
ATTENTION: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "self": (lambda: attention(lambda a, x: a(x, x), (5, 8)), []),
    "by name": (lambda: attention(lambda a, x, y: a(key=x, value=y, query=x), (5, 8), (5, 6)), []),
    "cross": (lambda: attention(lambda a, x, y: a(x, y), (5, 8), (7, 6), value_dim=3, output_shape=9), []),
    "without bias": (lambda: attention(lambda a, x: a(x, x), (5, 8), use_bias=False), []),
    "of unknown length": (lambda: attention(lambda a, x: a(x, x), (None, 8)), []),
    "scores": (lambda: attention(lambda a, x: a(x, x, return_attention_scores=True), (5, 8)), []),
    "dropout": (lambda: attention(lambda a, x: a(x, x), (5, 8), dropout=0.5), [("a/dropout", "Dropout")]),
    "mask": (lambda: attention(lambda a, x, m: a(x, x, attention_mask=m), (5, 8), (5, 5), mask=True), [("a/mask", "Reshape")]),
    "mask per head": (lambda: attention(lambda a, x, m: a(x, x, attention_mask=m), (5, 8), (2, 5, 5), mask=True), []),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_becomes_its_products(case: str, tmp_path: Path) -> None:
    build, more = ATTENTION[case]
    model = build()
    result = check_equal(model, tmp_path)
    assert sorted(parts(result.model)) == sorted(WHOLE + more)
    made, source = result.model, model.get_layer("a")
    assert made.get_layer("a/scores").transpose_b and not made.get_layer("a/product").transpose_b
    assert [len(tensor.shape) for tensor in made.get_layer("a/scores").input + made.get_layer("a/product").input] == [4, 4, 4, 4]
    assert made.get_layer("a/query_scale").scale == 0.5
    assert result.origins["a/output"] == tuple(source._output_dense.weights)
    assert [weight for name in ("query", "key", "value", "output") for weight in result.origins[f"a/{name}"]] == source.weights


WHOLE_ATTENTION = {
    "two axes": lambda: attention(lambda a, x: a(x, x), (5, 4, 8)),
    "causal": lambda: attention(lambda a, x: a(x, x, use_causal_mask=True), (5, 8)),
    "output of two axes": lambda: attention(lambda a, x: a(x, x), (5, 8), output_shape=(2, 3)),
    "constraint": lambda: attention(lambda a, x: a(x, x), (5, 8), kernel_constraint="non_neg"),
}


@pytest.mark.parametrize("case", WHOLE_ATTENTION)
def test_attention_with_other_options_stays_whole(case: str, tmp_path: Path) -> None:
    model = WHOLE_ATTENTION[case]()
    assert is_canonical(model)
    result = check_equal(model, tmp_path)
    assert parts(result.model) == [("a", "MultiHeadAttention")]
    assert result.model.get_layer("a").get_config() == model.get_layer("a").get_config()


def test_padding_that_keras_masks_stays_with_the_attention() -> None:
    ids = layers.Input((5,), dtype="int32", name="ids")
    x = layers.Embedding(7, 8, mask_zero=True, name="embedding")(ids)
    model = ended(ids, [layers.MultiHeadAttention(2, 4, name="a")(x, x)])
    result = canonicalize(model)
    numbers = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    assert is_canonical(model) and ("a", "MultiHeadAttention") in parts(result.model)
    assert np.array_equal(result.model(numbers)[0], model(numbers)[0])


def test_dropout_of_an_attention_called_for_inference_stays_off() -> None:
    x = layers.Input((5, 8), name="x")
    model = ended(x, [layers.MultiHeadAttention(2, 4, dropout=0.9, name="a")(x, x, training=False)])
    values = values_for(model)
    assert np.allclose(canonicalize(model).model(values, training=True)[0], model(values)[0], rtol=1e-5)


def test_a_class_of_the_users_stays_whole() -> None:
    class Twice(layers.SeparableConv2D):
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    image = layers.Input((9, 8, 3), name="image")
    model = ended(image, [Twice(5, 3, name="s")(image)])
    result = canonicalize(model)
    values = values_for(model)
    assert parts(result.model) == [("s", "Twice")]
    assert np.array_equal(result.model(values)[0], model(values)[0])


def test_frozen_layers_stay_frozen() -> None:
    image = layers.Input((9, 8, 3), name="image")
    model = ended(image, [layers.SeparableConv2D(5, 3, name="s", trainable=False)(image)])
    assert [layer.trainable for layer in canonicalize(model).model.layers] == [True, False, False, True]


@pytest.mark.parametrize("has_it", [True, False], ids=["tf-keras 2.21", "tf-keras 2.18"])
def test_the_masking_of_a_softmax_is_named_where_tf_keras_has_a_name_for_it(has_it: bool) -> None:
    from tfqat.models import split

    layer = layers.MultiHeadAttention(2, 4)
    vars(layer).pop("_softmax_robust_masking", None)
    if has_it:
        layer._softmax_robust_masking = True
    (step,) = split._softmax(layer, None, None)
    assert ("robust_masking" in step.config) == has_it
