"""Reading a run directory: absent files, corrupt files, and the message for each."""

from __future__ import annotations

import json
import math

import pytest

from tfqat.errors import RunDirectoryError
from tfqat.report.collect import collect, read_history

PLACEMENT = {"preset": "selective", "points": [], "float_layers": []}
HISTOGRAM = {"mantissa_bits": 9, "max": 1.0, "bins": [127 << 9], "counts": [1]}


@pytest.fixture
def run_directory(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"float": {"accuracy": 0.9, "note": "text"}}))
    (tmp_path / "placement.json").write_text(json.dumps(PLACEMENT))
    return tmp_path


def test_only_metrics_and_placement_are_needed(run_directory):
    view = collect(run_directory)
    assert view.metrics.stages == {"float": {"accuracy": 0.9}}
    assert (view.recipe, view.calibration, view.history, view.parity, view.engine, view.sensitivity) == (None,) * 6
    assert (view.metrics.calibration_search, view.metrics.calibrator) == ({}, None)


def test_values_of_each_calibrator_that_was_tried(run_directory):
    tried = {"percentile 99.9": {"accuracy": 0.91, "note": "text"}, "entropy": {"accuracy": 0.92}}
    (run_directory / "metrics.json").write_text(json.dumps({"calibration_search": tried, "calibrator": "entropy"}))
    metrics = collect(run_directory).metrics
    assert metrics.calibration_search == {"percentile 99.9": {"accuracy": 0.91}, "entropy": {"accuracy": 0.92}}
    assert metrics.calibrator == "entropy"


def calibration_with(histogram):
    return json.dumps({"batches": 1, "examples": 2, "points": {"p": {"amax": 1.0, "method": "max", "histogram": histogram}}})


@pytest.mark.parametrize("name", ["metrics.json", "placement.json"])
def test_missing_file_is_named(run_directory, name):
    (run_directory / name).unlink()
    with pytest.raises(RunDirectoryError, match=rf"{name} is missing, so there is nothing to report"):
        collect(run_directory)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", r"metrics\.json is corrupt: not JSON"),
        ("metrics.json", "[]", r"metrics\.json is corrupt: expected a JSON object, got list"),
        ("placement.json", '{"preset": "naive"}', r"placement\.json is corrupt: the key 'points' is missing"),
        ("parity.json", '{"examples": 10}', r"parity\.json is corrupt: the key 'passed' is missing"),
        ("calibration.json", '{"batches": 1, "examples": 2, "points": []}', r"calibration\.json is corrupt"),
        ("calibration.json", calibration_with({**HISTOGRAM, "mantissa_bits": 8}), r"calibration\.json cannot be read: .* mantissa_bits 8"),
        ("calibration.json", calibration_with({**HISTOGRAM, "bins": [10**9]}), r"calibration\.json is corrupt: index"),
        ("calibration.json", calibration_with({"mantissa_bits": 9}), r"calibration\.json is corrupt: the key '\w+' is missing"),
        ("sensitivity.json", "{}", r"sensitivity\.json is corrupt: the key 'method' is missing"),
        ("sensitivity.json", "[]", r"sensitivity\.json is corrupt: expected a JSON object, got list"),
        ("engine.json", "{}", r"engine\.json is corrupt: the key 'status' is missing"),
        ("history.csv", "epoch,loss\n1,x\n", r"history\.csv is corrupt: expected rows of 2 numbers"),
        ("history.csv", "epoch,loss\n1,2,3\n", r"history\.csv is corrupt: expected rows of 2 numbers"),
        ("history.csv", "epoch,loss\n1,2\n2\n", r"history\.csv is corrupt: expected rows of 2 numbers"),
    ],
)
def test_corrupt_file_is_named_with_what_is_wrong(run_directory, name, text, message):
    (run_directory / name).write_text(text)
    with pytest.raises(RunDirectoryError, match=message):
        collect(run_directory)


def test_history_is_read_by_column_with_empty_cells_as_nan(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,val_loss\n1,0.5,\n2,0.4,0.45\n")
    history = read_history(path)
    assert history["epoch"] == (1.0, 2.0)
    assert math.isnan(history["val_loss"][0])
    assert history["val_loss"][1] == 0.45


@pytest.mark.parametrize("text", ["", "epoch,loss\n"])
def test_history_without_a_row_is_no_history(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    assert read_history(path) is None
