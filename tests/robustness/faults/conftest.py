"""What the tests of faults share: commands that start at once, what a run directory must be at any moment, and the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COUNTS: Counter[str] = Counter()
FIGURES: dict[str, Any] = {}
JSON = "TFQAT_FAULTS_JSON"
"""The environment variable with the path of a file that gets the counts."""

TRANSIENT = ("seconds", "latency_ms", "versions")
"""Parts of metrics.json that differ from run to run."""


@pytest.fixture(scope="session")
def counts() -> Counter[str]:
    """What was done, by name: printed at the end."""
    return COUNTS


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    """Figures, by name: printed at the end."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts, and write them where TFQAT_FAULTS_JSON says."""
    if not COUNTS and not FIGURES:
        return
    terminalreporter.section("faults")
    for name, value in [*sorted(COUNTS.items()), *FIGURES.items()]:
        terminalreporter.write_line(f"{name}: {value}")
    if path := os.environ.get(JSON):
        Path(path).write_text(json.dumps({"counts": dict(sorted(COUNTS.items())), "figures": FIGURES}, indent=1) + "\n")


@dataclass
class Command:
    """A command under way."""

    pid: int
    log: Path
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None

    def wait(self, timeout: float = 300) -> int:
        """Its exit code, or the negative number of the signal that killed it."""
        assert self.ended.wait(timeout), self.said
        assert self.code is not None
        return self.code

    @property
    def said(self) -> str:
        """What it wrote to its standard output and error, in lines however wide the terminal is."""
        return self.log.read_text() if self.log.exists() else ""


class Launcher:
    """Starts `tfqat` commands in forks of one process, which saves the seconds in which TensorFlow is imported."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        environment = {**os.environ, "COLUMNS": "400"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._started: list[Command] = []
        self._commands: dict[int, Command] = {}
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self, *arguments: str | Path, folder: Path) -> Command:
        """Start `tfqat ARGUMENTS` in a folder."""
        self._number += 1
        log = self._folder / f"{self._number}.log"
        wanted = {"arguments": [str(one) for one in arguments], "folder": str(folder), "log": str(log)}
        assert self._process.stdin is not None
        with self._news:
            known = len(self._started)
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
            assert self._news.wait_for(lambda: len(self._started) > known, timeout=60)
            command = self._started[-1]
            command.log = log
            return command

    def run(self, *arguments: str | Path, folder: Path, code: int = 0) -> str:
        """Run a command to its end, which has to be with this exit code; what it said."""
        command = self.start(*arguments, folder=folder)
        assert command.wait() == code, command.said
        return command.said

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._listener.join(60)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, *numbers = line.split()
            with self._news:
                pid = int(numbers[0])
                if what == "started":
                    self._commands[pid] = self._commands.get(pid) or Command(pid=pid, log=Path())
                    self._started.append(self._commands[pid])
                else:
                    command = self._commands.setdefault(pid, Command(pid=pid, log=Path()))
                    command.code = int(numbers[1])
                    command.ended.set()
                self._news.notify_all()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts commands."""
    launched = Launcher(tmp_path_factory.mktemp("logs"))
    yield launched
    launched.close()


def whole_files(folder: Path) -> None:
    """Every file that has its name is whole: JSON can be parsed, an archive has all its parts, a graph can be read."""
    for path in folder.rglob("*"):
        if path.name.startswith(".writing-") or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".keras", ".npz"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        elif path.suffix == ".onnx":
            import onnx

            onnx.checker.check_model(onnx.load(str(path)))


def unfinished(folder: Path) -> list[str]:
    """Files and folders that begin with a dot: all that is not written to its end."""
    return sorted(path.name for path in folder.rglob(".*"))


def same_result(directory: Path, reference: Path) -> None:
    """A run ended with the result of another: weights, ranges, graphs, metrics and the names of its files."""
    import tfqat
    from tfqat.files import sha256

    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert all(sha256(directory / name) == value for name, value in manifest["sha256"].items())
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in reference.iterdir())
    assert {*manifest["sha256"], "manifest.json", "run.log"} == {path.name for path in directory.iterdir()}
    for name in ("quantized.keras", "qat.keras"):
        if (reference / name).exists():
            one, two = (tfqat.load_model(path / name).get_weights() for path in (directory, reference))
            assert all(np.array_equal(mine, other) for mine, other in zip(one, two, strict=True)), name
    for name in ("model.onnx", "calibration.json", "placement.json", "recipe.yaml"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name
    mine, other = (json.loads((path / "metrics.json").read_text()) for path in (directory, reference))
    for metrics in (mine, other):
        del metrics["size_bytes"]["float_onnx"]  # tf2onnx numbers the nodes of a graph in another order each time
    assert {name: value for name, value in mine.items() if name not in TRANSIENT} == {
        name: value for name, value in other.items() if name not in TRANSIENT
    }


@pytest.fixture(scope="session")
def checks() -> Any:
    """`whole_files`, `unfinished` and `same_result`."""

    class Checks:
        pass

    Checks.whole_files = staticmethod(whole_files)  # type: ignore[attr-defined]
    Checks.unfinished = staticmethod(unfinished)  # type: ignore[attr-defined]
    Checks.same_result = staticmethod(same_result)  # type: ignore[attr-defined]
    return Checks


def wait_for(condition: Callable[[], bool], command: Command) -> bool:
    """Wait until a condition holds; False if the command ends before."""
    while not command.ended.is_set():
        if condition():
            return True
        time.sleep(0.002)
    return condition()
