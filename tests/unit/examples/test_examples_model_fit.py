"""`examples/model_fit`: both scripts and the notebook run as they are, on a part of their data."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfqat.recipe import references

FOLDER = Path(__file__).parents[3] / "examples" / "model_fit"
BATCHES = {"data.py:bundled_train": 16, "data.py:bundled_validation": 2, "data.py:bundled_calibration": 16}


@pytest.fixture
def some_data(monkeypatch: pytest.MonkeyPatch) -> None:
    load = references.load_reference

    def part(reference: str, *, base: Path) -> Callable[[], Any]:
        return lambda: load(reference, base=base)().take(BATCHES[reference])

    monkeypatch.setattr(references, "load_reference", part)


def check(report: Any) -> None:
    """What does not depend on chance: end to end, few examples of a part of the data can exceed the noise floor."""
    assert all(one.passed for one in report.structure)
    assert report.local.equal >= 0.9999 and report.local.max_difference <= 1


@pytest.mark.usefixtures("some_data")
def test_the_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(FOLDER / "train.py"), run_name="__main__")
    assert "the graph computes what was trained: " in capsys.readouterr().out and (tmp_path / "model.onnx").exists()
    check(names["report"])
    runpy.run_path(str(FOLDER / "custom_step.py"), run_name="__main__")
    assert float(capsys.readouterr().out.split("fine-tuned with mixup: ")[1]) > 0.85


@pytest.mark.usefixtures("some_data")
def test_the_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(FOLDER)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads((FOLDER / "model_fit.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"model_fit.ipynb: {cell['id']}", "exec"), names)
    printed = capsys.readouterr().out
    check(names["report"])
    assert float(printed.rpartition("Mixup ")[2]) > 0.85
    assert names["mine"].layers[1].name == names["model"].layers[1].name


def test_it_takes_less_than_30_lines_of_a_training_loop() -> None:
    lines = (FOLDER / "train.py").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.startswith(("#", '"""')) for line in lines) < 30
