"""The files and functions that a recipe names: where they are looked for, and how a function is imported.

`module:function` and `path/file.py:function` are the only ways that a recipe names code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tfqat.errors import DataError, RecipeError, nearest


def resolve_path(path: str | Path, base: Path) -> Path:
    """The file or folder that a recipe in the folder `base` calls `path`.

    A relative path is looked for in the working directory, then in `base`, then in each folder above `base`.

    Raises:
        RecipeError: it is in none of them.
    """
    folders = [Path.cwd(), base.resolve(), *base.resolve().parents]
    found = next((folder / path for folder in folders if exists(folder / path)), None)
    if found is None:
        where = "" if Path(path).is_absolute() else f"; looked in {folders[0]}, {folders[1]} and the folders above it"
        raise RecipeError([f"{str(path)!r} does not exist{where}"])
    return found


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; there is none by a name that is too long or holds a NUL, for which `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def load_reference(reference: str, *, base: Path) -> Callable[..., Any]:
    """The function that `module:function` or `path/file.py:function` names, for a recipe in the folder `base`.

    The file is found as by `resolve_path`. While it is imported, its own folder can be imported from; while a module is
    imported, the working directory can. A file that has not changed is imported once, so that what it caches is shared.

    Raises:
        RecipeError: the reference is not of either form.
        DataError: the file, module or function does not exist, cannot be imported, or is not callable.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise RecipeError([f"{reference!r}: expected module:function or path/file.py:function"])
    module = _from_file(source, reference, base) if source.endswith(".py") else _from_name(source, reference)
    try:
        function = getattr(module, name)
    except AttributeError:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{reference!r}: {source} has no function {name!r}{nearest(name, own)}") from None
    if not callable(function):
        raise DataError(f"{reference!r}: {name} is of type {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]


def _from_file(source: str, reference: str, base: Path) -> ModuleType:
    try:
        path = resolve_path(source, base).resolve()
    except RecipeError as error:
        raise DataError(f"{reference!r}: {error}") from None
    identity = f"{path}:{path.stat().st_mtime_ns}"
    name = f"tfqat_reference_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{reference!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, Exception | SystemExit):
            raise _import_failed(reference, error) from error
        raise
    return module


def _from_name(source: str, reference: str) -> ModuleType:
    try:
        with _importable(Path.cwd()):
            return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise DataError(f"{reference!r}: no module named {error.name!r}, neither installed nor in {Path.cwd()}") from None
        raise _import_failed(reference, error) from error


def _import_failed(reference: str, error: BaseException) -> DataError:
    return DataError(f"{reference!r}: importing it raises {type(error).__name__}: {error}")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` first on `sys.path`, and take that one entry off again whatever else the import did to the list."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
