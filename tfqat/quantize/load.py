"""Loads any model that tfqat works with: a float one, or a quantized one, whose layers Keras finds only where they are named to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfqat.models import load
from tfqat.quantize.configs import InputQuantizeConfig, WeightedQuantizeConfig
from tfqat.quantize.quantizers import PACKAGE, ActivationQuantizer, TensorQuantizer, quantizers
from tfqat.quantize.wrapper import QuantizeWrapper

_CLASSES: tuple[type, ...] = (ActivationQuantizer, InputQuantizeConfig, QuantizeWrapper, TensorQuantizer, WeightedQuantizeConfig)
CUSTOM_OBJECTS: Mapping[str, Any] = {f"{PACKAGE}>{cls.__name__}": cls for cls in _CLASSES}


def load_model(source: Any, custom_objects: Mapping[str, Any] | None = None, *, unsafe: bool = False, base: Path | None = None) -> Any:
    """The canonical model of `source`: a flat functional tf_keras.Model whose operations are layers.

    Nested models are flattened, their layers called by their path (`backbone/conv1`); `x + y` and other operations become layers;
    SeparableConv and MultiHeadAttention are split into the products they compute. Outputs stay equal, bit for bit where nothing was
    rewritten.

    Args:
        source: a functional or Sequential model of tf_keras or Keras 3; the path of a `.keras` or `.h5` file of either, or of a Keras
            SavedModel folder, float, or quantized by tfqat; or `module:function` or `file.py:function`, a function without arguments that
            returns a model.
        custom_objects: Keras's mapping from names to the classes of custom layers.
        unsafe: also load Lambda layers, whose Python code comes from the file and can do anything.
        base: the folder that a relative `file.py` is also looked for from; default: the working directory.

    Returns:
        A new model that shares nothing with `source`; quantized models of tfqat load as they were saved.

    Raises:
        ModelError: the file is missing or corrupt, or the model is subclassed or computes in another type than float32.
    """
    with quantizers(on=False):  # Keras calls each layer to learn its shapes, for which nothing has to be quantized
        return load.load_model(source, {**CUSTOM_OBJECTS, **(custom_objects or {})}, unsafe=unsafe, base=base)
