"""A run that is cut off goes on with `resume`, and ends with the model that it would have ended with.

Processes that are killed: `tests/robustness/faults/test_faults_kills.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfqat
from tfqat.errors import RunDirectoryError

DROPOUT = """
from pathlib import Path

import tensorflow as tf
import tf_keras
from tfqat.recipe.references import load_reference

plain = load_reference("data.py:train", base=Path("FOLDER"))

def shuffled():
    return plain().unbatch().shuffle(768).batch(64)

def model():
    trained = tf_keras.models.load_model("FOLDER/float.keras")
    pool = trained.get_layer("pool").output
    return tf_keras.Model(trained.input, trained.get_layer("logits")(tf_keras.layers.Dropout(0.3, name="dropout")(pool)))
"""
SETTINGS = ["training.epochs=30", "compile.enabled=false", "deterministic=true"]


class Cut(BaseException):
    """What ends a run in the middle."""


class Cutting:
    """A progress that raises in the stage whose title begins with `title`, at its nth step; before the stage for 0."""

    def __init__(self, title: str, step: int) -> None:
        self.title, self.step = title, step
        self.titles: list[str] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        self.titles.append(title)
        left = self.step if title.startswith(self.title) else -1
        if left == 0:
            raise Cut(title)

        def advance() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Cut(title)

        yield advance

    def message(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with data that are shuffled anew in each epoch, and a model with a Dropout."""
    folder = tmp_path_factory.mktemp("resume")
    for name in ("tiny.yaml", "data.py", "float.keras"):
        (folder / name).write_bytes((tiny_project / name).read_bytes())
    (folder / "more.py").write_text(DROPOUT.replace("FOLDER", str(folder)))
    return folder


def settings(project: Path, **more: str) -> list[str]:
    added = {"data.train": f"{project}/more.py:shuffled", "model.source": f"{project}/more.py:model"} | more
    return [*SETTINGS, *(f"{key}={value}" for key, value in added.items())]


@pytest.fixture(scope="module")
def reference(project: Path) -> Any:
    """The run that nothing cuts off."""
    sys.path.insert(0, str(project))
    return tfqat.run(project / "tiny.yaml", overrides=settings(project), out=project / "reference")


def weights(directory: Path) -> list[np.ndarray]:
    found: list[np.ndarray] = tfqat.load_model(directory / "qat.keras").get_weights()
    return found


def assert_same(directory: Path, other: Path) -> None:
    assert all(np.array_equal(one, two) for one, two in zip(weights(directory), weights(other), strict=True))
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (directory, other))
    assert {name: one[name] for name in ("float", "ptq", "qat", "onnx")} == {name: two[name] for name in ("float", "ptq", "qat", "onnx")}
    assert (directory / "history.csv").read_text().count("\n") == (other / "history.csv").read_text().count("\n")


CUTS = {
    "before calibration": ("Calibrate", 0, "Calibrate"),
    "in calibration": ("Calibrate", 2, "Calibrate"),
    "before the calibrated model is measured": ("Evaluate PTQ", 0, "Calibrate"),
    "in the first epoch": ("Fine-tune", 7, "Fine-tune"),
    "in the third epoch": ("Fine-tune", 60, "Fine-tune"),
    "before the trained model is measured": ("Evaluate QAT", 0, "Fine-tune"),
    "in the export": ("Export", 0, "Export"),
}


SAMPLE = ("in the third epoch", "in the export")


@pytest.mark.parametrize("cut", [pytest.param(cut, marks=[] if cut in SAMPLE else pytest.mark.sweep) for cut in CUTS])
def test_a_run_that_was_cut_off_ends_as_it_would_have(cut: str, project: Path, reference: Any, tmp_path: Path) -> None:
    title, step, next_stage = CUTS[cut]
    with pytest.raises(Cut) as caught:
        tfqat.run(project / "tiny.yaml", overrides=settings(project), out=tmp_path, progress=Cutting(title, step))
    (directory,) = tmp_path.iterdir()
    assert f"--resume {directory}` goes on from there" in caught.value.__notes__[0]
    progress = Cutting("nothing", 0)
    resumed = tfqat.run(project / "tiny.yaml", overrides=settings(project), resume=directory, out=tmp_path, progress=progress)
    assert resumed.directory == directory
    assert next(one for one in progress.titles if not one.startswith(("Load", "Evaluate float"))).startswith(next_stage)
    assert_same(directory, reference.directory)
    assert {path.name for path in directory.iterdir()} == {path.name for path in reference.directory.iterdir()}


