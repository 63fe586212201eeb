"""The main job on the tiny recipe: what a run writes, what it says, and what it does when something goes wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfqat.engines import tensorrt_rtx
from tfqat.errors import DataError, RunDirectoryError, TrainingError
from tfqat.run_directory import RunDirectory

RTX = tensorrt_rtx.is_available()[0]
FILES = {
    "recipe.yaml",
    "placement.json",
    "calibration.json",
    "history.csv",
    "quantized.keras",
    "qat.keras",
    "model.onnx",
    "float.onnx",
    "parity.json",
    "engine.json",
    "report.html",
    "run.log",
    "metrics.json",
    "manifest.json",
}


def read(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text())


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The constants that a graph gets from the model, by name."""
    wanted = ("kernel", "depthwise_kernel", "scale", "bias")
    tensors = onnx.load(path).graph.initializer
    return {one.name: numpy_helper.to_array(one) for one in tensors if one.name.rpartition("/")[2] in wanted}


def test_a_run_writes_its_files(tiny_run: Any) -> None:
    engines = {"model.sm86.plan", "model.sm86.plan.json"} if RTX else set()
    assert {path.name for path in tiny_run.directory.iterdir()} == FILES | engines
    assert tiny_run.directory.name.startswith("tiny-2")
    assert tiny_run.directory.parent.name == "runs"


def test_the_manifest_says_complete(tiny_run: Any) -> None:
    from tfqat.recipe.load import load_recipe, recipe_hash

    manifest = read(tiny_run.directory, "manifest.json")
    assert (manifest["status"], manifest["stage"], manifest["seed"]) == ("complete", "report", 7)
    assert manifest["recipe_hash"] == recipe_hash(load_recipe(tiny_run.directory / "recipe.yaml"))
    assert datetime.fromisoformat(manifest["started"]) <= datetime.fromisoformat(manifest["changed"])
    assert {"python", "tensorflow", "tf2onnx", "onnxruntime"} <= set(manifest["versions"])


def test_metrics(tiny_run: Any) -> None:
    metrics = read(tiny_run.directory, "metrics.json")
    assert metrics == tiny_run.metrics
    for stage in ("float", "ptq", "qat", "onnx", "onnx_deployed"):
        assert set(metrics[stage]) == {"loss", "accuracy"}
    assert (metrics["examples"], metrics["parameters"]) == (1000, 4388)
    assert set(metrics["size_bytes"]) == {"float_onnx", "model_onnx", *(["engine_sm86"] if RTX else [])}
    assert metrics["size_bytes"]["model_onnx"] == (tiny_run.directory / "model.onnx").stat().st_size
    assert metrics["size_bytes"]["float_onnx"] == (tiny_run.directory / "float.onnx").stat().st_size
    assert set(metrics["latency_ms"]) == {"onnx_float", "onnx_int8"}
    assert all(value > 0 for value in metrics["latency_ms"].values())
    stages = {"float", "calibrate", "correct", "ptq", "qat", "export", "onnx", "latency", "verify", "compile", "report"}
    assert set(metrics["seconds"]) == stages


def test_accuracies_are_those_of_the_models(tiny_run: Any, tiny_float: Any, tiny_data: Callable[[str], Any]) -> None:
    import tfqat

    images, labels = (np.concatenate(parts) for parts in zip(*tiny_data("validation").as_numpy_iterator(), strict=True))

    def accuracy(model: Any) -> float:
        return float((model.predict(images, verbose=0).argmax(axis=1) == labels).mean())

    assert tiny_run.metrics["float"]["accuracy"] == accuracy(tiny_float)
    for stage, name in (("ptq", "quantized.keras"), ("qat", "qat.keras")):
        assert tiny_run.metrics[stage]["accuracy"] == accuracy(tfqat.load_model(tiny_run.directory / name))


def test_fine_tuning_beat_ptq_and_was_exported(tiny_run: Any) -> None:
    metrics = tiny_run.metrics
    assert metrics["ptq"]["accuracy"] < metrics["qat"]["accuracy"] - 0.02
    assert tiny_run.exported == metrics["exported"] == "qat"
    assert tiny_run.qat.beat_ptq
    assert tiny_run.qat.best == pytest.approx(metrics["qat"]["accuracy"], abs=1e-6)
    log = (tiny_run.directory / "run.log").read_text()
    assert f"exporting QAT: fine-tuning beat the calibrated model (val_accuracy {metrics['qat']['accuracy']:.4f} in epoch 1)" in log


def test_the_literal_graph_is_as_accurate_as_the_exported_model(tiny_run: Any) -> None:
    metrics = tiny_run.metrics
    assert metrics["onnx"]["accuracy"] == metrics["qat"]["accuracy"]
    assert metrics["onnx"]["loss"] == pytest.approx(metrics["qat"]["loss"], abs=1e-3)


