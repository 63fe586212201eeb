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
