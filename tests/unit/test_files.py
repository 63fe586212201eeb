"""A file is written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfqat import files
from tfqat.errors import RunDirectoryError

WRITERS: dict[str, tuple[Callable[[Path, Any], None], Any, bytes]] = {
    "bytes": (files.write_bytes, b"\x00\xff", b"\x00\xff"),
    "text": (files.write_text, "größe\n", "größe\n".encode()),
    "json": (files.write_json, {"accuracy": 0.9184, "why": ["ü"]}, b'{\n "accuracy": 0.9184,\n "why": [\n  "\\u00fc"\n ]\n}\n'),
}


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "over an old file"])
@pytest.mark.parametrize("name", WRITERS)
def test_writes(name: str, old: bytes | None, tmp_path: Path) -> None:
    write, value, expected = WRITERS[name]
    path = tmp_path / "result.json"
    if old:
        path.write_bytes(old)
    write(path, value)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [None, b"old"], ids=["no file before", "an old file"])
def test_an_error_in_the_block_leaves_what_was_there(error: type[BaseException], old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    if old:
        path.write_bytes(old)
    with pytest.raises(RunDirectoryError if error is OSError else error), files.replacing(path) as temporary:
        temporary.write_bytes(b"half of the new one")
        raise error("disk full")
    assert os.listdir(tmp_path) == (["model.keras"] if old else [])
    assert not old or path.read_bytes() == old


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path and temporary.suffix == ".keras" and temporary.name.startswith(".")
    assert path.read_bytes() == b"new"


def test_a_value_that_json_does_not_know_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    files.write_json(path, {"accuracy": 0.5})
    with pytest.raises(TypeError):
        files.write_json(path, {"accuracy": object()})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_has_the_rights_of_any_new_file(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "a.txt", "a")
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def in_a_file(folder: Path) -> Path:
    (folder / "file").write_text("a regular file")
    return folder / "file" / "metrics.json"


def in_no_folder(folder: Path) -> Path:
    return folder / "missing" / "metrics.json"


def on_a_folder(folder: Path) -> Path:
    (folder / "metrics.json").mkdir()
    return folder / "metrics.json"


UNWRITABLE = {
    "below a regular file": (in_a_file, "Not a directory; choose another folder"),
    "no such folder": (in_no_folder, "No such file or directory; choose another folder"),
    "the target is a folder": (on_a_folder, "Is a directory"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_unwritable(name: str, tmp_path: Path) -> None:
    make, message = UNWRITABLE[name]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunDirectoryError, match=f"^cannot write {path}: {message}"):
        files.write_json(path, {})
    assert sorted(tmp_path.rglob("*")) == before
