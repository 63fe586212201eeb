"""SIGKILL and SIGTERM at random moments of every stage: the run goes on with --resume, and ends as it would have."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
# Stages in their order. `load` is before there is a directory; in `report` a run may be complete before it is stopped.
STAGES = (
    "load", "float", "equalize", "calibrate", "search", "correct", "sensitivity", "ptq", "qat", "control", "export", "onnx", "latency",
    "verify", "compile", "report",
)  # fmt: skip
SETTINGS = (
    "deterministic=true",
    "training.epochs=30",
    "calibration={batches: 4, equalization: true, search: [max, entropy]}",
    "quantization.weights.num_bits=4",
    "sensitivity={metric: accuracy, max_drop: 0.0}",
    "qat.checkpoint_steps=4",
    "qat.control=true",
    "compile.enabled=false",
)
SAMPLE_SETTINGS = ("deterministic=true", "training.epochs=20", "qat.checkpoint_steps=4", "compile.enabled=false")


def options(settings: tuple[str, ...]) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


@pytest.fixture(scope="module")
def references(tiny_project: Path, launcher: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """settings -> the directory of the run that nothing cuts off."""
    made: dict[tuple[str, ...], Path] = {}

    def reference(settings: tuple[str, ...]) -> Path:
        if settings not in made:
            out = tmp_path_factory.mktemp("reference")
            launcher.run("run", "tiny.yaml", "--out", out, *options(settings), folder=tiny_project)
            (made[settings],) = out.iterdir()
        return made[settings]

    return reference


class Chain:
    """A run that is stopped in one stage after the other, and goes on each time."""

    def __init__(self, project: Path, out: Path, launcher: Any, settings: tuple[str, ...], checks: Any, counts: Counter[str]) -> None:
        self._project, self._out, self._launcher, self._checks, self._counts = project, out, launcher, checks, counts
        self._options = options(settings)

    @property
    def directory(self) -> Path | None:
        """That of the run; None before it has one."""
        known = sorted(self._out.glob("*/manifest.json")) if self._out.exists() else []
        assert len(known) < 2
        return known[0].parent if known else None

    @property
    def _complete(self) -> bool:
        return self.directory is not None and json.loads((self.directory / "manifest.json").read_text())["status"] == "complete"

    def start(self) -> Any:
        resume = ["--resume", self.directory] if self.directory else []
        return self._launcher.start("run", "tiny.yaml", "--out", self._out, *self._options, *resume, folder=self._project)

    def stop_in(self, stage: str, name: str, after: float) -> None:
        """Stop the run so many seconds after it entered a stage or a later one; without a directory, after it started."""
        if self._complete:
            return
        command = self.start()
        while stage != "load" and not command.ended.is_set() and self._stage(command) < STAGES.index(stage):
            time.sleep(0.001)
        command.ended.wait(after)
        if not command.ended.is_set():
            os.kill(command.pid, SIGNALS[name])
        code = command.wait()
        if code == 0:  # it was faster
            self._counts["runs that had ended before the signal"] += 1
            return
        self._counts[f"stopped by {name}"] += 1
        self._counts[f"stopped in {stage}"] += 1
        self._check(command, name, code)

    def _check(self, command: Any, name: str, code: int) -> None:
        directory = self.directory
        if directory is not None:
            self._checks.whole_files(directory)
        if name == "SIGKILL":
            assert code == -signal.SIGKILL, command.said
            return
        assert code == 143, command.said
        assert "error: stopped by SIGTERM" in command.said and "Traceback" not in command.said, command.said
        assert not self._checks.unfinished(self._out) if self._out.exists() else True
        manifest = json.loads((directory / "manifest.json").read_text()) if directory is not None else None
        if manifest is not None and manifest.get("process", {}).get("pid") == command.pid:
            assert manifest["status"] == "incomplete"
            assert f"--resume {directory}` goes on from there" in command.said

    def _stage(self, command: Any) -> int:
        """Where the command is; before it has the run in hand, the manifest still says where the one before was stopped."""
        if self.directory is None:
            return 0
        manifest = json.loads((self.directory / "manifest.json").read_text())
        return STAGES.index(manifest["stage"]) if manifest.get("process", {}).get("pid") == command.pid else 0

    def end(self, reference: Path) -> None:
        """Let the run end, and compare it with the one that nothing cut off."""
        if not self._complete:
            command = self.start()
            assert command.wait() == 0, command.said
        assert self.directory is not None
        self._checks.same_result(self.directory, reference)
        assert [path for path in self._out.iterdir()] == [self.directory]
        self._counts["runs with the result of an uninterrupted one"] += 1


CASES = {
    "killed where it trains, terminated where it exports": [("qat", "SIGKILL"), ("export", "SIGTERM")],
    "terminated where it trains, killed where it exports": [("qat", "SIGTERM"), ("export", "SIGKILL")],
    "terminated where it calibrates and where it proves": [("calibrate", "SIGTERM"), ("verify", "SIGTERM")],
}
SAMPLE = "killed where it trains, terminated where it exports"


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case == SAMPLE else pytest.mark.robustness) for case in CASES])
def test_a_stopped_run_ends_as_it_would_have(
    case: str, tiny_project: Path, launcher: Any, references: Any, checks: Any, counts: Counter[str], tmp_path: Path
) -> None:
    reference = references(SAMPLE_SETTINGS)
    seconds = json.loads((reference / "metrics.json").read_text())["seconds"]
    moments = random.Random(case)
    chain = Chain(tiny_project, tmp_path / "runs", launcher, SAMPLE_SETTINGS, checks, counts)
    for stage, name in CASES[case]:
        chain.stop_in(stage, name, moments.uniform(0, 0.9) * seconds.get(stage, 0.1))
    chain.end(reference)


@pytest.mark.robustness
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(int(os.environ.get("TFQAT_FAULTS_CHAINS", "3"))))
@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_that_is_stopped_in_every_stage_ends_as_it_would_have(
    name: str, seed: int, tiny_project: Path, launcher: Any, references: Any, checks: Any, counts: Counter[str], tmp_path: Path
) -> None:
    reference = references(SETTINGS)
    seconds = json.loads((reference / "metrics.json").read_text())["seconds"]
    moments = random.Random(f"{name} {seed}")
    chain = Chain(tiny_project, tmp_path / "runs", launcher, SETTINGS, checks, counts)
    for stage in STAGES:
        length = {"load": 3.0}.get(stage, seconds.get(stage, 0.05))
        for _ in range(2 if stage in ("calibrate", "qat", "export") else 1):
            chain.stop_in(stage, name, moments.uniform(0, 1) * length)
    chain.end(reference)
