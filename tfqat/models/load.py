"""Loads a trained model from a file, a folder, a function or an object, and says clearly what cannot be loaded."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras

from tfqat.errors import ModelError
from tfqat.models import graph


def load_model(source: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The canonical model of `source`: a flat functional tf_keras.Model.

    Args:
        source: a functional or Sequential tf_keras model, or the path of a `.keras` or `.h5` file or of a Keras SavedModel folder.
        custom_objects: Keras's mapping from names to the classes of custom layers.

    Returns:
        A new model that shares nothing with `source`; quantized models of tfqat load as they were saved.

    Raises:
        ModelError: the file is missing or corrupt, or the model is subclassed, nested, of Keras 3 or of another type than float32.
    """
    model = _load_file(Path(source), custom_objects) if isinstance(source, str | Path) else source
    graph.read(model)
    graph.check_float32(model)
    loaded_as_it_is = isinstance(source, str | Path) and not isinstance(model, tf_keras.Sequential)
    return model if loaded_as_it_is else graph.clone(model)


def _load_file(path: Path, custom_objects: Mapping[str, Any] | None) -> Any:
    if not path.exists():
        raise ModelError(f"model file {path} does not exist")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ModelError(
            f"model file {path} is not a .keras archive ({path.stat().st_size} bytes): it is corrupt or of another format; save it again"
        )
    if (version := _saved_by(path)).startswith("3."):
        raise ModelError(f"model file {path} is of Keras {version}, which this version cannot read: save the model with tf_keras")
    try:
        return tf_keras.models.load_model(path, custom_objects=custom_objects, compile=False)
    except Exception as error:  # Keras raises dozens of types for a bad file; each means the same to the user.
        raise ModelError(
            f"model file {path} cannot be loaded by tf_keras {tf_keras.__version__}: {_first_line(error)}{_advice(error)}"
        ) from error


def _saved_by(path: Path) -> str:
    """The version of Keras that wrote a `.keras` archive; empty where none is written down."""
    if path.suffix != ".keras":
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
    except (KeyError, ValueError, zipfile.BadZipFile):
        return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _advice(error: Exception) -> str:
    text = str(error)
    if "'str' object is not callable" in text:  # tf-keras 2.21 takes the name of a class that it does not know for the layer.
        return ". The file has a layer of a class that Keras does not know: give the classes of custom layers as custom_objects"
    if "Could not locate class" in text:
        return ". Give the classes of custom layers as custom_objects; a subclassed model has to be rebuilt with the functional API"
    if "Unknown layer" in text or "register_keras_serializable" in text:
        return ". Give the classes of custom layers as custom_objects"
    return ""
