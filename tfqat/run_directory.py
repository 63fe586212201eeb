"""The directory of one run: made new, never overwritten, its files written whole, and a manifest that says how far the run came."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from tfqat import files
from tfqat.errors import DataError, RunDirectoryError

_T = TypeVar("_T")
MANIFEST, LOG = "manifest.json", "run.log"
_PACKAGES = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "tf2onnx", "onnx", "onnxruntime", "numpy", "tensorrt-rtx-cu13-libs")


class RunDirectory:
    """`<parent>/<name>-<UTC time>/`. Its manifest's `status` is `running`, `complete` or `incomplete`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest

    @classmethod
    def create(cls, parent: Path, name: str, *, recipe_hash: str, seed: int, recipe_folder: Path) -> RunDirectory:
        """Make a new directory.

        Args:
            parent: the folder that gets it.
            name: what its name begins with.
            recipe_hash: of the resolved recipe.
            seed: of the run.
            recipe_folder: where the recipe lies; with the working directory, which is kept too, it is where relative paths were found.

        Raises:
            RunDirectoryError: the parent cannot be made or written.
        """
        started = datetime.now(timezone.utc)
        stem = f"{name}-{started:%Y%m%dT%H%M%SZ}"
        manifest = {
            "recipe_hash": recipe_hash,
            "seed": seed,
            "recipe_folder": str(recipe_folder.resolve()),
            "working_directory": str(Path.cwd()),
            "started": started.isoformat(timespec="seconds"),
            "versions": versions(),
            "git": _git_state(recipe_folder),
        }
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = _new_folder(parent, stem)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot make a run directory in {parent}: {error.strerror or error}; choose another with --out"
            ) from error
        directory = cls(path, manifest)
        try:
            directory.mark("running", stage="load")
        except RunDirectoryError:
            directory.discard()
            raise
        return directory

    @classmethod
    def reopen(cls, path: Path, *, recipe_hash: str) -> RunDirectory:
        """The directory of a run that was cut off, to go on with it.

        Raises:
            RunDirectoryError: it is not one, its run is complete, or it is of another recipe.
        """
        manifest = read_json(path, MANIFEST)
        _check_not_complete(path, manifest)
        if manifest.get("recipe_hash") != recipe_hash:
            raise RunDirectoryError(
                f"the run in {path} is of another recipe, or with other --set values: resume it with those it was started with "
                f"({path / 'recipe.yaml'} has them), or leave out --resume"
            )
        manifest.setdefault("resumed", []).append(datetime.now(timezone.utc).isoformat(timespec="seconds"))
        return cls(path, manifest)

    @property
    def stage(self) -> str:
        """The stage that is under way, or was the last."""
        return str(self._manifest.get("stage", "load"))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def complete(self, *, leaving_out: Collection[str] = ()) -> None:
        """Write the manifest of a run that has ended, with the checksum of every file but the log, itself, and those left out."""
        skipped = {MANIFEST, LOG, *leaving_out}
        paths = sorted(path for path in self.path.rglob("*") if path.is_file() and path.name not in skipped)
        self._manifest["sha256"] = {str(path.relative_to(self.path)): files.sha256(path) for path in paths}
        self.mark("complete", stage="report")

    def mark(self, status: str, *, stage: str) -> None:
        """Write the manifest with the status and the stage that is under way, or was the last."""
        self._manifest.update(status=status, stage=stage, changed=datetime.now(timezone.utc).isoformat(timespec="seconds"))
        files.write_json(self.path / MANIFEST, self._manifest)

    def discard(self) -> None:
        """Remove a directory that holds no result yet."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[str], None]]:
        """Let no other process work in the directory; gives a function that writes a line with its time to `run.log`.

        What half-written files another process left, which was killed, is removed.

        Raises:
            RunDirectoryError: another process works in it: says which.
        """
        try:
            stream = (self.path / LOG).open("ab", buffering=0)
        except OSError as error:
            raise files.unwritable(self.path / LOG, error) from error
        with stream:
            if not files.taken(stream.fileno()):
                raise RunDirectoryError(f"the run in {self.path} is under way{_holder(self.path)}: wait until it ends, or end it")
            if "resumed" in self._manifest:  # the process that had it may have ended it since
                _check_not_complete(self.path, read_json(self.path, MANIFEST))
            files.remove_unfinished(self.path)
            self._manifest["process"] = {"host": platform.node(), "pid": os.getpid()}

            def write(text: str) -> None:
                with contextlib.suppress(OSError):  # a full disk costs the line; what cannot do without its file says so itself
                    stream.write(f"{datetime.now(timezone.utc):%H:%M:%S} {text}\n".encode())

            yield write


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run: all of them hold an object.

    Raises:
        RunDirectoryError: it is missing or corrupt; names it.
    """
    try:
        found = json.loads((directory / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirectoryError(f"{directory} has no {name}: is it the directory of a run that came that far?") from error
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{directory / name} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunDirectoryError(f"{directory / name} is corrupt: expected a JSON object, got {type(found).__name__}")
    return found


def read_result(directory: Path, name: str, parse: Callable[[dict[str, Any]], _T]) -> _T:
    """What `parse` makes of a JSON file of a run.

    Raises:
        RunDirectoryError: it is missing or corrupt; names it.
    """
    data = read_json(directory, name)
    try:
        return parse(data)
    except KeyError as error:
        raise RunDirectoryError(f"{directory / name} is corrupt: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError, DataError) as error:
        raise RunDirectoryError(f"{directory / name} is corrupt: {error}") from error


def exported_model(metrics: dict[str, Any]) -> str:
    """The name of the model file that a run exported, from its `metrics.json`."""
    return "qat.keras" if metrics.get("exported") == "qat" else "quantized.keras"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _check_not_complete(path: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("status") == "complete":
        raise RunDirectoryError(f"the run in {path} is complete; leave out --resume to run the recipe again")


def _holder(path: Path) -> str:
    """Which process works in a run directory, as far as its manifest says."""
    with contextlib.suppress(RunDirectoryError, KeyError, TypeError):
        process = read_json(path, MANIFEST)["process"]
        return f" in process {process['pid']} on {process['host']}"
    return ""


def _new_folder(parent: Path, stem: str) -> Path:
    for number in range(1, 1000):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise RunDirectoryError(f"{parent} holds 999 runs of the same second")


def _git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that the recipe's folder is at, and whether files differ from it; None where there is no Git or no repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
