"""How a build is run in a process of its own, and what its death, silence or refusal means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfqat.engines.layer_log import MARK
from tfqat.engines.profile import Profile
from tfqat.engines.worker import PARSING
from tfqat.errors import EngineError

WORKER = (sys.executable, "-m", "tfqat.engines.worker")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One engine to build. `title` is the backend's name for messages, `module` the Python module that has its bindings.

    With a `timing_cache` the worker leaves its successor at `timings_path(plan_path)`.
    """

    title: str
    module: str
    onnx_path: Path
    plan_path: Path
    compute_capability: str | None
    profile: Profile = field(default_factory=dict)
    fp16: bool = False
    timing_cache: Path | None = None

    @property
    def subject(self) -> str:
        """For messages: what is built, for what, with what."""
        return f"{self.title} on {self.onnx_path.name} for {self.compute_capability or 'the GPU of this machine'}"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A build that succeeded: the plan is at the job's `plan_path`.

    `layers_message` is the log's list of kernels and `inspector` the engine inspector's; each is empty if there is none.
    """

    version: str
    seconds: float
    layers_message: str
    inspector: str = ""


@dataclass(frozen=True, kw_only=True)
class _Log:
    """The messages of a worker, dead or alive."""

    errors: tuple[str, ...]
    parsing: str
    layers: str


def timings_path(plan_path: Path) -> Path:
    """Where the worker leaves the timing cache of a build."""
    return plan_path.with_name(plan_path.name + ".timings")


def run_worker(job: Job, *, timeout_s: float, command: Sequence[str] = WORKER) -> Built:
    """Builds one engine in a new process.

    Raises:
        EngineError: The process crashed (with the signal and the node it was parsing), did not finish in `timeout_s` seconds, or
            TensorRT refused the graph (with the node and the message of each parser error) or an option, or a file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="tfqat-engine-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(_job_file(job, folder)))
        try:
            process = subprocess.run(
                [*command, str(folder / "job.json")],
                cwd=folder,
                env=_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            said = _said(_read_log(folder / "log.jsonl"))
            raise EngineError(
                f"{job.subject}: not built after {timeout_s:g} s{said}; give it more time with timeout_s (--timeout)"
            ) from None
        log = _read_log(folder / "log.jsonl")
        if process.returncode != 0:
            raise EngineError(f"{job.subject}: the build {_death(process.returncode)}{_said(log)}{_tail(process.stderr)}")
        return _outcome(job, json.loads((folder / "result.json").read_text()), log)


def _outcome(job: Job, result: dict[str, Any], log: _Log) -> Built:
    if result.get("refused"):
        raise EngineError(f"{job.subject}: {result['refused']}")
    if not result["built"]:
        messages = [_parser_message(**error) for error in result["errors"]] or list(log.errors) or ["no reason given"]
        raise EngineError(f"{job.subject}: the graph cannot be built: " + "; ".join(messages))
    return Built(version=result["version"], seconds=result["seconds"], layers_message=log.layers, inspector=result.get("inspector", ""))


def _job_file(job: Job, folder: Path) -> dict[str, object]:
    return {
        "module": job.module,
        "onnx_path": str(job.onnx_path.resolve()),
        "plan_path": str(job.plan_path.resolve()),
        "compute_capability": job.compute_capability,
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in job.profile.items()},
        "fp16": job.fp16,
        "timing_cache": str(job.timing_cache.resolve()) if job.timing_cache is not None and job.timing_cache.exists() else None,
        "timing_cache_out": str(timings_path(job.plan_path).resolve()) if job.timing_cache is not None else None,
        "log_path": str(folder / "log.jsonl"),
        "result_path": str(folder / "result.json"),
    }


def _environment() -> dict[str, str]:
    """This process's environment, with the folder that tfqat was imported from first on the path."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _read_log(path: Path) -> _Log:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    messages = [entry["message"] for entry in entries]
    return _Log(
        errors=tuple(" ".join(entry["message"].split()) for entry in entries if entry["severity"].endswith("ERROR")),
        parsing=next((message[len(PARSING) :].strip() for message in reversed(messages) if message.startswith(PARSING)), ""),
        layers=next((message for message in messages if message.startswith(MARK)), ""),
    )


def _said(log: _Log) -> str:
    parsing = f"; the last node parsed is {log.parsing}" if log.parsing else ""
    return parsing + (f"; its last error is: {log.errors[-1]}" if log.errors else "")


def _death(returncode: int) -> str:
    if returncode > 0:
        return f"ended with exit code {returncode}"
    try:
        return f"crashed with signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"crashed with signal {-returncode}"


def _tail(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"; it wrote: {lines[-1]}" if lines else ""


def _parser_message(node: str, op: str, message: str) -> str:
    text = " ".join(message.split())
    return f"node {node!r} ({op}): {text}" if node else text
