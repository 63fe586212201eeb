"""What each placement rule becomes in the file: which inputs of which ONNX operation come from a DequantizeLinear, proven as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tf_keras
from tf_keras import layers

import tfqat

IMAGE, ROWS = (8, 8, 6), (6, 16)


def add_of_three() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    a, b = layers.Conv2D(6, 1, name="a")(image), layers.Conv2D(6, 3, padding="same", activation="relu", name="b")(image)
    c = layers.Conv2D(6, 3, padding="same", name="c")(b)
    return tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(layers.Add(name="add")([a, c, image])))


def squeeze_and_excite() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.Activation("swish", name="swish")(layers.Conv2D(6, 3, padding="same", name="conv")(image))
    s = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    s = layers.Conv2D(6, 1, activation="sigmoid", name="gate")(layers.Conv2D(3, 1, activation="relu", name="reduce")(s))
    return tf_keras.Model(image, layers.Conv2D(6, 1, name="project")(layers.Multiply(name="mul")([x, s])))


def written_out_swish() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, name="conv")(image)
    return tf_keras.Model(
        image, layers.Conv2D(2, 1, name="head")(layers.Multiply(name="mul")([x, layers.Activation("sigmoid", name="s")(x)]))
    )


def bilinear() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up")(layers.Conv2D(6, 3, padding="same", name="conv")(image))
    return tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(x))


def nearest() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.UpSampling2D(2, name="up")(layers.Conv2D(6, 3, padding="same", name="conv")(image))
    return tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(x))


def attention() -> Any:
    rows = tf_keras.Input(ROWS, name="rows")
    x = layers.LayerNormalization(name="norm")(rows)
    x = layers.MultiHeadAttention(2, 8, name="mha")(x, x)
    return tf_keras.Model(rows, layers.Dense(3, name="head")(layers.Add(name="add")([x, rows])))


def one_dimension() -> Any:
    rows = tf_keras.Input(ROWS, name="rows")
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="conv")(rows)
    x = layers.DepthwiseConv1D(3, padding="same", name="dw")(x)
    return tf_keras.Model(rows, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D(name="pool")(layers.ReLU(name="relu")(x))))


def three_dimensions() -> Any:
    image = tf_keras.Input((4, 8, 8, 2), name="image")
    x = layers.Conv3D(6, 3, padding="same", activation="relu", name="conv")(image)
    x = layers.Conv3D(4, 1, activation="relu", name="more")(layers.UpSampling3D(2, name="up")(x))
    return tf_keras.Model(image, layers.Dense(2, name="head")(layers.GlobalAveragePooling3D(name="pool")(x)))


def pre_activation() -> Any:
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(image))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
    return tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(layers.Add(name="add")([image, x])))


# network -> ids of the activations, {ONNX operation: for each node, in order of the file, which data inputs are dequantized}
RULES: dict[str, tuple[Callable[[], Any], set[str], dict[str, list[list[bool]]]]] = {
    "Add of three": (add_of_three, {"image", "b", "add:0", "add"}, {"Add": [[True, False], [False, True]]}),
    "squeeze and excite": (
        squeeze_and_excite,
        {"image", "swish", "squeeze", "reduce", "gate", "mul"},
        {"Mul": [[False, False], [True, True]], "GlobalAveragePool": [[True]]},
    ),
    "an activation that is written out": (written_out_swish, {"image", "mul"}, {"Mul": [[False, False]]}),
    "bilinear resizing": (bilinear, {"image", "up"}, {"Resize": [[False]]}),
    "nearest resizing": (nearest, {"image", "up"}, {"Resize": [[False]]}),
    "1-D convolutions": (one_dimension, {"rows", "conv", "relu", "pool"}, {"Conv": [[True, True], [True, True]]}),
    "3-D convolutions": (
        three_dimensions,
        {"image", "up", "more", "pool"},
        {"Conv": [[True, True], [True, True]], "MatMul": [[True, True]]},
    ),
    "BatchNorm before the convolution": (
        pre_activation,
        {"relu", "add:shortcut", "add"},
        {"BatchNormalization": [[False]]},
    ),
}


def exported(model: Any, folder: Path) -> onnx.GraphProto:
    rng = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) if "variance" in weight.name else rng.normal(0, 0.5, weight.shape))
    data = rng.normal(size=(32, *model.input_shape[1:])).astype(np.float32)
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [data], batches=1)
    tfqat.export_onnx(qmodel, folder / "m.onnx")
    assert tfqat.verify(qmodel, folder / "m.onnx", [data], examples=32).failures == ()
    return onnx.load(folder / "m.onnx").graph


def dequantized(graph: onnx.GraphProto, op_type: str) -> list[list[bool]]:
    """For each node of a type: which of its inputs that some node makes come from a DequantizeLinear, through layout alone."""
    producers = {output: node for node in graph.node for output in node.output}

    def comes_from_dq(name: str) -> bool:
        node = producers.get(name)
        while node is not None and node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            node = producers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return [[comes_from_dq(name) for name in node.input if name in producers] for node in graph.node if node.op_type == op_type]


@pytest.mark.parametrize(("build", "points", "operations"), RULES.values(), ids=RULES)
def test_what_a_rule_becomes_in_the_file(build: Callable[[], Any], points: set[str], operations: dict[str, Any], tmp_path: Path) -> None:
    graph = exported(build(), tmp_path)
    assert {node.name.removesuffix("/Q") for node in graph.node if node.op_type == "QuantizeLinear"} == points
    assert {op_type: dequantized(graph, op_type) for op_type in operations} == operations


def test_attention_reads_every_product_in_int8_and_normalizes_in_float(tmp_path: Path) -> None:
    graph = exported(attention(), tmp_path)
    products = dequantized(graph, "MatMul")
    assert len(products) == 7  # query, key, value, scores, weighted values, output, head
    assert all(inputs == [True, True] for inputs in products)
    assert dequantized(graph, "Softmax") == [[False]]
    names = {node.name.removesuffix("/Q") for node in graph.node if node.op_type == "QuantizeLinear"}
    assert {"norm", "add"} <= names and "rows" not in names
