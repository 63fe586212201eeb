"""Writes files whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfqat.errors import RunDirectoryError

TEMPORARY = ".writing-"
"""What the names of files begin with that are not written to their end."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path with the suffix of `path`, which takes its place if the block ends without an error.

    Raises:
        RunDirectoryError: the folder cannot be written; names it.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """A folder that is there in the block, and that is not left behind empty if it was made for what then failed."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal; read in pieces (hashlib.file_digest needs Python 3.11)."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
