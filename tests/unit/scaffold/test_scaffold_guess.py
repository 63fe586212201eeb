"""What a model tells about its data and loss: a table of last layers, and the shapes and types of inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.scaffold.data_stub import data_stub
from tfqat.scaffold.guess import facts_of
from tfqat.scaffold.recipe_text import recipe_text
from tfqat.training.evaluate import check_fit, make_loss

LOGITS = "{name: SparseCategoricalCrossentropy, from_logits: true}"


def ending(*last: Any, shape: tuple[int | None, ...] = (8,)) -> Any:
    x = tf_keras.Input(shape, name="x")
    for layer in (outputs := [x], *last)[1:]:
        outputs.append(layer(outputs[-1]))
    return tfqat.load_model(tf_keras.Model(x, outputs[-1]))


# last layers -> loss, metric, shape of a batch of 3 labels, number of classes
CASES: dict[str, tuple[Any, str, str, tuple[int, ...], int | None]] = {
    "softmax": (lambda: ending(layers.Dense(4, "softmax")), "SparseCategoricalCrossentropy", "accuracy", (3,), 4),
    "softmax layer": (
        lambda: ending(layers.Dense(4), layers.Softmax()),
        "SparseCategoricalCrossentropy",
        "accuracy",
        (3,),
        4,
    ),
    "activation layer": (
        lambda: ending(layers.Dense(4), layers.Activation("softmax")),
        "SparseCategoricalCrossentropy",
        "accuracy",
        (3,),
        4,
    ),
    "softmax, reshaped": (
        lambda: ending(layers.Dense(4, "softmax"), layers.Reshape((4,))),
        "SparseCategoricalCrossentropy",
        "accuracy",
        (3,),
        4,
    ),
    "logits": (lambda: ending(layers.Dense(10)), LOGITS, "accuracy", (3,), 10),
    "yes or no": (lambda: ending(layers.Dense(1, "sigmoid")), "BinaryCrossentropy", "binary_accuracy", (3, 1), 2),
    "several labels": (lambda: ending(layers.Dense(5, "sigmoid")), "BinaryCrossentropy", "binary_accuracy", (3, 5), 2),
    "one number": (lambda: ending(layers.Dense(1)), "mean_squared_error", "mean_absolute_error", (3, 1), None),
    "another activation": (lambda: ending(layers.Dense(4, "tanh")), "mean_squared_error", "mean_absolute_error", (3, 4), None),
    "relu layer": (lambda: ending(layers.Dense(4), layers.ReLU()), "mean_squared_error", "mean_absolute_error", (3, 4), None),
    "pixels": (
        lambda: ending(layers.Conv2D(6, 1, activation="softmax"), shape=(None, None, 3)),
        "SparseCategoricalCrossentropy",
        "accuracy",
        (3, 64, 64),
        6,
    ),
    "tokens": (lambda: ending(layers.Dense(6), shape=(None, 3)), LOGITS, "accuracy", (3, 16), 6),
}


@pytest.mark.parametrize(("build", "loss", "metric", "shape", "classes"), CASES.values(), ids=CASES)
def test_loss_and_labels(build: Any, loss: str, metric: str, shape: tuple[int, ...], classes: int | None, tmp_path: Any) -> None:
    facts = facts_of(build())
    assert (facts.loss.yaml, facts.loss.metric) == (loss, metric)
    text = data_stub("m.keras", facts)
    scope: dict[str, Any] = {}
    exec(text, scope)
    scope["BATCH_SIZE"] = 3
    inputs, labels = next(iter(scope["random_numbers"]()))
    assert labels.shape == shape
    if classes:
        assert set(np.unique(labels.numpy())) <= set(range(classes))
        assert len(np.unique(np.concatenate([batch.numpy().ravel() for _, batch in scope["random_numbers"]()]))) > 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text("m.keras", facts.loss, None))
    training = tfqat.load_recipe(recipe).training
    check_fit(build(), (inputs, labels), loss=make_loss(training.loss), metrics=training.metrics, where="random numbers")


def two_outputs(*activations: str) -> Any:
    x, ids = tf_keras.Input((6, 6, 3), name="image"), tf_keras.Input((5,), dtype="int32", name="ids")
    y = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(layers.Embedding(2, 4)(ids))])
    return tfqat.load_model(
        tf_keras.Model([x, ids], [layers.Dense(3, activation, name=f"out{i}")(y) for i, activation in enumerate(activations)])
    )


PAIRS: dict[str, tuple[tuple[str, str], str, str]] = {
    "both softmax": (("softmax", "softmax"), "SparseCategoricalCrossentropy", "so probabilities of classes"),
    "both linear": (("linear", "linear"), LOGITS, "so logits of classes"),
    "both sigmoid": (("sigmoid", "sigmoid"), "BinaryCrossentropy", "so yes or no per unit"),
    "softmax and sigmoid": (("softmax", "sigmoid"), "mean_squared_error", "one loss serves every output"),
    "softmax and linear": (("softmax", "linear"), "mean_squared_error", "one loss serves every output"),
}


@pytest.mark.parametrize(("activations", "loss", "reason"), PAIRS.values(), ids=PAIRS)
def test_one_loss_for_two_outputs(activations: tuple[str, str], loss: str, reason: str) -> None:
    facts = facts_of(two_outputs(*activations))
    assert facts.loss.yaml == loss and reason in facts.loss.reason
    assert "`out0` has 3 units" in facts.loss.reason and "`out1` has 3 units" in facts.loss.reason
    assert len({output.labels for output in facts.outputs}) == 1


def test_inputs_and_outputs_are_named_with_shape_and_type() -> None:
    facts = facts_of(two_outputs("softmax", "softmax"))
    assert [(port.name, port.shape, port.dtype) for port in facts.inputs] == [("image", (6, 6, 3), "float32"), ("ids", (5,), "int32")]
    text = data_stub("m.keras", facts)
    assert "image               float32  (batch, 6, 6, 3)" in text and "ids                 int32    (batch, 5)" in text
    assert "where inputs and labels are mappings by these names" in text
    scope: dict[str, Any] = {}
    exec(text, scope)
    inputs, labels = next(iter(scope["random_numbers"]()))
    assert {name: (value.shape, value.dtype.name) for name, value in inputs.items()} == {
        "image": ((32, 6, 6, 3), "float32"),
        "ids": ((32, 5), "int32"),
    }
    assert {name: value.shape for name, value in labels.items()} == {"out0": (32,), "out1": (32,)}


def test_the_names_of_a_mapping_are_its_keys() -> None:
    a, b = tf_keras.Input((2,), name="x"), tf_keras.Input((3,), name="y")
    model = tf_keras.Model({"q": a, "p": b}, {"v": layers.Dense(1)(a), "u": layers.Dense(4)(b)})
    facts = facts_of(model)
    assert [(port.name, port.shape) for port in facts.inputs] == [("p", (3,)), ("q", (2,))]
    assert [(output.name, output.units) for output in facts.outputs] == [("u", 4), ("v", 1)]


def test_a_stub_says_what_to_do() -> None:
    scope: dict[str, Any] = {}
    exec(data_stub("m.keras", facts_of(ending(layers.Dense(4)))), scope)
    for name in ("train", "validation", "calibration"):
        with pytest.raises(
            NotImplementedError, match=rf"^{name}\(\) of data.py is still a stub: .* --set data.{name}=data.py:random_numbers"
        ):
            scope[name]()


def test_random_numbers_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(data_stub("m.keras", facts_of(ending(layers.Dense(4)))), scope)
    scope["random_numbers"]()
    assert "RANDOM NUMBERS in the place of data; every range and every accuracy of this run is meaningless" in capsys.readouterr().err
