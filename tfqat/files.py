"""Writes files whole or not at all: a temporary name beside the target, then a rename; and lets one process at a time into a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tfqat.errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # Windows: what several processes do at once in one folder is not kept apart there
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".writing-"
"""What the names of files and folders begin with that are not written to their end."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path with the suffix of `path`, which takes its place if the block ends without an error.

    Raises:
        RunDirectoryError: the folder cannot be written; names it.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # of a disk that became read-only; the error above says so
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> RunDirectoryError:
    """That a file or a folder cannot be written: which, why, and what to do."""
    full = error.errno in _FULL
    advice = f"free space on the disk of {path.parent}, or choose another folder" if full else "choose another folder"
    return RunDirectoryError(f"cannot write {path}: {error.strerror or error}; {advice}")


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, for files that take their places together; it is gone when the block ends."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as name:
        yield Path(name)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote into a folder."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Other processes wait with this block for the same folder; where the file system has no locks, they do not."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a network's file system may lock nothing, or no folders
            if fcntl is not None:
                handle = os.open(folder, os.O_RDONLY)
                held.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def taken(handle: int) -> bool:
    """Take an open file for this process, until it is closed; False if another process has it.

    The system gives it back however the process ends. Where the file system has no locks, all may have it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def put_in_place(pairs: Iterable[tuple[Path, Path]], folder: Path) -> None:
    """Move files to their places, each (from, to), in this order; if one cannot be moved, what was there before is there again.

    Args:
        pairs: on one file system.
        folder: on the same one, to keep what was there before in until all are in place.

    Raises:
        OSError: one cannot be moved.
    """
    undo: list[tuple[Path, Path | None]] = []
    try:
        for number, (new, place) in enumerate(pairs):
            before = folder / f"before-{number}" if place.exists() else None
            if before is not None:
                _keep(place, before)
            undo.append((place, before))
            new.replace(place)
    except BaseException:
        for place, before in reversed(undo):
            if before is None:
                place.unlink(missing_ok=True)
            else:
                before.replace(place)
        raise


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


def _keep(place: Path, before: Path) -> None:
    """A second name for a file, so that its place is never empty; where the file system has one name for each, the file moves."""
    try:
        os.link(place, before)
    except OSError:
        place.replace(before)


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


@contextlib.contextmanager
def stderr_to(descriptor: int) -> Iterator[None]:
    """Standard error of the process goes to another descriptor, what C++ writes too, which knows nothing of `sys.stderr`.

    Raises:
        OSError: the process has no standard error.
    """
    kept = os.dup(2)
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
