"""The canonical form of tf_keras.applications: equal outputs, nothing left that is only an operation, and its speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from tf_keras import applications

from tfqat.models.canonical import canonicalize, is_canonical
from tfqat.models.operations import is_operation

# architecture, image size, whether it is canonical from the start
ARCHITECTURES: dict[str, tuple[Any, int, bool]] = {
    "VGG16": (applications.VGG16, 32, True),
    "ResNet50": (applications.ResNet50, 32, True),
    "ResNet50V2": (applications.ResNet50V2, 32, True),
    "MobileNet": (applications.MobileNet, 32, True),
    "MobileNetV2": (applications.MobileNetV2, 32, True),
    "MobileNetV3Small": (applications.MobileNetV3Small, 32, False),
    "InceptionV3": (applications.InceptionV3, 75, True),
    "InceptionResNetV2": (applications.InceptionResNetV2, 75, True),
    "Xception": (applications.Xception, 71, False),
    "DenseNet121": (applications.DenseNet121, 32, True),
    "NASNetMobile": (applications.NASNetMobile, 32, False),
    "EfficientNetB0": (applications.EfficientNetB0, 32, True),
    "EfficientNetV2B0": (applications.EfficientNetV2B0, 32, True),
    "ConvNeXtTiny": (applications.convnext.ConvNeXtTiny, 32, False),
    "RegNetX002": (applications.regnet.RegNetX002, 32, False),
    "ResNetRS50": (applications.resnet_rs.ResNetRS50, 32, True),
}


def with_statistics(model: Any) -> Any:
    """`model` with random values in each BatchNormalization, so that none of them is the identity."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize:UserWarning")  # EfficientNetV2 of tf_keras itself
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_applications(name: str) -> None:
    build, size, from_the_start = ARCHITECTURES[name]
    model = with_statistics(build(weights=None, input_shape=(size, size, 3), classes=10))
    weights, calls = model.get_weights(), [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    result = canonicalize(model)
    images = np.random.default_rng(1).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    expected = model(images).numpy()
    assert expected.std() > 1e-3
    assert np.array_equal(result.model(images), expected)
    assert is_canonical(result.model)
    assert is_canonical(model) == from_the_start
    assert not [layer.name for layer in result.model.layers if is_operation(layer) or isinstance(layer, tf_keras.Model)]
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == calls
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), weights, strict=True))
    assert sum(len(sources) for sources in result.origins.values()) == len(model.weights)
    tf_keras.backend.clear_session()
