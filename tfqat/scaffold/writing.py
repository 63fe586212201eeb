"""Writes the files of a new project: all of them or none, and never over one that is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tfqat import files
from tfqat.errors import ProjectError


def check_new(folder: Path, names: Iterable[str]) -> None:
    """Make sure that none of the names is there yet.

    Raises:
        ProjectError: some are; names them.
    """
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if there:
        raise ProjectError(f"{folder} has {', '.join(there)} already, and nothing is overwritten: choose another folder with -o")


def write_new(folder: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write files that are not there yet, and the folders above them.

    Args:
        folder: what the names are relative to.
        contents: name -> content.

    Returns:
        The paths, in the order of the names.

    Raises:
        ProjectError: one of them is there already, or cannot be written; nothing is left written then.
    """
    check_new(folder, contents)
    written: list[Path] = []
    try:
        with contextlib.ExitStack() as folders:
            for name, content in contents.items():
                path = folder / name
                folders.enter_context(files.folder_for(path.parent))
                with path.open("xb") as stream:  # exclusive: what came into being meanwhile is not overwritten either
                    folders.enter_context(_removed_on_error(path))
                    stream.write(content)
                written.append(path)
    except OSError as error:
        raise ProjectError(f"cannot write {folder / name}: {error.strerror or error}; choose another folder with -o") from error
    return tuple(written)


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
