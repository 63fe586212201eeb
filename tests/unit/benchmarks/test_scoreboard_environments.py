"""Environments of tools, without making any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoreboard import environments
from benchmarks.scoreboard.peer import Cannot
from benchmarks.scoreboard.peers import Place


def test_a_tool_without_requirements_runs_in_this_python() -> None:
    assert environments.python_of(Place(module="plain", title="float")) == Path(sys.executable)


def test_pips_error_is_the_reason_and_it_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        failed = "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "", "WARNING: old\nERROR: no such version\n" if failed else "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments.shutil, "which", lambda name: f"/bin/{name}")
    place = Place(module="gone", title="Gone", requirements=("gone==1",), pythons=("python3.11",))

    for _ in range(2):
        with pytest.raises(Cannot, match=r"^does not install here: ERROR: no such version$"):
            environments.python_of(place)

    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]


def test_a_python_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)

    with pytest.raises(Cannot, match=r"it needs python3\.2 or python3\.1"):
        environments.python_of(Place(module="old", title="Old", requirements=("old",), pythons=("python3.2", "python3.1")))
