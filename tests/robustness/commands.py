"""`tfqat` commands in a process that is kept, so that one that hangs, crashes or takes all memory is told apart and costs no test run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("server.py")
REFUSED = 2
MOST_MEMORY_MB = 1500
"""What a command may take more than the process had before: a bomb takes many times as much, the tiny model a tenth."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended. `code` is None where it ended by itself in no way: `fault` says then what happened."""

    arguments: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float
    more_mb: int = 0
    fault: str = ""

    @property
    def wrong(self) -> str:
        """What no input may bring about; empty if it did not."""
        if self.fault:
            return self.fault
        if self.code is None or "Traceback (most recent call last)" in self.err:
            return "a traceback"
        if self.code == REFUSED and "error" not in self.err.lower():
            return "exit code 2 without a message"
        if self.more_mb > MOST_MEMORY_MB:
            return f"{self.more_mb} MB of memory"
        return ""

    def told(self) -> str:
        """All of it, for an assertion."""
        return f"tfqat {' '.join(self.arguments)}: exit code {self.code}, {self.seconds:.1f} s\n{self.out[-2000:]}\n{self.err[-6000:]}"


class Commands:
    """Starts the process with the first command, and again after one that had to be ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, *arguments: object, cwd: Path, limit_s: float = 60) -> Ended:
        """`tfqat <arguments>` in the folder `cwd`."""
        process = self._started()
        given = tuple(map(str, arguments))
        out, err = self._folder / "stdout", self._folder / "stderr"
        request = {"arguments": given, "cwd": str(cwd), "stdout": str(out), "stderr": str(err)}
        started = time.monotonic()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply, fault = self._reply(limit_s)
        if fault:
            self.close()
        return Ended(
            arguments=given,
            code=reply.get("code"),
            out=out.read_text(errors="replace") if out.exists() else "",
            err=err.read_text(errors="replace") if err.exists() else "",
            seconds=time.monotonic() - started,
            more_mb=reply.get("more_mb", 0),
            fault=fault,
        )

    def close(self) -> None:
        """End the process, and what it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "240", "NO_COLOR": "1"}
            errors = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # the process has it
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,
            )
            errors.close()
            ready, fault = self._reply(120)
            assert ready.get("ready"), fault
        return self._process

    def _reply(self, limit_s: float) -> tuple[dict[str, Any], str]:
        assert self._process is not None and self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not readable:
            return {}, f"it did not end within {limit_s:.0f} s"
        line = self._process.stdout.readline()
        if not line:
            return {}, f"the process died: {self._process.wait()}"
        return json.loads(line), ""


def contents(*folders: Path, less: Sequence[str] = ()) -> dict[str, str]:
    """The checksum of every file in folders, but for those of a name in `less` and Python's caches."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    kept = [path for path in paths if "__pycache__" not in path.parts and path.name not in less]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