def test_parity_is_proven_on_1000_examples(tiny_run: Any) -> None:
    parity = read(tiny_run.directory, "parity.json")
    assert parity == tiny_run.parity.to_dict()
    assert (parity["examples"], parity["passed"], parity["failures"]) == (1000, True, [])


def test_the_history_has_a_row_per_epoch(tiny_run: Any) -> None:
    with (tiny_run.directory / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["0"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} <= set(rows[0])
    assert float(rows[0]["learning_rate"]) == pytest.approx(0.05 * 0.01)  # the cosine ends at a hundredth of the peak


def test_the_placement_and_the_calibration_are_kept(tiny_run: Any) -> None:
    from tfqat.calibration.result import Calibration
    from tfqat.placement.plan import Placement

    assert Placement.from_dict(read(tiny_run.directory, "placement.json")) == tiny_run.placement
    calibration = Calibration.from_dict(read(tiny_run.directory, "calibration.json"))
    assert (calibration.batches, calibration.examples) == (4, 256)
    assert set(calibration.points) == {point.id for point in tiny_run.placement.points}


def test_the_graph_carries_the_hash_of_the_recipe(tiny_run: Any) -> None:
    metadata = {one.key: one.value for one in onnx.load(tiny_run.directory / "model.onnx").metadata_props}
    assert metadata["tfqat.recipe_hash"] == read(tiny_run.directory, "manifest.json")["recipe_hash"]


@pytest.mark.skipif(not RTX, reason="needs TensorRT for RTX")
def test_the_engine_runs_every_layer_int8(tiny_run: Any) -> None:
    engine = read(tiny_run.directory, "engine.json")
    assert engine == tiny_run.engine.to_dict()
    (target,) = engine["targets"]
    assert target["target"] == "SM86"
    assert [layer["keras_layer"] for layer in target["layers"] if layer["int8"]] == ["stem", "depthwise", "project", "head", "logits"]
    assert (tiny_run.directory / "model.sm86.plan").stat().st_size == tiny_run.metrics["size_bytes"]["engine_sm86"]


def test_the_report_is_one_page(tiny_run: Any) -> None:
    page = (tiny_run.directory / "report.html").read_text()
    assert "<svg" in page and "<script" not in page
    for point in tiny_run.placement.points:
        assert point.source in page


RELOAD = """
import sys
import numpy as np
import tfqat
folder, images, out = sys.argv[1:]
inputs = np.load(images)
np.savez(out, **{name: tfqat.load_model(f"{folder}/{name}.keras")(inputs, training=False).numpy() for name in ("quantized", "qat")})
"""


def test_saved_models_give_identical_outputs_in_a_new_process(tiny_run: Any, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    import tfqat

    images = next(iter(tiny_data("validation")))[0].numpy()[:32]
    np.save(tmp_path / "images.npy", images)
    arguments = [str(tiny_run.directory), str(tmp_path / "images.npy"), str(tmp_path / "outputs.npz")]
    subprocess.run([sys.executable, "-c", RELOAD, *arguments], check=True, capture_output=True)
    there = np.load(tmp_path / "outputs.npz")
    for name in ("quantized", "qat"):
        here = tfqat.load_model(tiny_run.directory / f"{name}.keras")(images, training=False).numpy()
        np.testing.assert_array_equal(there[name], here)
    assert np.abs(there["quantized"] - there["qat"]).max() > 0.1


@pytest.fixture(scope="module")
def second_run(tiny_run: Any, tiny_project: Path) -> tuple[Any, dict[str, bytes]]:
    """The same recipe again into the same folder, and the files of the first run as they were before."""
    import tfqat

    before = {path.name: path.read_bytes() for path in tiny_run.directory.iterdir()}
    return tfqat.run(tiny_project / "tiny.yaml", out=tiny_project / "runs", overrides=["compile.enabled=false"]), before


def test_a_second_run_leaves_the_first_as_it_was(second_run: tuple[Any, dict[str, bytes]], tiny_run: Any) -> None:
    second, before = second_run
    assert second.directory != tiny_run.directory
    assert second.directory.parent == tiny_run.directory.parent
    assert {path.name: path.read_bytes() for path in tiny_run.directory.iterdir()} == before


def test_the_same_seed_gives_the_same_model(second_run: tuple[Any, dict[str, bytes]], tiny_run: Any) -> None:
    second, _ = second_run
    for stage in ("float", "ptq", "qat", "onnx"):
        assert second.metrics[stage] == tiny_run.metrics[stage]
    first_numbers, second_numbers = numbers(tiny_run.directory / "model.onnx"), numbers(second.directory / "model.onnx")
    assert len(first_numbers) == 5 + 11 + 4
    assert first_numbers.keys() == second_numbers.keys()
    for name, value in first_numbers.items():
        np.testing.assert_array_equal(second_numbers[name], value, err_msg=name)


def test_compile_switched_off(second_run: tuple[Any, dict[str, bytes]]) -> None:
    second, _ = second_run
    assert (second.engine.status, second.engine.message) == ("not_run", "the recipe switches the engine stage off")
    assert list(second.directory.glob("*.plan")) == []
    assert set(second.metrics["size_bytes"]) == {"float_onnx", "model_onnx"}
    assert "no engine: the recipe switches the engine stage off" in (second.directory / "run.log").read_text()
    assert read(second.directory, "manifest.json")["status"] == "complete"


def test_ptq_only_exports_the_calibrated_model(tiny_project: Path, tmp_path: Path) -> None:
    """The training data is not even looked at."""
    import tfqat

    overrides = ["ptq_only=true", "compile.enabled=false", "data.train=data.py:does_not_exist", "export.opset=13"]
    placements: list[Any] = []
    result = tfqat.run(tiny_project / "tiny.yaml", overrides=overrides, out=tmp_path / "runs", on_placement=placements.append)
    assert {path.name for path in result.directory.iterdir()} == FILES - {"qat.keras", "history.csv"}
    assert (result.exported, result.qat, "qat" in result.metrics) == ("ptq", None, False)
    assert result.metrics["onnx"]["accuracy"] == result.metrics["ptq"]["accuracy"]
    assert result.parity.passed
    assert placements == [result.placement]
    assert [one.version for one in onnx.load(result.directory / "model.onnx").opset_import if not one.domain] == [13]
    assert "ptq_only: no fine-tuning" in (result.directory / "run.log").read_text()


def test_ptq_is_kept_where_fine_tuning_is_worse(tiny_project: Path, tmp_path: Path) -> None:
    import tfqat
    from tfqat.quantize import state

    overrides = ["training.learning_rate=30", "compile.enabled=false"]
    result = tfqat.run(tiny_project / "tiny.yaml", overrides=overrides, out=tmp_path / "runs")
    metrics = result.metrics
    assert metrics["qat"]["accuracy"] < metrics["ptq"]["accuracy"]
    assert (result.exported, metrics["exported"], result.qat.beat_ptq) == ("ptq", "ptq", False)
    assert metrics["onnx"]["accuracy"] == metrics["ptq"]["accuracy"]
    assert result.parity.passed
    assert "exporting PTQ: fine-tuning did not beat the calibrated model" in (result.directory / "run.log").read_text()
    codes, _ = state.weight_codes(state.handles(tfqat.load_model(result.directory / "quantized.keras"))["logits/kernel"])
    np.testing.assert_array_equal(numbers(result.directory / "model.onnx")["logits/kernel"], codes)


NAN_PY = """
import numpy as np
import tensorflow as tf


def train():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(256, 12, 12, 1)).astype(np.float32)
    images[100] = np.nan
    return tf.data.Dataset.from_tensor_slices((images, rng.integers(0, 4, 256))).batch(64)
"""


def test_a_loss_of_nan_keeps_the_run_and_marks_it_incomplete(tiny_project: Path, tmp_path: Path) -> None:
    import tfqat

    (tmp_path / "nan_data.py").write_text(NAN_PY)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 .*look for NaN in the training data"):
        tfqat.run(tiny_project / "tiny.yaml", overrides=[f"data.train={tmp_path}/nan_data.py:train"], out=tmp_path / "runs")
    (directory,) = (tmp_path / "runs").iterdir()
    manifest = read(directory, "manifest.json")
    assert (manifest["status"], manifest["stage"]) == ("incomplete", "qat")
    assert {"recipe.yaml", "placement.json", "calibration.json", "quantized.keras", "metrics.json"} <= {p.name for p in directory.iterdir()}
    assert not (directory / "model.onnx").exists()
    assert set(read(directory, "metrics.json")) >= {"float", "ptq"}
    assert "stopped in stage qat: TrainingError" in (directory / "run.log").read_text()


def test_an_error_before_calibration_is_done_leaves_nothing(tiny_project: Path, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(DataError, match=r"calibration asked for 5 batches, the data held 4: .*set calibration\.batches to 4"):
        tfqat.run(tiny_project / "tiny.yaml", overrides=["calibration.batches=5"], out=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_writes_in_its_own_folder_only(tiny_run: Any, tiny_project: Path) -> None:
    assert {path.name for path in tiny_project.iterdir()} - {"__pycache__"} == {"float.keras", "data.py", "tiny.yaml", "runs"}


def test_run_directories_of_one_second_do_not_meet(tmp_path: Path) -> None:
    made = [RunDirectory.create(tmp_path, "x", recipe_hash="h", seed=0, recipe_folder=tmp_path) for _ in range(4)]
    assert len({directory.path for directory in made}) == 4
    (made[0].path / "kept").write_text("1")
    RunDirectory.create(tmp_path, "x", recipe_hash="h", seed=0, recipe_folder=tmp_path)
    assert (made[0].path / "kept").read_text() == "1"


def test_a_run_directory_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot make a run directory in .*file/runs: Not a directory; choose another with --out"):
        RunDirectory.create(tmp_path / "file" / "runs", "x", recipe_hash="h", seed=0, recipe_folder=tmp_path)
