"""Loads a trained model from a file, a folder, a function or an object, and says clearly what cannot be loaded."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tf_keras
from tf_keras.src.saving.serialization_lib import SafeModeScope

from tfqat.errors import ModelError, TfqatError
from tfqat.models import activations, containers, graph, keras3, keras3_layers, layers
from tfqat.models.canonical import Canonical, canonicalize, is_canonical
from tfqat.models.depth import deep_models
from tfqat.models.trust import lambda_refused
from tfqat.recipe.references import exists, load_reference

CUSTOM_OBJECTS: Mapping[str, Any] = {**activations.CUSTOM_OBJECTS, **keras3_layers.CUSTOM_OBJECTS, **layers.CUSTOM_OBJECTS}
"""What tf_keras has to know to load a canonical model."""

_HDF5 = (".h5", ".hdf5")


@deep_models()
def load_model(source: Any, custom_objects: Mapping[str, Any] | None = None, *, unsafe: bool = False, base: Path | None = None) -> Any:
    """The canonical model of `source`: a flat functional tf_keras.Model whose operations are layers.

    Args:
        source: a functional or Sequential model of tf_keras or Keras 3; the path of a `.keras` or `.h5` file of either, or of a Keras
            SavedModel folder; or `module:function` or `file.py:function`, a function without arguments that returns a model.
        custom_objects: Keras's mapping from names to the classes of custom layers.
        unsafe: also load Lambda layers, whose Python code comes from the file and can do anything.
        base: the folder that a relative `file.py` is also looked for from; default: the working directory.

    Returns:
        A new model that shares nothing with `source`; quantized models of tfqat load as they were saved.

    Raises:
        ModelError: the file is missing or corrupt, or the model is subclassed or computes in another type than float32.
    """
    model = source
    if isinstance(source, str | Path):
        model = (
            _from_reference(str(source), base or Path.cwd()) if is_reference(source) else _load_file(Path(source), custom_objects, unsafe)
        )
    found = canonical(model)
    graph.check_float32(found)
    is_new = found is not model or (isinstance(source, str | Path) and not isinstance(model, tf_keras.Sequential))
    return found if is_new else graph.clone(found)


def canonical(model: Any) -> Any:
    """The canonical form of a model, which is the model itself if it has that form.

    Raises:
        ModelError: see `load_model`.
    """
    return model if _is_flat(model) else with_origins(model).model


def with_origins(model: Any) -> Canonical:
    """The canonical form of a model, always a new one, with the variables of `model` that the weights of each of its layers come from.

    Raises:
        ModelError: see `load_model`.
    """
    if not keras3.is_keras3(model):
        graph.check_functional(model)
        return canonicalize(model)
    converted = keras3.convert(model)
    form = canonicalize(converted.model)
    first = {
        id(variable): origin
        for name, origins in converted.origins.items()
        for variable, origin in zip(converted.model.get_layer(name).weights, origins, strict=True)
    }
    return Canonical(
        model=form.model, origins={name: tuple(first[id(variable)] for variable in found) for name, found in form.origins.items()}
    )


def copy_of(model: Any) -> Any:
    """A model of the same class of Keras, layers and weights that shares nothing with `model`."""
    if keras3.is_keras3(model):
        import keras

        copy = keras.models.clone_model(model)
    else:
        graph.check_functional(model)
        copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _is_flat(model: Any) -> bool:
    if keras3.is_keras3(model):
        return False
    graph.check_functional(model)
    return is_canonical(model)


def is_reference(source: str | Path) -> bool:
    """Whether a source names a function: `module:function` or `file.py:function`."""
    before, colon, name = str(source).rpartition(":")
    return bool(colon) and name.isidentifier() and bool(before) and not exists(Path(source))


def _from_reference(reference: str, base: Path) -> Any:
    try:
        return load_reference(reference, base=base)()
    except TfqatError as error:
        raise ModelError(f"model source {error}") from error
    except Exception as error:
        raise ModelError(f"model source {reference!r}: the function raises {type(error).__name__}: {_first_line(error)}") from error


def _load_file(path: Path, custom_objects: Mapping[str, Any] | None, unsafe: bool) -> Any:
    if not exists(path):
        raise ModelError(f"model file {path} does not exist")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ModelError(
            f"model file {path} is not a .keras archive ({path.stat().st_size} bytes): it is corrupt or of another format; save it again"
        )
    if path.is_dir() and not (path / "keras_metadata.pb").exists():
        raise ModelError(_no_keras_model(path))
    _check_contents(path, custom_objects or {}, unsafe)
    if _saved_by(path).startswith("3."):
        return _load_keras3(path, custom_objects, unsafe)
    try:
        with SafeModeScope(safe_mode=not unsafe):
            model = tf_keras.models.load_model(
                path, custom_objects={**CUSTOM_OBJECTS, **(custom_objects or {})}, compile=False, safe_mode=not unsafe
            )
    except Exception as error:  # Keras raises dozens of types for a bad file; each means the same to the user.
        if _is_about_lambda(error):
            raise ModelError(lambda_refused(str(path))) from error
        raise ModelError(
            f"model file {path} cannot be loaded by tf_keras {tf_keras.__version__}: {_first_line(error)}{_advice(error)}"
        ) from error
    # A SavedModel whose Lambda was not allowed to load has a stand-in for it, of a class that only has the name.
    if any(type(layer).__name__ == "Lambda" and not isinstance(layer, tf_keras.layers.Lambda) for layer in model._flatten_layers()):
        raise ModelError(lambda_refused(str(path)))
    return model


def _check_contents(path: Path, custom_objects: Mapping[str, Any], unsafe: bool) -> None:
    """Refuse what is damaged, or could run code, read other files or take all memory, before Keras reads it."""
    known = {**CUSTOM_OBJECTS, **custom_objects}
    is_known = None if unsafe else partial(_is_known, known)
    if path.suffix == ".keras":
        containers.check_keras_archive(path, is_known)
    elif path.suffix in _HDF5:
        containers.check_hdf5(path, path, is_known=is_known)
    elif path.is_dir() and is_known is not None:
        containers.check_saved_model(path, is_known)


def _is_known(known: Mapping[str, Any], name: str) -> bool:
    """Whether the user gave a class or function by this name, or has registered it with either Keras."""
    if name in known or tf_keras.saving.get_registered_object(name) is not None:
        return True
    keras = sys.modules.get("keras")
    return keras is not None and keras.saving.get_registered_object(name) is not None


def _load_keras3(path: Path, custom_objects: Mapping[str, Any] | None, unsafe: bool) -> Any:
    try:
        return keras3.load_file(path, custom_objects, unsafe=unsafe)
    except ModelError as error:
        if _is_about_lambda(error):
            raise ModelError(lambda_refused(str(path))) from error
        raise


def _is_about_lambda(error: Exception) -> bool:
    return "lambda" in str(error).lower() and "safe_mode" in str(error)


def _no_keras_model(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return (
            f"{path} is a SavedModel without a Keras model in it: only the traced graph is there, whose layers cannot be told apart. "
            "Give the Keras model that it was exported from (a .keras or .h5 file, or a function that builds it and loads its weights)"
        )
    return f"{path} is a folder without a saved model; expected a SavedModel, or give a .keras or .h5 file"


def _saved_by(path: Path) -> str:
    """The version of Keras that wrote a file; empty where none is written down."""
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        if path.suffix in _HDF5:
            import h5py

            with h5py.File(path) as file:
                version = file.attrs.get("keras_version", "")
                return version.decode() if isinstance(version, bytes) else str(version)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile):
        return ""
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
