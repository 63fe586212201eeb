"""Bad input: a clear message, exit code 2, and nothing written or lost."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tfqat_cli.main import main

BAD_DATA = """
import numpy as np
import tensorflow as tf

from data import arrays, validation


def nothing():
    return tf.data.Dataset.from_tensor_slices(arrays(8, 0)).batch(4).take(0)


def other_shape():
    images, labels = arrays(64, 0)
    return tf.data.Dataset.from_tensor_slices((np.repeat(images, 3, axis=3), labels)).batch(32)


def not_batched():
    return tf.data.Dataset.from_tensor_slices(arrays(64, 0))


def not_data():
    return {"images": 3}


def raises():
    raise FileNotFoundError("images.npz is not there")


def raises_in_the_first_batch():
    def batches():
        raise ValueError("the archive is damaged")
        yield

    spec = (tf.TensorSpec((None, 12, 12, 1)), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def with_nan():
    images, labels = arrays(256, 3)
    images[70, 3, 3] = np.nan
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)


def without_labels():
    return tf.data.Dataset.from_tensor_slices(arrays(64, 0)[0]).batch(32)


def one_hot():
    return validation().map(lambda images, labels: (images, tf.one_hot(labels, 4)))


def endless():
    return validation().repeat()


def generated(then):
    def batches():
        images, labels = arrays(32, 0)
        yield images, labels
        if then == "raise":
            raise ValueError("the archive is damaged")
        yield images[:, :then], labels

    spec = (tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def raises_in_the_second_batch():
    return generated("raise")


def another_shape_in_the_second_batch():
    return generated(9)


number = 3
"""


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project with functions that yield bad data; it is the working directory."""
    copy = shutil.copytree(tiny_project, tmp_path / "project", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (copy / "bad.py").write_text(BAD_DATA)
    (copy / "broken.py").write_text("def train(:\n")
    (copy / "imports.py").write_text("import no_such_package_of_mine\n")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "200")
    return copy


@pytest.fixture
def refused(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`tfqat <arguments>` in this process: exit code 2, nothing written; gives the message."""

    def run(*arguments: str) -> str:
        before = contents(project)
        monkeypatch.setattr(sys, "argv", ["tfqat", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2, error
        assert "Traceback" not in error
        runs = project / "runs"
        assert not runs.exists() or list(runs.iterdir()) == []
        assert contents(project) == before
        return error

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


# --- the recipe ---

RECIPES = {
    "unknown key": (
        "seed: 7",
        "quantization: {skipp: [logits]}\nseed: 7",
        ["tiny.yaml:16: quantization.skipp: unknown key; did you mean 'skip'?"],
    ),
    "wrong type": (
        "calibration: {batches: 4}",
        "calibration: {batches: four}",
        ["tiny.yaml:13: calibration.batches: expected a whole number; got 'four'"],
    ),
    "opset too low": ("seed: 7", "export: {opset: 12}\nseed: 7", ["tiny.yaml:16: export.opset: expected at least 13; got 12"]),
    "opset too high": ("seed: 7", "export: {opset: 24}\nseed: 7", ["tiny.yaml:16: export.opset: expected at most 23; got 24"]),
    "not YAML": ("seed: 7", "seed: [7", ["tiny.yaml:17: not YAML: "]),
    "no reference": ('"data.py:train"', '"data.py"', ["tiny.yaml:4: data.train: expected module:function or path/file.py:function"]),
    "several at once": (
        "  epochs: 10\n",
        "  epochs: -1\n  learning_rat: 3\n",
        ["training.epochs: expected at least 1; got -1", "training.learning_rat: unknown key; did you mean 'learning_rate'?"],
    ),
    "unknown loss": (
        "SparseCategoricalCrossentropy",
        "SparseCategoricalCrossentropi",
        ["training.loss: tf_keras has no loss 'SparseCategoricalCrossentropi'; did you mean 'SparseCategoricalCrossentropy'?"],
    ),
    "unknown metric": ("[accuracy]", "[acuracy]", ["training.metrics: tf_keras has no metric 'acuracy'"]),
}


@pytest.mark.parametrize(("old", "new", "messages"), RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_wrong_recipe(command: str, old: str, new: str, messages: list[str], project: Path, refused: Callable[..., str]) -> None:
    if command == "plan" and "tf_keras has no" in messages[0]:
        pytest.skip("plan neither trains nor evaluates")
    text = (project / "tiny.yaml").read_text()
    assert text.count(old) == 1
    (project / "tiny.yaml").write_text(text.replace(old, new))
    error = refused(command, "tiny.yaml")
    for message in messages:
        assert message in error
    assert error.count("tiny.yaml:") == (len(messages) if messages[0].startswith(("tiny", "training.e")) else 0)


def test_a_wrong_override(refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", "quantization.activations.percentil=99.9", "--set", "seed=x")
    assert (
        "--set quantization.activations.percentil=99.9: quantization.activations.percentil: unknown key; did you mean 'percentile'?"
        in error
    )
    assert "--set seed=x: seed: expected a whole number; got 'x'" in error


def test_a_missing_recipe(refused: Callable[..., str]) -> None:
    assert refused("run", "no.yaml").endswith("error: no.yaml: cannot read the recipe: No such file or directory\n")


# --- the model ---


def test_a_missing_model_file(refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", "model.source=nets/no.keras")
    assert "error: tiny.yaml: model.source: 'nets/no.keras' does not exist; looked in " in error


@pytest.mark.parametrize("name", ["text.keras", "cut.keras", "text.h5"])
def test_a_corrupt_model_file(name: str, project: Path, refused: Callable[..., str]) -> None:
    whole = (project / "float.keras").read_bytes()
    (project / name).write_bytes(whole[: len(whole) // 2] if name.startswith("cut") else b"no model")
    error = refused("run", "tiny.yaml", "--set", f"model.source={name}")
    assert re.search(rf"error: model file .*{re.escape(name)} (is not a \.keras archive|is damaged)", error)


def test_an_archive_without_a_model(project: Path, refused: Callable[..., str]) -> None:
    import zipfile

    with zipfile.ZipFile(project / "zip.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    assert re.search(r"error: model file .*zip\.keras cannot be loaded", refused("run", "tiny.yaml", "--set", "model.source=zip.keras"))


@pytest.mark.parametrize("name", ["subclassed.keras", "subclassed"], ids=["keras file", "SavedModel"])
def test_a_subclassed_model(name: str, project: Path, refused: Callable[..., str]) -> None:
    import numpy as np
    import tf_keras

    class Subclassed(tf_keras.Model):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.dense = tf_keras.layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = Subclassed()
    model(np.zeros((1, 12, 12, 1), np.float32))
    model.save(project / name)
    error = refused("run", "tiny.yaml", "--set", f"model.source={name}")
    assert re.search(r"error: model", error)
    assert "subclassed model" in error


def test_a_model_that_is_quantized_already(tiny_quantized: Any, project: Path) -> None:
    """It loads, also in a process that has made no quantized layer, and is refused for what it is."""
    tiny_quantized.save(project / "quantized.keras")
    command = [sys.executable, "-m", "tfqat_cli", "plan", "tiny.yaml", "--set", "model.source=quantized.keras"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "quantizes no layer of this model" in done.stderr.splitlines()[-1]


# --- the placement ---


@pytest.mark.parametrize("command", ["run", "plan"])
def test_patterns_that_match_nothing_are_all_named(command: str, refused: Callable[..., str]) -> None:
    error = refused(
        command,
        "tiny.yaml",
        "--set",
        "quantization.skip=[logit, stem]",
        "--set",
        "quantization.overrides=[{match: 're:haed.*', activations: {calibrator: max}}]",
    )
    assert re.search(r"quantization\.skip\[0\]: pattern 'logit' matches none of the \d+ layers; did you mean 'logits'\?", error)
    assert re.search(r"quantization\.overrides\[0\]\.match: pattern 're:haed\.\*' matches none of the \d+ layers", error)
    assert "'stem'" not in error


# --- the data ---

DATA = {
    "no such file": ("no.py:train", r"'no\.py:train': 'no\.py' does not exist"),
    "no such module": ("no_such_module_of_mine.data:train", r"no module named 'no_such_module_of_mine'"),
    "a syntax error": ("broken.py:train", r"'broken\.py:train': importing it raises SyntaxError"),
    "an import that fails": ("imports.py:train", r"importing it raises ModuleNotFoundError: No module named 'no_such_package_of_mine'"),
    "a misspelt function": ("bad.py:nothin", r"bad\.py has no function 'nothin'; did you mean 'nothing'\?"),
    "not a function": ("bad.py:number", r"number is of type int; expected a function"),
    "yields nothing": ("bad.py:nothing", r"bad\.py:nothing: the data set is empty; expected at least one batch"),
    "another shape": (
        "bad.py:other_shape",
        r"bad\.py:other_shape: a batch of shape \(32, 12, 12, 3\), but input 'image' of model 'tiny' takes \(None, 12, 12, 1\)",
    ),
    "not batched": ("bad.py:not_batched", r"bad\.py:not_batched: a batch of shape \(12, 12, 1\), but input 'image'"),
    "not data": ("bad.py:not_data", r"bad\.py:not_data: returned dict; expected a tf\.data\.Dataset of batches"),
    "raises": ("bad.py:raises", r"bad\.py:raises: the function raised FileNotFoundError: images\.npz is not there"),
    "raises in the first batch": ("bad.py:raises_in_the_first_batch", r"bad\.py:raises_in_the_first_batch: .*the archive is damaged"),
}


@pytest.mark.parametrize("split", ["train", "validation", "calibration"])
@pytest.mark.parametrize(("reference", "message"), DATA.values(), ids=DATA)
def test_data_that_cannot_be_used(reference: str, message: str, split: str, refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", f"data.{split}={reference}")
    assert re.search(rf"error: tiny\.yaml: data\.{split}: .*" + message, error, re.DOTALL)


LABELLED = {
    "no labels": ("without_labels", r"batch 0 has no labels; expected \(inputs, labels\)"),
    "endless": ("endless", r"the data set never ends; .*remove \.repeat\(\)"),
    "raises in the second batch": (
        "raises_in_the_second_batch",
        r"the data set raised while it was read: ValueError: the archive is damaged",
    ),
    "another shape in the second batch": (
        "another_shape_in_the_second_batch",
        r"batch 1: a batch of shape \(32, 9, 12, 1\), but input 'image'",
    ),
}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("function", "message"), LABELLED.values(), ids=LABELLED)
def test_labelled_data_is_read_through_before_anything_is_written(
    function: str, message: str, split: str, project: Path, refused: Callable[..., str]
) -> None:
    error = refused("run", "tiny.yaml", "--set", f"data.{split}=bad.py:{function}")
    assert re.search(rf"error: tiny\.yaml: data\.{split}: bad\.py:{function}: {message}", error)
    assert not (project / "runs").exists()
    assert ("training.steps_per_epoch" in error) == ((function, split) == ("endless", "train"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_that_do_not_fit_the_loss(split: str, project: Path, refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", f"data.{split}=bad.py:one_hot")
    shapes = r"outputs of shape \(250, 4\) and labels of shape \(250, 4\)"
    assert re.search(rf"error: training\.loss: sparse_categorical_crossentropy does not take {shapes}, those of data\.{split}: ", error)
    assert not (project / "runs").exists()


def test_metrics_that_do_not_fit_are_all_named(project: Path, refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", "training.metrics=[AUC, accuracy, Precision]")
    assert re.findall(r"training\.metrics: '(\w+)' does not take outputs of shape", error) == ["AUC", "Precision"]
    assert not (project / "runs").exists()


def test_calibration_data_that_raise_in_the_second_batch(refused: Callable[..., str]) -> None:
    """Found when the run directory is there already, which is then removed."""
    error = refused("run", "tiny.yaml", "--set", "data.calibration=bad.py:raises_in_the_second_batch")
    assert "error: tiny.yaml: data.calibration: bad.py:raises_in_the_second_batch: the data set raised while it was read" in error
    assert "the archive is damaged" in error and "is kept in" not in error


def test_nan_in_the_calibration_data_names_the_tensor(refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", "data.calibration=bad.py:with_nan")
    assert re.search(r"error: calibration batch 1: tensor 'image' holds NaN", error)


def test_fewer_calibration_batches_than_asked(refused: Callable[..., str]) -> None:
    error = refused("run", "tiny.yaml", "--set", "calibration.batches=9")
    assert "error: calibration asked for 9 batches, the data held 4" in error
    assert "set calibration.batches to 4" in error


# --- the output ---


def test_an_output_folder_that_cannot_be_written(project: Path, refused: Callable[..., str]) -> None:
    (project / "file").write_text("mine")
    error = refused("run", "tiny.yaml", "--out", "file/runs")
    assert "error: cannot make a run directory in file/runs: Not a directory; choose another with --out" in error


# --- as a process ---

WITHOUT_TENSORFLOW = """
import sys
from tfqat_cli.main import main
sys.argv = ["tfqat", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("exit", end.code, "tensorflow" in sys.modules)
"""


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("recipe", ["no.yaml", "bad.yaml"])
def test_a_wrong_recipe_is_told_before_tensorflow_starts(command: str, recipe: str, project: Path) -> None:
    (project / "bad.yaml").write_text((project / "tiny.yaml").read_text() + "sed: 3\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, command, recipe], capture_output=True, text=True, check=True)
    assert done.stdout == "exit 2 False\n"
    assert done.stderr.startswith(f"error: {recipe}:")


def test_the_process_ends_with_2_and_one_message(project: Path) -> None:
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text() + "sed: 3\n")
    before = contents(project)
    done = subprocess.run([sys.executable, "-m", "tfqat_cli", "run", "tiny.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("error: tiny.yaml:17: sed: unknown key; did you mean 'seed'?\n")
    assert "Traceback" not in done.stderr
    assert contents(project) == before
    assert not (project / "runs").exists()


def test_ctrl_c_keeps_the_run_and_marks_it_incomplete(project: Path) -> None:
    """SIGINT in the middle of fine-tuning, after the first of 1,000 epochs."""
    command = [sys.executable, "-m", "tfqat_cli", "run", "tiny.yaml", "--set", "training.epochs=1000", "--set", "qat.max_epochs_divisor=1"]
    # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        try:
            wait_for(lambda: any(len(path.read_text().splitlines()) > 1 for path in project.glob("runs/*/history.csv")), process)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 2, error
    (directory,) = (project / "runs").iterdir()
    assert "error: interrupted; what the run had made is kept in " in error
    assert f"{directory.name}, whose manifest.json says `incomplete`" in error
    assert "Traceback" not in error
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["status"], manifest["stage"]) == ("incomplete", "qat")
    names = {path.name for path in directory.iterdir()}
    assert {"recipe.yaml", "placement.json", "calibration.json", "quantized.keras", "history.csv", "metrics.json", "run.log"} <= names
    assert not {"model.onnx", "qat.keras", "report.html"} & names
    assert not [name for name in names if name.startswith(".")]  # no temporary files
    assert "stopped in stage qat: KeyboardInterrupt" in (directory / "run.log").read_text()


@pytest.mark.parametrize(
    ("command", "interrupted"),
    [
        (("verify", "."), "tfqat.verify_run.verify_run"),
        (("plan", "tiny.yaml"), "tfqat.inputs.plan_recipe"),
        (("run", "tiny.yaml"), "tfqat.pipeline.load_inputs"),
    ],
    ids=["verify", "plan", "run, before it has a directory"],
)
def test_ctrl_c_where_nothing_is_kept(
    command: tuple[str, ...], interrupted: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupted, interrupt)
    assert refused(*command) == "error: interrupted\n"


def test_an_error_that_keeps_the_run_names_its_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = "bad.py:with_nan"
    monkeypatch.setattr(sys, "argv", ["tfqat", "run", "tiny.yaml", "--set", f"data.train={nan}"])
    with pytest.raises(SystemExit) as ended:
        main()
    (directory,) = (project / "runs").iterdir()
    assert ended.value.code == 2
    path = f"runs/{directory.name}"
    kept = f"what the run had made is kept in {path}, whose manifest.json says `incomplete`; `--resume {path}` goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == kept


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)
