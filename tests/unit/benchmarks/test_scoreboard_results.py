"""The file of figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scoreboard import results


def test_a_partial_run_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for name, figures in (("step", [1.0]), ("lines", {"tfqat": 4}), ("step", [2.123456789])):
        sections = results.merged(results.read(path), name, figures, seconds=1.4, settings={}, tools={})
        results.write(path, sections)

    found = json.loads(path.read_text(encoding="utf-8"))["sections"]

    assert found["lines"]["figures"] == {"tfqat": 4}
    assert found["step"]["figures"] == [2.12346]
    assert found["step"]["seconds"] == 1
    assert found["step"]["machine"]["cores"] >= 1
    assert not list(tmp_path.glob(".*"))


def test_no_file_has_no_sections(tmp_path: Path) -> None:
    assert results.read(tmp_path / "none.json") == {}


def test_a_part_that_is_measured_again_keeps_the_time_of_the_whole() -> None:
    earlier = results.merged({}, "accuracy", {"a": 1}, seconds=3000, settings={"seeds": 5}, tools={"TFMOT": {}})["accuracy"]
    entry = results.merged({}, "accuracy", {"a": 2}, seconds=60, settings={"seeds": 5}, tools={"Sony MCT": {}})["accuracy"]
    found = results.partly_again(earlier, entry, "Sony MCT")
    assert (found["seconds"], found["figures"], set(found["tools"])) == (3000, {"a": 2}, {"TFMOT", "Sony MCT"})
    assert found["settings"]["seeds"] == 5 and found["settings"]["measured again"].startswith("Sony MCT (20")
