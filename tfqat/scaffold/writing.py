"""Writes the files of a new project: all of them or none, and never over one that is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

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
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:  # exclusive: what came into being meanwhile is not overwritten either
                written.append(path)
                stream.write(content)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ProjectError(f"cannot write {folder / name}: {error.strerror or error}; choose another folder with -o") from error
    return tuple(written)
