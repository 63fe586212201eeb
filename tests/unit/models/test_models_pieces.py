"""A model in pieces: the chain computes what the model computes, whatever its shape and wherever it is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tfqat.models import graph as model_graph
from tfqat.models.graph import TensorRef
from tfqat.models.pieces import Pieces, cut

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(5, 6, 6, 3)).astype(np.float32)
OTHERS = RNG.normal(size=(5, 6, 6, 3)).astype(np.float32)


def ref(text: str) -> TensorRef:
    layer, _, index = text.partition(":")
    return TensorRef(layer=layer, index=int(index or 0))


def randomized(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, value.shape) for value in model.get_weights()])
    return model


def conv(name: str, **settings: Any) -> Any:
    return layers.Conv2D(4, 3, padding="same", name=name, **settings)


def residual() -> Any:
    image = tf_keras.Input((6, 6, 3), name="image")
    shortcut = layers.ReLU(name="stem_relu")(conv("stem")(image))
    x = conv("second")(layers.ReLU(name="first_relu")(conv("first")(shortcut)))
    x = layers.Add(name="add")([x, shortcut])
    return randomized(tf_keras.Model(image, layers.Dense(2, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x)), name="residual"))


def shared() -> Any:
    """`enc` is called on the image and on its own output."""
    image = tf_keras.Input((6, 6, 3), name="image")
    encoder, pool = layers.Conv2D(3, 3, padding="same", name="enc"), layers.GlobalAveragePooling2D(name="pool")
    once = encoder(image)
    x = layers.Concatenate(name="concat")([pool(once), pool(layers.ReLU(name="relu")(encoder(once)))])
    return randomized(tf_keras.Model(image, layers.Dense(2, name="fc")(x), name="shared"))


def two_inputs() -> Any:
    """Its inputs, in the order in which they are given, are not in the order of their names."""
    right, left = tf_keras.Input((6, 6, 3), name="right"), tf_keras.Input((6, 6, 3), name="left")
    return randomized(tf_keras.Model([right, left], layers.Subtract(name="sub")([conv("of_left")(left), conv("of_right")(right)])))


def two_outputs() -> Any:
    """One output is read inside too, the other is a model's input behind one layer."""
    image = tf_keras.Input((6, 6, 3), name="image")
    x = conv("stem")(image)
    return randomized(tf_keras.Model(image, [x, layers.Dense(2, name="fc")(x), layers.ReLU(name="clipped")(image)]))


def two_of_one_layer() -> Any:
    """A layer with two outputs, the first of which is read after the second."""
    image = tf_keras.Input((6, 6, 3), name="image")
    first, second = Halves(name="halves")(image)
    x = layers.Dense(2, name="fc")(second)
    return randomized(tf_keras.Model(image, layers.Concatenate(name="concat")([layers.ReLU(name="relu")(x), first])))


class Halves(layers.Layer):  # type: ignore[misc]
    """x -> (x / 2, -x / 2)."""

    def call(self, inputs: Any) -> Any:
        return inputs / 2, -inputs / 2


NETWORKS = {
    "residual": (residual, IMAGES),
    "shared layer": (shared, IMAGES),
    "inputs as a list": (two_inputs, [IMAGES, OTHERS]),
    "inputs as a tuple of tensors": (two_inputs, (tf.constant(IMAGES), tf.constant(OTHERS))),
    "inputs as a dict": (two_inputs, {"left": OTHERS, "right": IMAGES}),
    "outputs": (two_outputs, IMAGES),
    "outputs of one layer": (two_of_one_layer, IMAGES),
}


def every_node(model: Any) -> list[set[str]]:
    return [{node.name} for node in model_graph.read(model).nodes if node.class_name != "InputLayer"]


CUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "whole": lambda model: {},
    "before every node": lambda model: {"starts": every_node(model)},
    "after every node": lambda model: {"ends": {name for names in every_node(model) for name in names}},
    "in the middle": lambda model: {"starts": every_node(model)[len(every_node(model)) // 2 :][:1]},
}


def bits(values: Any) -> list[bytes]:
    return [np.asarray(value).tobytes() for value in tf.nest.flatten(values)]


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_chain_is_the_model_bit_for_bit(network: str, where: str) -> None:
    build, inputs = NETWORKS[network]
    model = build()
    pieces = cut(model, **CUTS[where](model))
    expected = model(inputs, training=False)
    assert bits(pieces.results(pieces.run(pieces.start(inputs)))) == bits(expected)
    assert float(np.abs(tf.nest.flatten(expected)[0]).max()) > 0.1
    wanted = {"whole": 1, "in the middle": 2}.get(where, len(every_node(model)))
    assert len(pieces.chain) == wanted


def test_pieces_can_be_run_one_at_a_time_and_what_they_start_from_stays() -> None:
    model = residual()
    pieces = cut(model, every_node(model))
    live = pieces.start(IMAGES)
    for number in range(len(pieces.chain)):
        before = dict(live)
        after = pieces.run(live, number, number + 1)
        assert live == before
        live = after
    assert bits(pieces.results(live)) == bits(model(IMAGES))
    middle = pieces.run(pieces.start(IMAGES), 0, 3)
    assert bits(pieces.results(pieces.run(middle, 3))) == bits(pieces.results(pieces.run(middle, 3))) == bits(model(IMAGES))


LIVE = {
    "residual": [
        ["image"],
        ["stem"],
        ["stem_relu"],
        ["stem_relu", "first"],
        ["stem_relu", "first_relu"],
        ["stem_relu", "second"],
        ["add"],
        ["pool"],
        ["fc"],
    ],
    "outputs of one layer": [["image"], ["halves", "halves:1"], ["halves", "fc"], ["halves", "relu"], ["concat"]],
}


def test_an_output_stays_live_to_the_end() -> None:
    pieces = cut(two_outputs(), [{"stem"}, {"fc"}, {"clipped"}])
    assert pieces.outputs == (ref("stem"), ref("fc"), ref("clipped"))
    assert set(pieces.run(pieces.start(IMAGES))) == set(pieces.outputs)
    after_stem = pieces.run(pieces.start(IMAGES), 0, pieces.of("stem") + 1)
    assert ref("stem") in after_stem


@pytest.mark.parametrize("network", LIVE)
def test_live_between_two_pieces_is_exactly_what_is_read_behind(network: str) -> None:
    build, inputs = NETWORKS[network]
    model = build()
    pieces = cut(model, every_node(model))
    live = pieces.start(inputs)
    found = [set(live)]
    for number in range(len(pieces.chain)):
        live = pieces.run(live, number, number + 1)
        found.append(set(live))
    assert found == [{ref(text) for text in texts} for texts in LIVE[network]]


def of_pieces(pieces: Pieces) -> list[tuple[str, ...]]:
    return [piece.nodes for piece in pieces.chain]


def late_branch() -> Any:
    """`early` and `chained` can be computed at once, and are read at the end."""
    image = tf_keras.Input((6, 6, 3), name="image")
    early = layers.ReLU(name="early")(image)
    x = layers.ReLU(name="third")(layers.ReLU(name="second")(layers.ReLU(name="first")(image)))
    x = layers.Subtract(name="sub")([x, early])
    return tf_keras.Model(image, layers.Add(name="add")([x, layers.ReLU(name="of_third")(x), early]))


def test_late_nodes_are_computed_right_before_what_reads_them_first() -> None:
    model = late_branch()
    early = of_pieces(cut(model))[0]
    assert early.index("early") < early.index("third")
    assert of_pieces(cut(model, late={"early"})) == [("first", "second", "third", "early", "sub", "of_third", "add")]
    pieces = cut(model, [{"early", "sub"}], late={"early"})
    assert of_pieces(pieces) == [("first", "second", "third"), ("early", "sub", "of_third", "add")]
    assert [set(pieces.chain[1].reads), set(pieces.chain[0].writes)] == [{ref("image"), ref("third")}, {ref("third")}]
    assert bits(pieces.results(pieces.run(pieces.start(IMAGES)))) == bits(model(IMAGES))


def test_a_late_node_that_nothing_reads_is_an_output_and_comes_last() -> None:
    image = tf_keras.Input((3,), name="image")
    a, b = layers.ReLU(name="a")(image), layers.ReLU(name="b")(image)
    model = tf_keras.Model(image, [a, b])
    assert of_pieces(cut(model, late={"a"})) == [("b", "a")]


def test_starts_and_ends() -> None:
    model = residual()
    nodes = tuple(name for names in every_node(model) for name in names)
    assert nodes == ("stem", "stem_relu", "first", "first_relu", "second", "add", "pool", "fc")
    pieces = cut(model, [{"second", "first_relu"}, {"stem"}], ends={"second", "fc"})
    assert of_pieces(pieces) == [nodes[:3], nodes[3:5], nodes[5:]]
    assert [pieces.of(name) for name in nodes] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_a_partial_last_batch() -> None:
    model = residual()
    pieces = cut(model, every_node(model))
    for size in (5, 5, 2, 1):
        found = pieces.results(pieces.run(pieces.start(IMAGES[:size])))
        assert bits(found) == bits(model(IMAGES[:size]))


def test_weights_that_change_count() -> None:
    model = residual()
    pieces = cut(model, every_node(model))
    before = bits(pieces.results(pieces.run(pieces.start(IMAGES))))
    kernel = model.get_layer("first").kernel
    kernel.assign(2 * kernel)
    after = bits(pieces.results(pieces.run(pieces.start(IMAGES))))
    assert after == bits(model(IMAGES)) != before


def test_inputs_are_cast_to_what_the_model_takes() -> None:
    words, scale = tf_keras.Input((4,), dtype="int32", name="words"), tf_keras.Input((2,), name="scale")
    model = randomized(tf_keras.Model([words, scale], layers.Dot(-1, name="dot")([layers.Embedding(7, 2, name="embedding")(words), scale])))
    pieces = cut(model, every_node(model))
    given = [np.array([[0, 1, 2, 6]], np.int64), np.array([[0.1, 0.2]], np.float64)]
    assert bits(pieces.results(pieces.run(pieces.start(given)))) == bits(model([given[0].astype(np.int32), given[1].astype(np.float32)]))


def test_inputs_of_a_model_that_was_built_from_a_mapping() -> None:
    """Its keys are not the names of its input layers: Keras goes by the keys."""
    first, second = tf_keras.Input((4,), name="first"), tf_keras.Input((4,), name="second")
    model = tf_keras.Model({"y": first, "x": second}, layers.Subtract(name="sub")([first, second]))
    batch = {"x": np.ones((1, 4), np.float32), "y": np.full((1, 4), 3.0, np.float32)}
    pieces = cut(model)
    found = pieces.results(pieces.run(pieces.start(batch)))
    assert np.asarray(found[0]).tolist() == model(batch).numpy().tolist() == [[2.0] * 4]


def test_pieces_compute_at_inference() -> None:
    image = tf_keras.Input((6, 6, 3), name="image")
    model = tf_keras.Model(image, layers.Dropout(0.9, name="dropout")(layers.BatchNormalization(name="bn")(image)))
    pieces = cut(model, every_node(model))
    assert bits(pieces.results(pieces.run(pieces.start(IMAGES)))) == bits(model(IMAGES, training=False))


def test_the_model_stays_as_it_was() -> None:
    model = shared()
    before, outputs = model_graph.read(model), bits(model(IMAGES))
    pieces = cut(model, every_node(model))
    pieces.run(pieces.start(IMAGES))
    assert model_graph.read(model) == before
    assert bits(model(IMAGES)) == outputs
    assert bits(model_graph.clone(model)(IMAGES)) == outputs
