"""Operations and layers of Keras 3 as living objects, and their descriptions in files (checked on Keras 3.15.1 and tf-keras 2.21.0)."""

from __future__ import annotations

import inspect
import json
import warnings
from importlib import import_module
from typing import Any

import tf_keras

from tfqat.errors import ModelError

_OPERATIONS = ("keras.src.ops.", "keras.src.activations.")


class Description(str):
    """A Keras 3 layer as JSON text; in the process that wrote it, with the layer itself.

    So a copy of a model finds classes and functions that are not registered with Keras 3.
    """

    layer: Any = None

    @classmethod
    def of(cls, layer: Any) -> Description:
        """The description of a layer; without text if Keras 3 cannot write it, which then cannot be saved but works in this process."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the layer holds a lambda, which makes loading unsafe, not saving
                text = json.dumps(import_module("keras").saving.serialize_keras_object(layer))
        except (TypeError, ValueError, NotImplementedError):
            text = ""
        description = cls(text)
        description.layer = layer
        return description

    def __deepcopy__(self, memo: Any) -> Description:
        return self


def operation_class(path: str) -> Any:
    """The class of an operation. Only operations of Keras are imported, whatever a file says.

    Raises:
        ModelError: `path` is no operation of this version of Keras.
    """
    module, _, name = path.rpartition(".")
    if f"{module}.".startswith(_OPERATIONS) and name.isidentifier():
        try:
            found = getattr(import_module(module), name, None)
        except ImportError:
            found = None
        if inspect.isclass(found) and issubclass(found, import_module("keras").Operation):
            return found
    version = import_module("keras").__version__
    raise ModelError(f"{path!r} is no operation of Keras {version}: load the model with the version of Keras that it was made with")


def live_layer(description: str, dtype: str) -> Any:
    """The Keras 3 layer of a description, computing in `dtype` if that is float64 and the layer can be made so."""
    _check_backend(description)
    live = getattr(description, "layer", None)
    if live is not None and dtype != "float64":
        return live
    keras: Any = import_module("keras")
    config = json.loads(description) if description else None
    if live is None:
        return keras.saving.deserialize_keras_object(config, custom_objects=_known_to_tf_keras(config), safe_mode=_safe_mode())
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(dtype)  # for the layers that a layer makes inside itself
        known = {type(part).__name__: type(part) for part in live._flatten_layers()}
        changed = {**config, "config": {**config["config"], "dtype": dtype}} if config else None
        return keras.saving.deserialize_keras_object(changed, custom_objects=known, safe_mode=False)
    except Exception:  # any: the class is the user's own
        return live
    finally:
        keras.config.set_dtype_policy(policy)


def _check_backend(description: str) -> None:
    backend = import_module("keras").backend.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"a layer of Keras 3 computes with its backend {backend!r}, expected 'tensorflow' ({description[:120]}): set "
            "KERAS_BACKEND=tensorflow in the environment"
        )


def _safe_mode() -> bool:
    return import_module("tf_keras.src.saving.serialization_lib").in_safe_mode() is not False


def _known_to_tf_keras(config: Any) -> dict[str, Any]:
    """Whatever tf_keras knows by a name that stands in `config`, for Keras 3 to look up."""
    if isinstance(config, dict | list):
        parts = config.values() if isinstance(config, dict) else config
        return {name: known for part in parts for name, known in _known_to_tf_keras(part).items()}
    known = tf_keras.saving.get_registered_object(config) if isinstance(config, str) else None
    return {} if known is None else {config: known}