def cut_and_resumed(recipe: Path, chosen: list[str], out: Path, *cuts: tuple[str, int]) -> Path:
    """The directory of a run that is cut off at each of `cuts`, and ends after the last."""
    directory = None
    for title, step in cuts:
        with pytest.raises(Cut):
            tfqat.run(recipe, overrides=chosen, out=out, resume=directory, progress=Cutting(title, step))
        (directory,) = out.iterdir()
    tfqat.run(recipe, overrides=chosen, resume=directory)
    assert directory is not None
    return directory


def test_a_run_goes_on_within_an_epoch(project: Path, tmp_path: Path) -> None:
    """With data in another order in each epoch, without Dropout; 24 steps to an epoch, saved at 8, 16, 32, 40 ..., and at its end."""
    more = ["qat.checkpoint_steps=8", "qat.batchnorm={freeze_after: 0.4}", "qat.amax.weights=learned"]
    chosen = [*settings(project, **{"model.source": f"{project}/float.keras"}), *more]
    whole = tfqat.run(project / "tiny.yaml", overrides=chosen, out=tmp_path / "whole")
    assert_same(cut_and_resumed(project / "tiny.yaml", chosen, tmp_path / "cut", ("Fine-tune", 38)), whole.directory)


@pytest.mark.sweep
def test_a_run_that_ends_in_validation_goes_on(project: Path, tmp_path: Path) -> None:
    """The steps between two saves divide the epoch."""
    chosen = [*settings(project, **{"model.source": f"{project}/float.keras"}), "qat.checkpoint_steps=8", "training.epochs=20"]
    whole = tfqat.run(project / "tiny.yaml", overrides=chosen, out=tmp_path / "whole")
    assert_same(cut_and_resumed(project / "tiny.yaml", chosen, tmp_path / "cut", ("Fine-tune", 24)), whole.directory)


@pytest.mark.sweep
def test_a_run_with_equalization_and_sensitivity_goes_on_with_its_placement(tiny_project: Path, tmp_path: Path) -> None:
    sensitivity = "sensitivity={metric: accuracy, max_drop: 0.0}"
    chosen = [*SETTINGS, "quantization.weights.num_bits=3", "calibration.equalization=true", sensitivity]
    recipe = tiny_project / "tiny.yaml"
    whole = tfqat.run(recipe, overrides=chosen, out=tmp_path / "whole")
    cuts = (("Measure the sensitivity", 2), ("Evaluate PTQ", 0), ("Fine-tune", 30))
    directory = cut_and_resumed(recipe, chosen, tmp_path / "cut", *cuts)
    assert_same(directory, whole.directory)
    for name in ("placement.json", "calibration.json", "equalization.json"):
        assert (directory / name).read_bytes() == (whole.directory / name).read_bytes()
    one, two = (json.loads((path / "sensitivity.json").read_text()) for path in (directory, whole.directory))
    assert one["recipe"] == two["recipe"] and one["search"] == two["search"]


@pytest.mark.sweep
def test_the_control_is_trained_on_the_same_schedule_and_goes_on_too(tiny_project: Path, tmp_path: Path) -> None:
    chosen = [*SETTINGS, "qat.control=true", "qat.batchnorm=freeze"]
    whole = tfqat.run(tiny_project / "tiny.yaml", overrides=chosen, out=tmp_path / "whole")
    cuts = (("Fine-tune", 30), ("Train the control", 60))
    directory = cut_and_resumed(tiny_project / "tiny.yaml", chosen, tmp_path / "cut", *cuts)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["control"] == whole.metrics["control"] != whole.metrics["float"]
    assert (directory / "history-control.csv").read_text().count("\n") == 4
    assert "Training longer by itself: +" in (directory / "report.html").read_text()
    assert "Float, trained on" in (directory / "report.html").read_text()


