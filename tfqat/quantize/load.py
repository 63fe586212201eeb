"""Loads any model that tfqat works with: a float one, or a quantized one, whose layers Keras finds only where they are named to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfqat.models import load
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig
from tfqat.quantize.quantizers import PACKAGE, ActivationQuantizer, TensorQuantizer
from tfqat.quantize.wrapper import QuantizeWrapper

_CLASSES: tuple[type, ...] = (ActivationQuantizer, InputQuantizeConfig, QuantizeWrapper, TensorQuantizer, WeightedQuantizeConfig)
CUSTOM_OBJECTS: Mapping[str, Any] = {f"{PACKAGE}>{cls.__name__}": cls for cls in _CLASSES}


def load_model(source: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The canonical model of `source`: a flat functional tf_keras.Model.

    Args:
        source: a functional or Sequential tf_keras model, or the path of a `.keras` or `.h5` file or of a Keras SavedModel folder;
            float, or quantized by tfqat.
        custom_objects: Keras's mapping from names to the classes of custom layers.

    Returns:
        A new model that shares nothing with `source`; quantized models of tfqat load as they were saved.

    Raises:
        ModelError: the file is missing or corrupt, or the model is subclassed, nested, of Keras 3 or of another type than float32.
    """
    return load.load_model(source, {**CUSTOM_OBJECTS, **(custom_objects or {})})
