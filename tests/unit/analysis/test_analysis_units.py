"""Which layers are switched together, and how many multiply-accumulates they have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.analysis.units import Unit, macs_of, units_of
from tfqat.models import graph as model_graph
from tfqat.models.layers import MatMul


def units(model: Any, quantization: Any = "selective") -> dict[str, Unit]:
    found = units_of(model_graph.read(model), tfqat.plan(model, quantization).points)
    assert len({unit.name for unit in found}) == len(found)
    return {unit.name: unit for unit in found}


def shown(found: dict[str, Unit]) -> list[tuple[str, str, str]]:
    """(nodes, edges, weights) of each unit."""
    return [
        (" ".join(unit.nodes), " ".join(f"{edge.layer}:{edge.index}" for edge in unit.edges), " ".join(unit.weights))
        for unit in found.values()
    ]


def test_a_convolution_and_the_add_that_it_fuses_with_are_one_unit(networks: SimpleNamespace) -> None:
    assert shown(units(networks.residual())) == [
        ("stem", "stem:0", "stem/kernel"),
        ("a1", "a1:0", "a1/kernel"),
        ("a2 a_add", "a_add:1 a2:0", "a2/kernel"),
        ("b1", "b1:0", "b1/kernel"),
        ("b2 b_add", "b_add:1 b2:0", "b2/kernel"),
        ("pool", "pool:0", ""),
        ("fc", "fc:0", "fc/kernel"),
    ]


def test_an_add_that_reads_both_inputs_quantized_is_a_unit_of_its_own(networks: SimpleNamespace) -> None:
    found = units(networks.residual(), "naive")
    assert [unit.nodes for unit in found.values()] == [
        ("stem",),
        ("a1",),
        ("a2",),
        ("a_add",),
        ("b1",),
        ("b2",),
        ("b_add",),
        ("pool",),
        ("fc",),
    ]
    add = found["a_add"]
    assert (add.class_name, add.weights, add.macs, {(edge.layer, edge.index) for edge in add.edges}) == (
        "Add",
        (),
        0,
        {("a_add", 0), ("a_add", 1)},
    )


def test_depthwise_padding_concat_and_dropout(networks: SimpleNamespace) -> None:
    found = units(networks.mobile())
    assert [set(unit.nodes) for unit in found.values()] == [
        *({"stem"}, {"expand"}, {"dw"}, {"project", "add"}, {"left", "right"}, {"concat"}, {"head"}, {"pool"}, {"fc"}),
    ]
    assert found["dw"].weights == ("dw/depthwise_kernel",)
    both = next(unit for unit in found.values() if "left" in unit.nodes)
    assert [(edge.layer, edge.index) for edge in both.edges] == [("pad", 0)]  # one quantizer, in front of the padding that both read
    assert set(both.weights) == {"left/kernel", "right/kernel"}
    assert both.macs == 2 * 8 * 8 * 9 * 4 * 4
    assert [(edge.layer, edge.index) for edge in found["concat"].edges] == [("concat", 0), ("concat", 1)]
    assert [(edge.layer, edge.index) for edge in found["fc"].edges] == [("dropout", 0)]


@pytest.mark.parametrize("between", [layers.Dropout(0.1, name="between"), layers.ZeroPadding2D(1, name="between")])
def test_two_convolutions_behind_one_moved_quantizer_are_one_unit_and_others_of_the_tensor_are_not(between: Any) -> None:
    image = tf_keras.Input((6, 6, 3), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(3, 1, name="stem")(image))
    moved = between(x)
    outputs = [layers.Conv2D(2, 3, name=name)(tensor) for name, tensor in (("one", moved), ("two", moved), ("apart", x))]
    found = units(tf_keras.Model(image, outputs))
    assert sorted(sorted(unit.nodes) for unit in found.values()) == [["apart"], ["one", "two"], ["stem"]]


def test_without_a_convolution_that_reads_it_a_moved_quantizer_is_for_the_pooling() -> None:
    image = tf_keras.Input((6, 6, 3), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(3, 1, name="stem")(image))
    x = layers.Dense(2, name="fc")(layers.GlobalAveragePooling2D(name="pool")(layers.Dropout(0.1, name="dropout")(x)))
    assert shown(units(tf_keras.Model(image, x))) == [
        ("stem", "stem:0", "stem/kernel"),
        ("pool", "dropout:0", ""),
        ("fc", "fc:0", "fc/kernel"),
    ]


def test_the_calls_of_a_shared_layer_are_one_unit() -> None:
    left, right = tf_keras.Input((6, 6, 3), name="left"), tf_keras.Input((6, 6, 3), name="right")
    encoder = layers.Conv2D(4, 3, name="enc")
    x = layers.Flatten(name="flat")(layers.Subtract(name="sub")([encoder(left), encoder(right)]))
    found = units(tf_keras.Model([left, right], layers.Dense(2, name="fc")(x)))
    encoding = found["enc"]
    assert (encoding.layers, encoding.nodes, encoding.weights) == (("enc",), ("enc", "enc@2"), ("enc/kernel",))
    assert [(edge.layer, edge.index) for edge in encoding.edges] == [("enc", 0), ("enc@2", 0)]
    assert encoding.macs == 2 * 4 * 4 * 9 * 3 * 4
    assert list(found) == ["enc", "fc"]


def test_a_product_of_two_tensors() -> None:
    a, b = tf_keras.Input((32, 64), name="a"), tf_keras.Input((48, 64), name="b")
    model = tf_keras.Model([a, b], MatMul(transpose_b=True, name="product")([layers.Dense(64, name="of_a")(a), b]))
    found = units(model, {"small_products": "int8"})
    assert shown(found) == [("of_a", "of_a:0", "of_a/kernel"), ("product", "product:0 product:1", "")]
    assert (found["product"].class_name, found["product"].macs) == ("MatMul", 32 * 48 * 64)


def test_the_width_is_the_least_of_a_units_points(networks: SimpleNamespace) -> None:
    overrides = [{"match": "b2", "weights": {"num_bits": 3}}, {"match": "fc", "weights": {"num_bits": 5}}]
    found = units(networks.residual(), {"overrides": overrides})
    assert {name: unit.num_bits for name, unit in found.items() if unit.num_bits != 8} == {"b2": 3, "fc": 5}


def test_layers_that_stay_float_are_in_no_unit(networks: SimpleNamespace) -> None:
    found = units(networks.residual(), {"preset": "selective", "skip": ["a2", "a_add"]})
    assert {node for unit in found.values() for node in unit.nodes} == {"stem", "a1", "b1", "b2", "b_add", "pool", "fc"}


SIZES: dict[str, tuple[Callable[[], Any], list[tuple[int | None, ...]], int]] = {
    "convolution with strides": (lambda: layers.Conv2D(8, 3, strides=2, padding="same"), [(9, 9, 4)], 5 * 5 * 9 * 4 * 8),
    "convolution in groups": (lambda: layers.Conv2D(8, 3, strides=2, padding="same", groups=2), [(9, 9, 4)], 5 * 5 * 9 * 2 * 8),
    "dilated convolution without padding": (lambda: layers.Conv2D(8, 3, dilation_rate=2), [(9, 9, 4)], 5 * 5 * 9 * 4 * 8),
    "convolution of one axis": (lambda: layers.Conv1D(8, 5), [(12, 4)], 8 * 5 * 4 * 8),
    "convolution of images of any size": (lambda: layers.Conv2D(8, 3), [(None, None, 4)], 9 * 4 * 8),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), [(9, 9, 4)], 7 * 7 * 9 * 4 * 2),
    "dense": (lambda: layers.Dense(5), [(12,)], 60),
    "dense of a sequence": (lambda: layers.Dense(5), [(7, 12)], 7 * 60),
    "product": (lambda: MatMul(), [(2, 4, 6), (2, 6, 5)], 2 * 4 * 5 * 6),
    "product, transposed": (lambda: MatMul(transpose_b=True), [(2, 4, 6), (2, 5, 6)], 2 * 4 * 5 * 6),
    "transposed convolution": (lambda: layers.Conv2DTranspose(8, 3, strides=2, padding="same"), [(5, 5, 4)], 5 * 5 * 9 * 4 * 8),
    "add": (lambda: layers.Add(), [(4, 4), (4, 4)], 0),
    "batch norm, which has weights": (lambda: layers.BatchNormalization(), [(4, 4, 3)], 0),
}


@pytest.mark.parametrize("case", SIZES)
def test_multiply_accumulates(case: str) -> None:
    make, shapes, expected = SIZES[case]
    inputs = [tf_keras.Input(shape) for shape in shapes]
    graph = model_graph.read(tf_keras.Model(inputs, make()(inputs if len(inputs) > 1 else inputs[0])))
    assert macs_of(graph, graph.nodes[-1]) == expected
