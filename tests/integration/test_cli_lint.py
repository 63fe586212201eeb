"""`tfqat lint` as a user calls it: what it prints, and how it ends."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def lint(tfqat_command: Callable[..., Any]) -> Callable[..., Any]:
    """`tfqat lint <arguments>` in this process."""
    return functools.partial(tfqat_command, "lint")


@pytest.fixture
def broken_onnx(tiny_onnx: Path, tmp_path: Path) -> Path:
    """The exported tiny model with its first activation scale as shape [1]."""
    model = onnx.load(str(tiny_onnx))
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "stem_relu/scale")
    scale.CopyFrom(numpy_helper.from_array(np.atleast_1d(numpy_helper.to_array(scale)), scale.name))
    onnx.save(model, str(tmp_path / "broken.onnx"))
    return tmp_path / "broken.onnx"


FINDING = {
    "layer": "stem_relu/Q",
    "rule": "activation-scale",
    "message": "activation scale of shape [1]: TensorRT silently runs what reads it in float",
    "fix": "store the scale (and the zero point) with shape []",
    "severity": "finding",
}


def test_a_model_of_ours_ends_with_0(lint: Callable[..., Any], tiny_onnx: Path) -> None:
    result = lint(tiny_onnx)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"{tiny_onnx}: no findings, 2 pieces of advice"
    assert "small-product (advice)" in result.out


def test_a_finding_ends_with_1(lint: Callable[..., Any], broken_onnx: Path) -> None:
    result = lint(broken_onnx)
    assert (result.code, result.err) == (1, "")
    assert result.out.splitlines()[-1] == f"{broken_onnx}: 1 finding, 2 pieces of advice"
    row = next(line for line in result.out.splitlines() if "activation-scale" in line)
    assert [FINDING[key] in row for key in ("layer", "rule", "message", "fix")] == [True] * 4


def test_json(lint: Callable[..., Any], broken_onnx: Path) -> None:
    result = lint(broken_onnx, "--format", "json")
    report = json.loads(result.out)
    assert (result.code, result.err) == (1, "")
    assert (report["file"], report["findings"], report["advice"]) == (str(broken_onnx), 1, 2)
    assert report["items"][1] == FINDING
    assert [item["severity"] for item in report["items"]] == ["advice", "finding", "advice"]


def test_recipe(lint: Callable[..., Any], tiny_project: Path) -> None:
    recipe = tiny_project / "tiny.yaml"
    result = lint(recipe, "--format", "json")
    assert result.code == 0
    assert [(item["layer"], item["rule"]) for item in json.loads(result.out)["items"]] == [
        ("stem", "small-product"),
        ("logits", "small-product"),
    ]


def test_recipe_of_the_naive_preset(lint: Callable[..., Any], tiny_project: Path) -> None:
    recipe = tiny_project / "tiny.yaml"
    result = lint(recipe, "--set", "quantization.preset=naive")
    assert result.code == 1
    assert result.out.splitlines()[-1] == f"{recipe}: 1 finding, 2 pieces of advice"
    assert "every input is quantized: the Add cannot fuse with 'project'" in result.out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.onnx", None, "is not a file; expected an ONNX model with Q/DQ"),
        ("text.onnx", "version: 1", "is not an ONNX model"),
        ("gone.yaml", None, "gone.yaml"),
        ("bad.yaml", "version: 1\nnothing: 2\n", "nothing"),
    ],
)
def test_unreadable_file_ends_with_2(lint: Callable[..., Any], tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    result = lint(tmp_path / name)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert message in result.err


def test_an_onnx_file_is_linted_without_tensorflow(tiny_onnx: Path) -> None:
    code = (
        "import sys\n"
        "from tfqat.placement.lint import lint_onnx\n"
        f"assert lint_onnx({str(tiny_onnx)!r})\n"
        "print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
