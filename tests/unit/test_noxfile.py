"""noxfile.py: the pairs of Python and TensorFlow are those that the package says it takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_pairs_span_what_the_package_takes() -> None:
    from tfqat.doctor import NEWEST_PYTHON, OLDEST_PYTHON

    tree = ast.parse((ROOT / "noxfile.py").read_text())
    values = {
        node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    tensorflow = ast.literal_eval(values["TENSORFLOW"])
    assert isinstance(values["PYTHON"], ast.Dict)
    pythons = [ast.literal_eval(key) for key in values["PYTHON"].keys if key]
    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'requires-python = ">=([\d.]+)"', project)
    bounds = re.search(r'"tensorflow>=2\.(\d+),<2\.(\d+)"', project)
    assert oldest and bounds
    assert pythons == [f"3.{minor}" for minor in range(OLDEST_PYTHON[1], NEWEST_PYTHON[1] + 1)]
    assert pythons[0] == oldest[1]
    assert list(tensorflow) == [f"2.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]
    for setting in (f'target-version = "py{oldest[1].replace(".", "")}"', f'python_version = "{oldest[1]}"'):
        assert setting in project  # ruff and mypy check against the oldest
