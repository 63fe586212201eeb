"""Where the relative paths of a finished run's recipe are looked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tfqat.errors import DataError, RecipeError
from tfqat.inputs import Origin
from tfqat.run_directory import MANIFEST, read_json

T = TypeVar("T")


@contextlib.contextmanager
def loaded_at_place(directory: Path, load: Callable[[Origin], T], *, unsafe: bool = False) -> Iterator[T]:
    """What `load` returns at the first place where it finds what the recipe names; the block runs with that working directory.

    Raises:
        DataError, RecipeError: of the first place, if no place has it.
    """
    failures: list[DataError | RecipeError] = []
    for working_directory, origin in places(directory, unsafe=unsafe):
        with _working_in(working_directory):
            try:
                found = load(origin)
            except (DataError, RecipeError) as error:
                failures.append(error)
                continue
            yield found
            return
    raise failures[0]


def places(directory: Path, *, unsafe: bool = False) -> list[tuple[Path, Origin]]:
    """Where the run was made, if that is still there, and where we are now: the working directory and the recipe's folder."""
    manifest, file = read_json(directory, MANIFEST), str(directory / "recipe.yaml")
    recorded = Path(str(manifest.get("working_directory", ""))), Path(str(manifest.get("recipe_folder", "")))
    places = [recorded] if all(folder.is_absolute() and folder.is_dir() for folder in recorded) else []
    return [(working, Origin(file=file, folder=folder, unsafe=unsafe)) for working, folder in [*places, (Path.cwd(), directory)]]


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
