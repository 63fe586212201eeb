"""Reading a model's graph and rebuilding it: what is read, what a rebuilt model keeps, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tfqat.errors import ModelError
from tfqat.models import graph
from tfqat.models.graph import ModelGraph, Node, TensorRef


def residual() -> Any:
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(3, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Add(name="add")([image, x])
    return tf_keras.Model(image, layers.Dense(2, name="fc")(layers.Flatten(name="flat")(x)), name="residual")


def randomized(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 1, value.shape).astype(value.dtype) for value in model.get_weights()])
    return model


IMAGES = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)


def test_read() -> None:
    read = graph.read(residual())
    assert [(node.name, node.class_name, [source.layer for source in node.inputs]) for node in read.nodes] == [
        ("image", "InputLayer", []),
        ("conv", "Conv2D", ["image"]),
        ("bn", "BatchNormalization", ["conv"]),
        ("add", "Add", ["image", "bn"]),
        ("flat", "Flatten", ["add"]),
        ("fc", "Dense", ["flat"]),
    ]
    assert read.outputs == (TensorRef(layer="fc"),)
    assert read.node("conv").weights == {"kernel": (3, 3, 3, 3), "bias": (3,)}
    assert read.node("conv").config["padding"] == "same"
    assert read.consumers(TensorRef(layer="image")) == ((read.node("conv"), 0), (read.node("add"), 0))
    assert read.consumers(TensorRef(layer="fc")) == ()
    with pytest.raises(KeyError, match="nowhere"):
        read.node("nowhere")


def test_consumers_tell_outputs_of_a_layer_apart() -> None:
    first, second = TensorRef(layer="split"), TensorRef(layer="split", index=1)
    node = Node(name="add", class_name="Add", inputs=(second, second))
    built = ModelGraph(nodes=(node,), outputs=())
    assert (built.consumers(first), built.consumers(second)) == ((), ((node, 0), (node, 1)))


def state_of(model: Any) -> Any:
    return model.get_config(), [len(layer._inbound_nodes) for layer in model.layers], [len(layer._outbound_nodes) for layer in model.layers]


def test_clone_computes_the_same_and_shares_nothing() -> None:
    model = randomized(residual())
    before, weights = state_of(model), model.get_weights()
    copy = graph.clone(model)
    assert np.array_equal(copy(IMAGES).numpy(), model(IMAGES).numpy())
    assert copy.get_config() == model.get_config()
    assert not {id(layer) for layer in copy.layers} & {id(layer) for layer in model.layers}
    copy.set_weights([value + 1 for value in weights])
    assert state_of(model) == before
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), weights, strict=True))


def kept_frozen() -> Any:
    model = residual()
    model.get_layer("conv").trainable = False
    return model


def test_clone_keeps_layers_frozen() -> None:
    assert [weight.name for weight in graph.clone(kept_frozen()).trainable_weights] == [
        "bn/gamma:0",
        "bn/beta:0",
        "fc/kernel:0",
        "fc/bias:0",
    ]


def test_rebuild_puts_layers_on_edges_and_shares_them() -> None:
    class Times(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 10.0

    model = randomized(residual())
    shared = Times(name="shared")
    made = graph.rebuild(model, on_edges={("conv", 0): shared, ("add", 0): shared})
    read = graph.read(made)
    assert [source.layer for source in read.node("conv").inputs] == ["shared"]
    assert [source.layer for source in read.node("add").inputs] == ["shared", "bn"]
    assert [node.name for node in read.nodes].count("shared") == 1
    for layer in model.layers:
        made.get_layer(layer.name).set_weights(layer.get_weights())
    np.testing.assert_allclose(made(IMAGES).numpy(), model(IMAGES * 10).numpy(), rtol=1e-5)


def test_rebuild_replaces_layers() -> None:
    def wider(layer: Any) -> Any:
        return graph.clone_layer(layer, units=7) if layer.name == "fc" else graph.clone_layer(layer)

    assert graph.rebuild(residual(), replace=wider).output_shape == (None, 7)


def test_float64_model_has_the_same_weights_and_computes_in_float64() -> None:
    model = randomized(residual())
    wide = graph.as_float64(model)
    output = wide(IMAGES.astype(np.float64))
    assert output.dtype == tf.float64
    assert all(weight.dtype == tf.float64 for weight in wide.weights)
    assert all(np.array_equal(new, old.astype(np.float64)) for new, old in zip(wide.get_weights(), model.get_weights(), strict=True))
    np.testing.assert_allclose(output.numpy(), model(IMAGES).numpy(), rtol=1e-4)
    assert not np.array_equal(output.numpy(), model(IMAGES).numpy().astype(np.float64))
    assert {weight.dtype for weight in model.weights} == {tf.float32}


def computing(dtype: str, layer: Any) -> Any:
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, layers.Dense(2, name="last")(layer(dtype)(layers.Dense(4, name="first")(x))), name="net")


OTHER_TYPES = {
    "mixed precision": ("mixed_float16", lambda dtype: layers.Dense(4, dtype=dtype, name="it"), "float16"),
    "bfloat16": ("mixed_bfloat16", lambda dtype: layers.Dense(4, dtype=dtype, name="it"), "bfloat16"),
    "float64": ("float64", lambda dtype: layers.Dense(4, dtype=dtype, name="it"), "float64"),
    "a layer without weights": ("float16", lambda dtype: layers.ReLU(dtype=dtype, name="it"), "float16"),
}


@pytest.mark.parametrize(("dtype", "layer", "computes"), OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_other_types_than_float32_are_refused(dtype: str, layer: Any, computes: str) -> None:
    with pytest.raises(ModelError) as caught:
        graph.check_float32(computing(dtype, layer))
    assert str(caught.value) == (
        f"layer 'it' of model 'net' computes in {computes}; expected float32. A saved model keeps its types, so build it again, after "
        'tf_keras.mixed_precision.set_global_policy("float32") and without another dtype, and copy the weights: '
        "built.set_weights(model.get_weights())"
    )


def integers() -> Any:
    x = tf_keras.Input((5,), dtype="int32")
    return tf_keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Embedding(9, 3)(x))))


def strings() -> Any:
    x = tf_keras.Input((1,), dtype="string")
    return tf_keras.Model(x, layers.Dense(2)(layers.Embedding(9, 3)(layers.Hashing(9)(x))))


def operators_under_a_mixed_policy() -> Any:
    x = tf_keras.Input((4,), dtype="float32")
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        y = layers.Dense(2, dtype="float32")(x) * 2.0
        assert y.dtype == tf.float32
        return tf_keras.Model(x, y)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


COMPUTES_IN_FLOAT32 = {
    "float16 input": lambda: tf_keras.Model(x := tf_keras.Input((4,), dtype="float16"), layers.Dense(2)(x)),
    "integers": integers,
    "strings": strings,
    "operators under a mixed policy": operators_under_a_mixed_policy,
}


@pytest.mark.parametrize("build", COMPUTES_IN_FLOAT32.values(), ids=COMPUTES_IN_FLOAT32)
def test_float32_whatever_comes_in(build: Any) -> None:
    graph.check_float32(build())


def test_tensors_make_a_model_of_inner_values() -> None:
    model = randomized(residual())
    symbolic = graph.tensors(model)
    inner = tf_keras.Model(model.inputs, symbolic[TensorRef(layer="bn")])
    assert len(symbolic) == len(model.layers)
    assert np.array_equal(inner(IMAGES).numpy(), model.get_layer("bn")(model.get_layer("conv")(IMAGES)).numpy())


def two_inputs() -> tuple[Any, Any]:
    return tf_keras.Input((4,), name="a"), tf_keras.Input((4,), name="b")


def dictionary() -> Any:
    a, b = two_inputs()
    return tf_keras.Model({"a": a, "b": b}, {"sum": layers.Add(name="sum")([a, b]), "fc": layers.Dense(2, name="fc")(b)})


def in_a_list() -> Any:
    a, b = two_inputs()
    return tf_keras.Model([a, b], [layers.Concatenate(name="cat")([b, a])])


def nested_outputs() -> Any:
    a, b = two_inputs()
    return tf_keras.Model([a, b], (a, {"x": layers.ReLU(name="relu")(b)}))


def operators() -> Any:
    a, b = two_inputs()
    return tf_keras.Model([a, b], tf.nn.relu(a + b * 2.0) - tf.reduce_mean(b, axis=-1, keepdims=True))


def keywords() -> Any:
    a, b = two_inputs()
    a, b = layers.Reshape((2, 2), name="ra")(a), layers.Reshape((2, 2), name="rb")(b)
    return tf_keras.Model([a.node.layer.input, b.node.layer.input], layers.MultiHeadAttention(1, 2, name="mha")(a, value=b))


STRUCTURES = {
    "dictionaries": (dictionary, {"a": np.ones((3, 4), np.float32), "b": -np.ones((3, 4), np.float32)}),
    "a list of one output": (in_a_list, [np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)]),
    "nested outputs": (nested_outputs, [np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)]),
    "operators": (operators, [np.ones((3, 4), np.float32), np.eye(3, 4, dtype=np.float32)]),
    "tensors by keyword": (keywords, [np.ones((3, 4), np.float32), np.eye(3, 4, dtype=np.float32)]),
}


@pytest.mark.parametrize(("build", "inputs"), STRUCTURES.values(), ids=STRUCTURES)
def test_clone_keeps_the_structure_of_inputs_and_outputs(build: Any, inputs: Any) -> None:
    model = build()
    expected, got = model(inputs), graph.clone(model)(inputs)
    tf.nest.assert_same_structure(got, expected)
    assert all(np.array_equal(new, old) for new, old in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True))


def shared() -> Any:
    """Two inputs through one convolution and one norm, and one of them through the convolution again."""
    a, b = tf_keras.Input((8, 8, 3), name="a"), tf_keras.Input((8, 8, 3), name="b")
    conv, norm = layers.Conv2D(3, 3, padding="same", name="conv"), layers.BatchNormalization(name="bn")
    x, y = norm(conv(a)), norm(conv(b))
    return tf_keras.Model([a, b], layers.Subtract(name="sub")([conv(x), y]), name="shared")


def test_each_call_of_a_shared_layer_is_a_node() -> None:
    read = graph.read(shared())
    assert {node.name: [source.layer for source in node.inputs] for node in read.nodes} == {
        **{"a": [], "b": [], "conv": ["a"], "conv@2": ["b"], "conv@3": ["bn"]},
        **{"bn": ["conv"], "bn@2": ["conv@2"], "sub": ["conv@3", "bn@2"]},
    }
    assert [node.name for node in read.calls("conv")] == ["conv", "conv@2", "conv@3"]
    assert {node.layer for node in read.calls("conv")} == {"conv"}
    assert len({node.weights["kernel"] for node in read.calls("conv")}) == 1
    assert read.calls("conv@2") == read.calls("nowhere") == ()
    assert read.producer(TensorRef(layer="conv@3")) == read.node("conv@3")
    assert read.consumers(TensorRef(layer="bn")) == ((read.node("conv@3"), 0),)


def test_calls_outside_of_the_model_are_not_counted() -> None:
    image = tf_keras.Input((8, 8, 3), name="image")
    conv = layers.Conv2D(3, 3, name="conv")
    conv(image)  # first call, of no model
    read = graph.read(tf_keras.Model(image, conv(conv(image))))
    assert [node.name for node in read.nodes] == ["image", "conv", "conv@2"]
    assert [source.layer for source in read.node("conv@2").inputs] == ["conv"]


def test_shapes() -> None:
    x = tf_keras.Input((None, 8, 4), name="x")
    y = layers.Conv2D(5, 3, strides=2, padding="same", name="conv")(x)
    read = graph.read(tf_keras.Model(x, layers.GlobalAveragePooling2D(name="pool")(y)))
    found = {node.name: read.shape(TensorRef(layer=node.name)) for node in read.nodes}
    assert found == {"x": (None, None, 8, 4), "conv": (None, None, 4, 5), "pool": (None, 5)}
    assert read.shape(TensorRef(layer="conv", index=1)) == ()


def test_a_rebuilt_model_shares_what_the_old_one_shared() -> None:
    model, asked = randomized(shared()), []
    inputs = [IMAGES, IMAGES[::-1]]

    def replace(layer: Any) -> Any:
        asked.append(layer.name)
        return graph.clone_layer(layer)

    copy = graph.rebuild(model, replace=replace)
    graph.copy_weights(model, copy)
    assert sorted(asked) == ["bn", "conv", "sub"]
    assert len(copy.get_layer("conv")._inbound_nodes) == 3
    assert len(copy.weights) == len(model.weights) == 6
    assert np.array_equal(copy(inputs).numpy(), model(inputs).numpy())
    assert [node.name for node in graph.read(copy).nodes] == [node.name for node in graph.read(model).nodes]


def test_a_layer_is_put_before_one_call_of_a_shared_layer() -> None:
    model = randomized(shared())
    double = layers.Rescaling(2.0, name="double")
    changed = graph.rebuild(model, on_edges={("conv@2", 0): double})
    graph.copy_weights(model, changed)
    read = graph.read(changed)
    assert [[source.layer for source in node.inputs] for node in read.calls("conv")] == [["a"], ["double"], ["bn"]]
    np.testing.assert_array_equal(changed([IMAGES, IMAGES]).numpy(), model([IMAGES, 2 * IMAGES]).numpy())


def test_one_inserted_layer_on_two_edges_of_one_tensor_is_called_once() -> None:
    double = layers.Rescaling(2.0, name="double")
    changed = graph.rebuild(residual(), on_edges={("conv", 0): double, ("add", 0): double})
    assert len(double._inbound_nodes) == 1
    read = graph.read(changed)
    assert [source.layer for node in ("conv", "add") for source in read.node(node).inputs] == ["double", "double", "bn"]


class Forgetful(layers.Dense):  # type: ignore[misc]
    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_a_layer_that_forgets_an_argument_is_named() -> None:
    with pytest.raises(ModelError, match=r"(?s)layer 'own' \(Forgetful\) cannot be made again from its config.*'units'.*get_config"):
        graph.clone_layer(Forgetful(3, name="own"))


def test_sequential() -> None:
    model = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    assert [node.name for node in graph.read(model).nodes][1:] == ["a", "b"]
    assert np.array_equal(graph.clone(model)(np.ones((1, 4))).numpy(), model(np.ones((1, 4))).numpy())


class Subclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def nested() -> Any:
    image = tf_keras.Input((8, 8, 3))
    return tf_keras.Model(image, residual()(image), name="outer")


REFUSED = {
    "subclassed": (
        Subclassed,
        "model 'mine' (Subclassed) is a subclassed model: its layers are called in Python code that tfqat cannot read. Rebuild it with the "
        "functional API, tf_keras.Model(inputs, outputs), or Sequential with an input shape",
    ),
    "nested": (nested, "layer 'residual' is a model inside model 'outer': tfqat.load_model makes one flat model of it"),
    "Sequential that is not built": (
        lambda: tf_keras.Sequential([layers.Dense(2)], name="open"),
        "model 'open' is a Sequential without an input shape: start it with tf_keras.Input(shape)",
    ),
    "a path": (
        lambda: "float.keras",
        "expected a tf_keras.Model, got builtins.str; tfqat.load_model makes one from a file or a Keras 3 model",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(build: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        graph.read(build())
    assert str(caught.value) == message
