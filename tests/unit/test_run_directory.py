"""The directory of a run: new each time, with a manifest that says how far the run came."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tfqat import run_directory
from tfqat.errors import RunDirectoryError
from tfqat.run_directory import RunDirectory, exported_model, read_json, versions


class Frozen(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2025, 3, 4, 5, 6, 7, 890000, tzinfo=tz)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "datetime", Frozen)


def create(parent: Path, name: str = "fashion_mnist") -> RunDirectory:
    return RunDirectory.create(parent, name, recipe_hash="abc123", seed=7, recipe_folder=Path("recipes"))


def manifest(directory: RunDirectory) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


def test_is_named_for_the_recipe_and_the_utc_time(frozen: None, tmp_path: Path) -> None:
    directory = create(tmp_path / "deep" / "runs")
    assert directory.path == tmp_path / "deep" / "runs" / "fashion_mnist-20250304T050607Z"
    assert directory / "metrics.json" == directory.path / "metrics.json"
    assert [path.name for path in directory.path.iterdir()] == ["manifest.json"]


def test_the_time_is_utc(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    stamp = re.fullmatch(r"fashion_mnist-(\d{8}T\d{6}Z)", create(tmp_path).path.name)
    assert stamp
    assert before <= datetime.strptime(stamp[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc) <= datetime.now(timezone.utc)


def test_runs_of_the_same_second_are_kept_apart(frozen: None, tmp_path: Path) -> None:
    first = create(tmp_path)
    (first / "metrics.json").write_text("kept")
    others = [create(tmp_path) for _ in range(3)]
    names = [directory.path.name for directory in (first, *others)]
    assert names == ["fashion_mnist-20250304T050607Z" + suffix for suffix in ("", "-2", "-3", "-4")]
    assert (first / "metrics.json").read_text() == "kept"
    assert sorted(path.name for path in first.path.iterdir()) == ["manifest.json", "metrics.json"]
    assert create(tmp_path, "other").path.name == "other-20250304T050607Z"


def test_a_file_of_that_name_is_not_overwritten(frozen: None, tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist-20250304T050607Z").write_text("kept")
    assert create(tmp_path).path.name == "fashion_mnist-20250304T050607Z-2"
    assert (tmp_path / "fashion_mnist-20250304T050607Z").read_text() == "kept"


def test_gives_up_after_999_runs_of_one_second(frozen: None, tmp_path: Path) -> None:
    for number in range(1, 1000):
        (tmp_path / ("fashion_mnist-20250304T050607Z" + (f"-{number}" if number > 1 else ""))).mkdir()
    with pytest.raises(RunDirectoryError, match="holds 999 runs of the same second"):
        create(tmp_path)


def test_the_manifest_of_a_new_run(frozen: None, tmp_path: Path) -> None:
    made = manifest(create(tmp_path))
    commit = subprocess.run(["git", "-C", "recipes", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    git = made.pop("git")
    assert (git["commit"], type(git["changed"])) == (commit, bool) if commit else git is None
    assert made == {
        "recipe_hash": "abc123",
        "seed": 7,
        "recipe_folder": str(Path("recipes").resolve()),
        "working_directory": str(Path.cwd()),
        "started": "2025-03-04T05:06:07+00:00",
        "changed": "2025-03-04T05:06:07+00:00",
        "status": "running",
        "stage": "load",
        "versions": versions(),
    }


@pytest.mark.parametrize("status", ["running", "complete", "incomplete"])
def test_mark(status: str, tmp_path: Path) -> None:
    directory = create(tmp_path)
    before = manifest(directory)
    directory.mark(status, stage="qat")
    after = manifest(directory)
    assert (after["status"], after["stage"]) == (status, "qat")
    same = ("recipe_hash", "seed", "started", "versions")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_discard_removes_this_run_and_no_other(tmp_path: Path) -> None:
    kept, gone = create(tmp_path), create(tmp_path)
    (gone / "sub").mkdir()
    gone.discard()
    gone.discard()
    assert list(tmp_path.iterdir()) == [kept.path]


def test_log_appends_lines_with_their_time_at_once(frozen: None, tmp_path: Path) -> None:
    directory = create(tmp_path)
    with directory.held() as write:
        write("Calibrate 16 batches")
        assert (directory / "run.log").read_text() == "05:06:07 Calibrate 16 batches\n"
    with directory.held() as write:
        write("größer")
    assert (directory / "run.log").read_text(encoding="utf-8") == "05:06:07 Calibrate 16 batches\n05:06:07 größer\n"


@pytest.mark.parametrize("below", ["file", "file/runs"])
def test_a_parent_that_cannot_be_made_is_an_error(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(RunDirectoryError, match=r"^cannot make a run directory in .*file.*; choose another with --out$"):
        create(tmp_path / below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_read_json(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"float": {"accuracy": 0.5}}')
    assert read_json(tmp_path, "metrics.json") == {"float": {"accuracy": 0.5}}
    with pytest.raises(RunDirectoryError, match=r"has no parity.json: is it the directory of a run that came that far\?"):
        read_json(tmp_path, "parity.json")
    (tmp_path / "parity.json").write_text('{"half')
    with pytest.raises(RunDirectoryError, match=r"parity.json is not valid JSON: Unterminated string"):
        read_json(tmp_path, "parity.json")


@pytest.mark.parametrize(
    ("metrics", "name"), [({"exported": "qat"}, "qat.keras"), ({"exported": "ptq"}, "quantized.keras"), ({}, "quantized.keras")]
)
def test_exported_model(metrics: dict[str, Any], name: str) -> None:
    assert exported_model(metrics) == name


def test_versions() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == version("numpy") and found["tensorflow"] == version("tensorflow")
    assert all(re.match(r"\d+\.", value) for value in found.values())
