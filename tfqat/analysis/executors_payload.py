"""What a worker is given: the models that a bench is made from, the classes of the user's layers, and settings of TensorFlow."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from tfqat.analysis.executors_settings import Settings
from tfqat.errors import ModelError

if TYPE_CHECKING:
    from tfqat.analysis.bench import Bench

_LIBRARIES = {"builtins", "keras", "numpy", "tensorflow", "tensorflow_model_optimization", "tf_keras", "tfqat"}


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Everything a worker needs to build its bench.

    Attributes:
        models: .keras files of what a bench is made from; None for what is not given.
        objects: the classes of custom layers by name, pickled.
        settings: of TensorFlow.
    """

    models: tuple[bytes | None, ...]
    objects: bytes
    settings: Settings

    @classmethod
    def of(cls, *models: Any) -> Payload:
        """That of a bench made from `models`, for workers that compute as this process does.

        Raises:
            ModelError: a layer's class cannot be handed on.
        """
        given = [model for model in models if model is not None]
        objects = {name: item for model in given for name, item in custom_objects(model).items()}
        return cls(models=tuple(_saved(model) for model in models), objects=_by_value(objects), settings=Settings.here())

    def build(self, number: int) -> Bench:
        """The bench, in worker `number`.

        Raises:
            ModelError: a model cannot be loaded there; says what to do.
        """
        self.settings.apply(number)
        import tf_keras

        from tfqat.analysis.bench import Bench

        try:
            objects = pickle.loads(self.objects)
            with tf_keras.utils.custom_object_scope(objects):
                return Bench(*(_loaded(model, objects) for model in self.models))
        except (ModelError, ImportError, AttributeError) as error:
            raise ModelError(f"sensitivity: a worker cannot load the model: {error}. {_REMEDY}") from error


_REMEDY = "Put the classes of custom layers into a package that is installed where workers run, or set sensitivity.workers to 1"


def _saved(model: Any) -> bytes | None:
    if model is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tfqat-workers-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def _loaded(data: bytes | None, objects: Mapping[str, Any]) -> Any:
    if data is None:
        return None
    from tfqat.quantize.load import load_model

    with tempfile.TemporaryDirectory(prefix="tfqat-workers-") as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        return load_model(path, objects, unsafe=True)  # the process that saved it runs its code already


def custom_objects(model: Any) -> dict[str, Any]:
    """The classes and functions that a model's layers are made of and that are neither Keras's nor tfqat's, by the names in its file."""
    import tf_keras

    found: dict[str, Any] = {}
    for module in (model, *model.submodules):
        for value in (module, *vars(module).values()):
            item = value if inspect.isfunction(value) else type(value)
            if not _is_foreign(item) or item.__name__ == "<lambda>":  # of a Lambda layer the file has the code
                continue
            if item is value:
                found[item.__name__] = item  # Keras finds functions by either name
            if item is value or hasattr(item, "get_config"):
                found[tf_keras.saving.get_registered_name(item)] = item
    return found


def _is_foreign(item: Any) -> bool:
    return str(item.__module__).partition(".")[0] not in _LIBRARIES


def _by_value(objects: Mapping[str, Any]) -> bytes:
    """Pickled; what is defined in a file that is not installed travels as its code."""
    try:
        with contextlib.ExitStack() as stack:
            for name in {item.__module__ for item in objects.values()} - {"__main__"}:  # of __main__ cloudpickle knows by itself
                if name in sys.modules and not _is_installed(sys.modules[name]):
                    stack.enter_context(_travelling(sys.modules[name]))
            return bytes(cloudpickle.dumps(dict(objects)))
    except Exception as error:  # pickling can raise anything
        names = ", ".join(sorted({f"{item.__module__}.{item.__name__}" for item in objects.values()}))
        raise ModelError(f"sensitivity: {names} cannot be handed to workers: {type(error).__name__}: {error}. {_REMEDY}") from error


@contextlib.contextmanager
def _travelling(module: Any) -> Iterator[None]:
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_installed(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    folders = {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return file is None or any(folder in Path(file).resolve().parents for folder in folders)
