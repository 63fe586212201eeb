"""`tfqat run` in two real processes on loopback: the result of one, and what happens when one of them is killed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfqat

SETTINGS = ["compile.enabled=false", "distribution.strategy=multi_worker"]
PIPED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
NAMES = {"TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"}


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


def tf_config() -> list[dict[str, str]]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports()]}
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})} for index in range(2)]


def slurm() -> list[dict[str, str]]:
    shared = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    return [shared | {"SLURM_PROCID": str(index)} for index in range(2)]


@contextlib.contextmanager
def started(
    recipe: Path, out: Path, settings: list[str], tasks: list[dict[str, str]], *more: str, second: list[str] | None = None
) -> Iterator[list[Any]]:
    """The two processes; the second is in a folder of its own, as on another host."""
    command = [sys.executable, "-m", "tfqat_cli", "run", str(recipe), *more]
    processes = []
    for index, task in enumerate(tasks):
        folder = out / f"host{index}"
        folder.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in NAMES} | task | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        chosen = [word for setting in (second if index and second else settings) for word in ("--set", setting)]
        processes.append(subprocess.Popen([*command, *chosen], cwd=folder, env=environment, **PIPED))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            if not process.stdout.closed:
                process.communicate()


def run_of(out: Path) -> Path:
    (directory,) = (out / "host0" / "runs").iterdir()
    return directory


def weights(directory: Path) -> list[np.ndarray]:
    return tfqat.load_model(directory / "qat.keras").get_weights()


def history(directory: Path, name: str) -> np.ndarray:
    return np.loadtxt(directory / name, delimiter=",", skiprows=1, ndmin=2)


def test_two_processes_give_the_result_of_one(tiny_project: Path, tmp_path: Path) -> None:
    """BatchNorm trains in the control, over the whole batch; quantized, each flipped code makes all later steps differ a little more."""
    chosen = [*SETTINGS, "qat.batchnorm=freeze", "qat.distill.weight=0.3", "qat.control=true", "qat.lr_decay_factor=0.05"]
    recipe = tiny_project / "tiny.yaml"
    with started(recipe, tmp_path, chosen, tf_config()) as processes:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Done; the chief of these processes has the result." in outputs[1]
    assert "process 1 of 2; 2 devices in all" in outputs[1]
    assert list((tmp_path / "host1").iterdir()) == []  # only the chief writes
    together = run_of(tmp_path)
    assert json.loads((together / "manifest.json").read_text())["status"] == "complete"
    alone = tfqat.run(recipe, overrides=[chosen[0], *chosen[2:]], out=tmp_path / "alone")
    assert alone is not None
    assert json.loads((together / "calibration.json").read_text()) == json.loads((alone.directory / "calibration.json").read_text())
    before = tfqat.load_model(together / "quantized.keras").get_weights()
    assert max(np.max(np.abs(np.float64(old) - new)) for old, new in zip(before, weights(together), strict=True)) > 1e-2
    for ours, theirs in zip(weights(together), weights(alone.directory), strict=True):
        np.testing.assert_allclose(np.float64(ours), np.float64(theirs), rtol=1e-4, atol=1e-5)
    for name, tolerance in (("history.csv", 1e-3), ("history-control.csv", 1e-5)):
        np.testing.assert_allclose(history(together, name), history(alone.directory, name), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.sweep)])
def test_a_killed_process_stops_the_other_and_the_run_resumes(tiny_project: Path, tmp_path: Path, victim: int) -> None:
    chosen = [*SETTINGS, "training.epochs=60", "deterministic=true"]
    recipe = tiny_project / "tiny.yaml"
    with started(recipe, tmp_path, chosen, slurm()) as processes:
        checkpoint = None
        while checkpoint is None and all(process.poll() is None for process in processes):
            time.sleep(0.2)
            checkpoint = next((tmp_path / "host0").glob("runs/*/checkpoint.npz"), None)
        assert checkpoint is not None, processes[0].communicate()[0]
        processes[victim].kill()
        killed = time.monotonic()
        output = processes[1 - victim].communicate(timeout=60)[0]
        took = time.monotonic() - killed
        assert processes[1 - victim].returncode == 2, output
    assert took < 60 and "another process of this run was lost" in output
    directory = run_of(tmp_path)
    with started(recipe, tmp_path, chosen, tf_config(), "--resume", str(directory)) as processes:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "resuming behind: float, ptq" in outputs[0]
    assert [int(row[0]) for row in history(directory, "history.csv")] == list(range(6))
    assert list(tmp_path.glob("host1/*")) == []


def test_processes_with_other_settings_all_say_so(tiny_project: Path, tmp_path: Path) -> None:
    differing = [*SETTINGS, "qat.lr_decay_factor=0.5"]
    with started(tiny_project / "tiny.yaml", tmp_path, SETTINGS, tf_config(), second=differing) as processes:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert "1 differ from the chief" in outputs[0]
    assert "this one has another recipe, QAT schedule than the chief" in outputs[1]
    assert not (tmp_path / "host0" / "runs").exists()


MIRRORED = """
import json, sys
import tensorflow as tf
import tfqat

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
result = tfqat.run(sys.argv[1], overrides=sys.argv[3:], out=sys.argv[2])
print("RESULT" + json.dumps([result.metrics, result.parity.passed]))
"""


@pytest.mark.slow
def test_two_devices_of_one_machine(tiny_project: Path, tmp_path: Path) -> None:
    chosen = ["distribution.strategy=mirrored", "compile.enabled=false", "qat.control=true", "qat.precision=mixed_bfloat16"]
    command = [sys.executable, "-c", MIRRORED, str(tiny_project / "tiny.yaml"), str(tmp_path), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    metrics, proven = json.loads(line.removeprefix("RESULT"))
    assert proven and min(metrics["qat"]["accuracy"], metrics["control"]["accuracy"]) > metrics["float"]["accuracy"]
