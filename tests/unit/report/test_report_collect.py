"""Reading a run directory: absent files, corrupt files, and the message for each."""

from __future__ import annotations

import json
import math

import pytest

from tfqat.errors import RunDirectoryError
from tfqat.report.collect import collect, read_history

PLACEMENT = {"preset": "selective", "points": [], "float_layers": []}


@pytest.fixture
def run_directory(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"float": {"accuracy": 0.9, "note": "text"}}))
    (tmp_path / "placement.json").write_text(json.dumps(PLACEMENT))
    return tmp_path


def test_only_metrics_and_placement_are_needed(run_directory):
    view = collect(run_directory)
    assert view.metrics.stages == {"float": {"accuracy": 0.9}}
    assert (view.recipe, view.calibration, view.history, view.parity, view.engine) == (None,) * 5


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
