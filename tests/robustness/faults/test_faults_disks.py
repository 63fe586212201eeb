"""A disk that is full, at many fillings, and one that is read-only: a message, nothing of the user's lost, and the run goes on later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTINGS = ("deterministic=true", "training.epochs=10", "qat.checkpoint_steps=4", "compile.enabled=false")
OPTIONS = [part for value in SETTINGS for part in ("--set", value)]
FULL, READ_ONLY = "No space left on device", "Read-only file system"


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")

    def set(self, options: str) -> None:
        """Mount it again, with `size=...`, `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self, *, but: int = 0) -> None:
        """Take all space but so many kB."""
        free = shutil.disk_usage(self.path).free
        (self.path / "filling").write_bytes(bytes(max(0, free - but * 1024)))

    def clear(self) -> None:
        """Give the space back."""
        (self.path / "filling").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mounted = Disk(tmp_path / "disk")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted.path)], check=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_said(said: str, reason: str, path: Path) -> None:
    assert "error: " in said and "Traceback" not in said, said
    assert reason in said, said
    if "of the build" not in said:  # TensorRT's process says what failed, and for which graph
        assert str(path) in said and ("choose another" in said or "free space" in said), said


@pytest.fixture(scope="module")
def exported(tiny_project: Path, launcher: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quantized model of the tiny network, its graph, an array to infer from, and a run."""
    folder = tmp_path_factory.mktemp("exported")
    launcher.run("run", "tiny.yaml", "--out", folder / "runs", *OPTIONS, "--set", "ptq_only=true", folder=tiny_project)
    (run,) = (folder / "runs").iterdir()
    run.rename(folder / "run")
    shutil.copy(folder / "run" / "model.onnx", folder / "model.onnx")
    shutil.copy(folder / "run" / "quantized.keras", folder / "quantized.keras")
    np.save(folder / "images.npy", np.zeros((4, 12, 12, 1), np.float32))
    return folder


COMMANDS = {
    "run": ["run", "{project}/tiny.yaml", "--out", "{disk}/runs", *OPTIONS],
    "calibrate": ["calibrate", "{project}/tiny.yaml", "--out", "{disk}/runs"],
    "calibrate --from": ["calibrate", "--from", "{exported}/run", "--method", "max", "--out", "{disk}/runs"],
    "export": ["export", "{exported}/quantized.keras", "-o", "{disk}/model.onnx"],
    "export with external data": ["export", "{exported}/quantized.keras", "-o", "{disk}/model.onnx", "--external-data"],
    "export --triton": ["export", "{exported}/model.onnx", "--triton", "{disk}/models", "--name", "tiny"],
    "compile": ["compile", "{exported}/model.onnx", "-o", "{disk}/model.plan", "--backend", "tensorrt_rtx", "--target", "SM86"],
    "infer -o": ["infer", "{exported}/model.onnx", "-i", "{exported}/images.npy", "-o", "{disk}/out.npz"],
    "report": ["report", "{disk}/run"],
    "init": ["init", "{project}/float.keras", "-o", "{disk}/new"],
}
SAMPLE = ("export --triton", "infer -o", "report")


def command(name: str, **places: Path) -> list[str]:
    return [part.format(**places) for part in COMMANDS[name]]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.robustness) for name in COMMANDS])
@pytest.mark.parametrize("reason", [FULL, READ_ONLY])
def test_a_command_that_cannot_write_says_where_and_leaves_what_was_there(
    reason: str, name: str, disk: Disk, tiny_project: Path, exported: Path, launcher: Any, checks: Any, counts: Counter[str]
) -> None:
    (disk.path / "model.onnx").write_bytes(b"the user's")
    (disk.path / "out.npz").write_bytes(b"the user's")
    shutil.copytree(exported / "run", disk.path / "run")
    if reason == FULL:
        disk.fill()
    else:
        disk.set("ro")
    before = snapshot(disk.path)
    said = launcher.run(*command(name, project=tiny_project, disk=disk.path, exported=exported), folder=exported, code=2)
    assert_said(said, reason, disk.path)
    assert snapshot(disk.path) == before
    assert not checks.unfinished(disk.path)
    counts[f"commands on a disk that is {'full' if reason == FULL else 'read-only'}"] += 1
    disk.set("rw")
    disk.clear()
    (disk.path / "model.onnx").unlink()
    (disk.path / "out.npz").unlink()
    launcher.run(*command(name, project=tiny_project, disk=disk.path, exported=exported), folder=exported)


FILLINGS = (0.0, 0.01, 0.1, 0.4, 0.6, *(share / 100 for share in range(70, 200, 5)))
"""What is left when a run begins, as a share of what the whole one has in the end: it stops where that ends, in one stage or another."""


@pytest.mark.robustness
@pytest.mark.timeout(1800)
def test_a_run_whose_disk_fills_up_goes_on(
    disk: Disk, tiny_project: Path, launcher: Any, checks: Any, counts: Counter[str], tmp_path: Path
) -> None:
    launcher.run("run", "tiny.yaml", "--out", tmp_path / "whole", *OPTIONS, folder=tiny_project)
    (reference,) = (tmp_path / "whole").iterdir()
    stages, takes = set(), sum(path.stat().st_size for path in reference.iterdir())
    for share in FILLINGS:
        disk.fill(but=round(share * takes / 1024))
        command = launcher.start("run", "tiny.yaml", "--out", disk.path / "runs", *OPTIONS, folder=tiny_project)
        code, made = command.wait(), list((disk.path / "runs").glob("*"))
        disk.clear()
        if code == 0:
            break
        assert code == 2, command.said
        assert_said(command.said, FULL, disk.path)
        assert not checks.unfinished(disk.path)
        counts["runs whose disk filled up"] += 1
        for directory in made:
            checks.whole_files(directory)
            stages.add(json.loads((directory / "manifest.json").read_text())["stage"])
            launcher.run("run", "tiny.yaml", "--resume", directory, *OPTIONS, folder=tiny_project)
            checks.same_result(directory, reference)
            counts["runs with the result of an uninterrupted one"] += 1
            shutil.rmtree(directory)
    assert len(stages) > 3, stages


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_an_unprivileged_user_in_a_folder_of_another(exported: Path, tmp_path: Path, counts: Counter[str]) -> None:
    """As root, permissions do not count; `nobody` may read the model, and not write into the folder."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to become another user")
    from tfqat import files
    from tfqat.errors import RunDirectoryError

    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            files.write_text(folder / "report.html", "")
        except RunDirectoryError as error:
            os._exit(0 if "Permission denied; choose another folder" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(folder.iterdir())
    counts["writes without permission"] += 1
