"""A tool in a process of its own, as the benchmark talks to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.scoreboard.environments import python_of
from benchmarks.scoreboard.peer import Cannot
from benchmarks.scoreboard.peers import Place

SECONDS_TO_END = 30
ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):  # noqa: N818 - one of the results, as Cannot is
    """A tool raised an exception, or its process ended; the message is its first line."""


class Worker:
    """The process of a tool; use as a context manager."""

    def __init__(self, place: Place, log: Path, *, threads: int | None = None) -> None:
        """Start it.

        Args:
            place: the tool.
            log: takes what it prints.
            threads: of TensorFlow; None: all cores.

        Raises:
            Cannot: its environment cannot be made here.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if place.requirements:
            environment["PYTHONPATH"] = str(ROOT)
            environment.pop("TF_USE_LEGACY_KERAS", None)
        if threads is not None:
            environment |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
        self.place, self.log = place, log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(python_of(place)), "-m", "benchmarks.scoreboard.server", place.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                text=True,
            )
        try:
            self.about = self.call("about")
        except (Cannot, Failed):
            self.__exit__()
            raise

    def call(self, order: str, **arguments: Any) -> dict[str, Any]:
        """What the tool answers.

        Raises:
            Cannot: it does not offer that.
            Failed: it broke.
        """
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"order": order, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"{self.place.title} ended with code {self.process.wait()} at `{order}`; it printed to {self.log}")
        answer = json.loads(line)
        if "cannot" in answer:
            raise Cannot(answer["cannot"])
        if "failed" in answer:
            raise Failed(answer["failed"][:300])
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
