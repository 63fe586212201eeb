"""`examples/quickstart` and `examples/sensitivity`: the notebooks run in a Jupyter kernel, as they are."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[3] / "examples"


def executed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Everything that the notebook printed."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook puts its graph
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / name / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES / name)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "the notebook draws nothing"
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def after(text: str, words: str) -> float:
    return float(text.split(words)[1].split()[0].rstrip("%,"))


def test_quickstart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed = executed("quickstart", monkeypatch, tmp_path)
    assert after(printed, "INT8: ") > after(printed, "float: ") - 0.01 > 0.9
    assert after(printed, "local: ") >= 99.99 and after(printed, "the largest difference is ") <= 1
    assert after(printed, "accuracy of one batch: ") > 0.85


def test_sensitivity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed = executed("sensitivity", monkeypatch, tmp_path)
    assert after(printed, "float ") - after(printed, ", 4 bits ") > 0.01 >= after(printed, "float ") - after(printed, ", found ")
    assert printed.index("stem ") < printed.index("logits ") and "weights: {num_bits: 8}" in printed
    narrow, wide = after(printed, "mixed model: "), int(printed.split(" weights in 4 bits, ")[1].split()[0])
    assert narrow > 0.9 and 0 < wide < 8
