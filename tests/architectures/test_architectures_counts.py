"""How many points each architecture gets, and which inputs of its Adds and Multiplies, from both Keras packages; nothing is run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
architectures = importlib.import_module("architectures")
sys.path.pop(0)

# Weights and distinct activation tensors. A weight is a convolution, a Dense or a projection of the network (a separable convolution has
# two); see the tests below for the activations.
POINTS = {
    "VGG16": (16, 16),
    "ResNet50": (54, 55),
    "ResNet101": (105, 106),
    "MobileNet": (28, 29),
    "MobileNetV2": (53, 54),
    "detector": (15, 12),
    "audio": (6, 7),
}
WEIGHTS = {
    **{name: weights for name, (weights, _) in POINTS.items()},
    **{"ResNet50V2": 54, "InceptionV3": 95, "Xception": 75, "EfficientNetB0": 82},
    "unet": 11,  # the three Conv2DTranspose stay float
    "repvgg": 15,
    "twins": 5,  # the encoder's weights once, although it is called twice
    "vit": 14,  # patches, logits, and in each block query, key, value, output and two of the MLP; not the EinsumDense of positions
}
# Adds with exactly one quantized input, of all Adds.
ADDS = {"ResNet50": 16, "ResNet50V2": 16, "ResNet101": 33, "MobileNetV2": 10, "Xception": 12, "EfficientNetB0": 9}


@pytest.fixture(scope="module")
def planned() -> Any:
    """(architecture, package) -> its canonical model and the placement, made once."""
    import tfqat

    made: dict[tuple[str, str], Any] = {}

    def plan(name: str, package: str) -> Any:
        if (name, package) not in made:
            model = tfqat.load_model(architectures.zoo.ARCHITECTURES[name].build(importlib.import_module(package)))
            made[name, package] = (model, tfqat.plan(model))
        return made[name, package]

    return plan


@pytest.fixture(params=["keras", "tf_keras"])
def package(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def quantized_inputs(placement: Any, layer: str) -> list[int]:
    return sorted(edge.index for point in placement.activations for edge in point.edges if edge.layer == layer)


def layers_of(model: Any, class_name: str) -> list[str]:
    from tfqat.models import graph

    return [node.name for node in graph.read(model).nodes if node.class_name == class_name]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_product_that_int8_serves_has_a_quantized_weight(planned: Any, name: str, package: str) -> None:
    _, placement = planned(name, package)
    assert len(placement.weights) == WEIGHTS[name]


@pytest.mark.parametrize("name", POINTS)
def test_tensors_that_several_layers_read_have_one_quantizer(planned: Any, name: str, package: str) -> None:
    _, placement = planned(name, package)
    assert (len(placement.weights), len(placement.activations)) == POINTS[name]
    assert len({(point.source, point.output) for point in placement.activations}) == POINTS[name][1]


@pytest.mark.parametrize("name", ADDS)
def test_every_residual_add_reads_exactly_one_input_quantized(planned: Any, name: str, package: str) -> None:
    model, placement = planned(name, package)
    assert [len(quantized_inputs(placement, add)) for add in layers_of(model, "Add")] == [1] * ADDS[name]


def test_the_identity_adds_of_resnet50_are_quantized_on_input_0(planned: Any, package: str) -> None:
    model, placement = planned("ResNet50", package)
    identity = [add for add in layers_of(model, "Add") if "block1_" not in add]  # block1: a convolution on both sides
    assert len(identity) == 12
    assert [quantized_inputs(placement, add) for add in identity] == [[0]] * 12


def test_the_adds_of_mobilenet_v2_are_quantized_on_input_0(planned: Any, package: str) -> None:
    model, placement = planned("MobileNetV2", package)
    assert [quantized_inputs(placement, add) for add in layers_of(model, "Add")] == [[0]] * 10


def test_squeeze_and_excite_multiplies_read_both_inputs_quantized(planned: Any, package: str) -> None:
    model, placement = planned("EfficientNetB0", package)
    excite = [name for name in layers_of(model, "Multiply") if name.endswith("se_excite")]
    assert [quantized_inputs(placement, name) for name in excite] == [[0, 1]] * 16


@pytest.mark.parametrize("name", ["ResNet50", "EfficientNetB0", "InceptionV3", "vit", "twins"])
def test_both_packages_give_the_same_placement(planned: Any, name: str) -> None:
    """Layers that Keras numbers itself have other names in the two packages, so edges are compared by their count and kind."""

    def shape(package: str) -> list[tuple[str, int, str]]:
        _, placement = planned(name, package)
        return sorted((point.kind, len(point.edges), point.spec.to_dict().__repr__()) for point in placement.points)

    assert shape("keras") == shape("tf_keras")


def test_a_weight_left_float_is_missed_by_the_counts(planned: Any) -> None:
    """What the counts of the benchmark say, for a placement with a known difference."""
    import tfqat

    model, _ = planned("detector", "tf_keras")
    counts = architectures.Counts.of(model, tfqat.plan(model, {"skip": ["boxes0"]}))
    assert (counts.weights, counts.activations, counts.adds) == (14, 12, 0)
