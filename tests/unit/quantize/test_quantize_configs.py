"""The QuantizeConfigs: genuine TFMOT ones, what they quantize of a layer, their configuration, and what the rules say by default."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_config import QuantizeConfig
from tf_keras import layers

import tfqat
from tfqat.errors import PlacementError
from tfqat.models import graph
from tfqat.placement import rules
from tfqat.quantize.configs import default_config
from tfqat.spec import Calibrator, PerChannel, QuantSpec

INT4 = QuantSpec(num_bits=4, narrow_range=True)
CONFIGS = {
    "input": tfqat.InputQuantizeConfig(),
    "input, everything set": tfqat.InputQuantizeConfig(
        activations=QuantSpec(num_bits=6), inputs=(0, 2), calibrator=Calibrator(method="mse"), reason="because"
    ),
    "weighted": tfqat.WeightedQuantizeConfig(),
    "weighted, everything set": tfqat.WeightedQuantizeConfig(
        weights=INT4, activations=QuantSpec(num_bits=6), inputs=(), calibrator=Calibrator(method="max"), reason="because"
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip(config: Any) -> None:
    copy = type(config).from_config(json.loads(json.dumps(config.get_config())))
    assert isinstance(config, QuantizeConfig)
    assert vars(copy) == vars(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nothing_is_quantized_inside_or_behind_a_layer(config: Any) -> None:
    layer = layers.Dense(2)
    layer.build((None, 3))
    assert (config.get_activations_and_quantizers(layer), config.get_output_quantizers(layer)) == ([], [])


def layer_of(cls: Any, shape: tuple[int | None, ...], *arguments: Any) -> Any:
    layer = cls(*arguments, name="layer")
    layer.build(shape)
    return layer


WEIGHTED = {
    "convolution": (layer_of(layers.Conv2D, (None, 8, 8, 3), 4, 3), "layer/kernel", (3,)),
    "depthwise": (layer_of(layers.DepthwiseConv2D, (None, 8, 8, 3), 3), "layer/depthwise_kernel", (2, 3)),
    "dense": (layer_of(layers.Dense, (None, 3), 4), "layer/kernel", (1,)),
}


@pytest.mark.parametrize(("layer", "point_id", "axes"), WEIGHTED.values(), ids=WEIGHTED)
def test_weight_of_a_layer(layer: Any, point_id: str, axes: tuple[int, ...]) -> None:
    ((weight, quantizer),) = tfqat.WeightedQuantizeConfig().get_weights_and_quantizers(layer)
    assert weight is getattr(layer, point_id.partition("/")[2])
    assert (quantizer.point.id, quantizer.point.spec) == (point_id, QuantSpec(granularity=PerChannel(axes=axes), narrow_range=True))
    assert tfqat.WeightedQuantizeConfig(weights=INT4).weight_point(layer).spec == INT4
    assert tfqat.InputQuantizeConfig().get_weights_and_quantizers(layer) == []


def test_weighted_config_on_a_layer_without_a_weight() -> None:
    message = r"^layer 'sum' \(Add\) has no weight that can be quantized: use it on Conv1D, .*, or say where the class keeps its weight"
    with pytest.raises(PlacementError, match=message):
        tfqat.WeightedQuantizeConfig().weight_point(layers.Add(name="sum"))


DEFAULTS = {
    "stem": (tfqat.WeightedQuantizeConfig, (0,), "input of Conv2D"),
    "dw": (tfqat.WeightedQuantizeConfig, (0,), "input of DepthwiseConv2D"),
    "fc": (tfqat.WeightedQuantizeConfig, (0,), "input of Dense"),
    "add": (tfqat.InputQuantizeConfig, (1,), "residual shortcut: Add fuses with project"),
    "pool": (tfqat.InputQuantizeConfig, (0,), "average pooling before fc, which reads INT8"),
}


@pytest.mark.parametrize(("name", "expected"), DEFAULTS.items(), ids=DEFAULTS)
def test_default_is_what_the_rules_say(net: tf_keras.Model, name: str, expected: tuple[type, tuple[int, ...], str]) -> None:
    read = graph.read(net)
    config = default_config(rules.view(read), read.node(name))
    assert (type(config), config.inputs, config.reason) == expected


@pytest.mark.parametrize("name", ["stem_bn", "stem_relu"])
def test_default_is_none_where_the_rules_keep_float(net: tf_keras.Model, name: str) -> None:
    read = graph.read(net)
    assert default_config(rules.view(read), read.node(name)) is None