FULL_DISK = """
import contextlib, resource, sys
import tfqat

class FullDisk:
    \"\"\"From the given stage on files cannot grow beyond 8 kB: writing raises, as on a full disk.\"\"\"

    def stage(self, title, total=None):
        if title.startswith(sys.argv[1]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        return contextlib.nullcontext(lambda: None)

    def message(self, text):
        pass

try:
    tfqat.run(sys.argv[2], overrides=sys.argv[4:], out=sys.argv[3], progress=FullDisk())
except tfqat.errors.TfqatError as error:
    print(f"ERROR {type(error).__name__}: {error}", *error.__notes__, sep="\\n")
"""


@pytest.mark.parametrize(
    ("stage", "missing"), [("Fine-tune", "checkpoint.npz"), pytest.param("Export ONNX", "model.onnx", marks=pytest.mark.sweep)]
)
def test_a_full_disk_ends_the_run_with_what_it_has(tiny_project: Path, tmp_path: Path, stage: str, missing: str) -> None:
    recipe, chosen = tiny_project / "tiny.yaml", [*SETTINGS]
    command = [sys.executable, "-c", FULL_DISK, stage, str(recipe), str(tmp_path), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (directory,) = tmp_path.iterdir()
    assert f"ERROR RunDirectoryError: cannot write {directory / missing}: File too large" in done.stdout, done.stdout + done.stderr[-2000:]
    assert f"`--resume {directory}` goes on from there" in done.stdout
    assert json.loads((directory / "manifest.json").read_text())["status"] == "incomplete"
    assert not list(directory.glob(".writing-*"))
    assert tfqat.load_model(directory / "quantized.keras")
    resumed = tfqat.run(recipe, overrides=chosen, resume=directory)
    assert resumed is not None and resumed.metrics["exported"] == "qat" and (directory / missing).exists() == (missing != "checkpoint.npz")


def test_the_manifest_has_checksums_and_the_state_of_git(reference: Any) -> None:
    import hashlib

    manifest = json.loads((reference.directory / "manifest.json").read_text())
    names = {path.name for path in reference.directory.iterdir()} - {"manifest.json", "run.log"}
    assert set(manifest["sha256"]) == names
    assert all(hashlib.sha256((reference.directory / name).read_bytes()).hexdigest() == value for name, value in manifest["sha256"].items())
    assert "git" in manifest


def test_what_cannot_be_resumed(project: Path, reference: Any, tmp_path: Path) -> None:
    recipe = project / "tiny.yaml"
    with pytest.raises(RunDirectoryError, match=r"is complete; leave out --resume to run the recipe again"):
        tfqat.run(recipe, overrides=settings(project), resume=reference.directory)
    with pytest.raises(RunDirectoryError, match=r"has no manifest\.json"):
        tfqat.run(recipe, resume=tmp_path)
    with pytest.raises(Cut):
        tfqat.run(recipe, overrides=settings(project), out=tmp_path, progress=Cutting("Fine-tune", 30))
    (directory,) = tmp_path.iterdir()
    with pytest.raises(RunDirectoryError, match=r"is of another recipe, or with other --set values"):
        tfqat.run(recipe, resume=directory)
    (directory / "checkpoint.npz").write_bytes(b"PK")
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.npz cannot be read: .*; delete it, and fine-tuning starts anew"):
        tfqat.run(recipe, overrides=settings(project), resume=directory)
    assert (directory / "quantized.keras").exists()  # nothing is lost
    (directory / "checkpoint.npz").unlink()
    tfqat.run(recipe, overrides=settings(project), resume=directory)
    assert_same(directory, reference.directory)
