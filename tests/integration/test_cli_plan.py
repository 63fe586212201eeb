"""`tfqat plan` as a tree, as JSON, as a drawing and as a graph, of a model file and of a recipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def tfqat_plan(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tfqat_cli", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested model whose two convolutions are read by an Add; a leading underscore would be no name for tf_keras."""
    import tf_keras

    k = tf_keras.layers
    x = tf_keras.Input((8, 8, 16))
    inner = tf_keras.Model(x, k.ReLU(name="relu")(k.Conv2D(16, 3, padding="same", name="conv")(x)), name="backbone")
    image = tf_keras.Input((8, 8, 16), name="image")
    model = tf_keras.Model(image, k.Dense(4, name="logits")(k.Flatten(name="flat")(inner(image) + image)), name="net")
    path = tmp_path_factory.mktemp("plan") / "net.keras"
    model.save(path)
    return path


def test_tree_of_a_model(model_file: Path) -> None:
    done = tfqat_plan(model_file)
    assert done.returncode == 0
    lines = [line.strip("│├└─ ") for line in done.stdout.splitlines()]
    assert lines[0].startswith("selective: 2 weights and 2 activations in INT8")
    assert "backbone/" in lines
    assert lines[lines.index("backbone/") + 1] == "● conv  Conv2D"
    assert "kernel: int8 per channel, max (weight of Conv2D)" in lines
    assert any(line.startswith("○ relu  ReLU: fuses with backbone/conv") for line in lines)
    assert "schedule" not in done.stdout


def test_json_of_a_model(model_file: Path) -> None:
    placement = json.loads(tfqat_plan(model_file, "--format", "json", "--preset", "naive").stdout)
    assert placement["preset"] == "naive"
    assert [point["id"] for point in placement["points"] if point["kind"] == "weight"] == ["backbone/conv/kernel", "logits/kernel"]


def test_drawing_of_a_model(model_file: Path, tmp_path: Path) -> None:
    assert tfqat_plan(model_file, "--format", "svg", "--out", tmp_path / "plan.svg").returncode == 0
    root = ElementTree.parse(tmp_path / "plan.svg").getroot()
    boxes = [group for group in root.iter("{http://www.w3.org/2000/svg}g")]
    assert [group.get("class") for group in boxes] == ["input", "int8", "float", "int8", "float", "int8"]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3  # image twice, flat once
    assert "residual shortcut: Add fuses with backbone/conv" in (tmp_path / "plan.svg").read_text()


def test_graph_of_a_model(model_file: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "plan.onnx"
    done = tfqat_plan(model_file, "--format", "onnx", "--out", path)
    assert "not calibrated: 2 activations with the scale 1, 2 weights" in done.stdout
    model: Any = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props}["tfqat.calibrated"] == "false"
    scales = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer if value.name.endswith("/scale")}
    assert float(scales["image/scale"]) == 1.0
    assert scales["backbone/conv/kernel/scale"].shape == (16,)
    assert np.all(scales["backbone/conv/kernel/scale"] < 0.1)


def test_no_line_of_a_drawing_runs_through_a_box(model_file: Path, tmp_path: Path) -> None:
    """The shortcut passes conv and relu, in a lane beside them; sampled along its curves."""
    assert tfqat_plan(model_file, "--format", "svg", "--out", tmp_path / "plan.svg").returncode == 0
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(tmp_path / "plan.svg").getroot()
    boxes = [(float(box.get("x", 0)), float(box.get("y", 0))) for box in root.iter(f"{svg}rect") if box.get("class") == "box"]
    lines = [[float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))] for path in root.iter(f"{svg}path")]
    assert (len(boxes), len(lines)) == (6, 8)  # six edges; the shortcut passes two rows
    assert sum(path.get("class") == "edge int8" for path in root.iter(f"{svg}path")) == 3
    for line in lines:
        for t in np.linspace(0.02, 0.98, 99):
            x, y = (np.dot([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], line[axis:8:2]) for axis in (0, 1))
            assert not any(left < x < left + 176 and top + 1 < y < top + 33 for left, top in boxes)
    assert len([mark for mark in root.iter(f"{svg}rect") if mark.get("class") == "mark weight"]) == 2


def test_a_recipe_takes_no_preset(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\n")
    done = tfqat_plan(tmp_path / "r.yaml", "--preset", "naive")
    assert (done.returncode, "--set quantization.preset=naive" in " ".join(done.stderr.split())) == (2, True)


REFUSED = {
    "--set for a model": (["--set", "seed=1"], "--set changes a recipe, and"),
    "no file for a graph": (["--format", "onnx"], "--format onnx writes a file: give its name with --out"),
    "unknown format": (["--format", "png"], "'png' is not one of"),
    "a folder that does not exist": (["--format", "svg", "--out", "nowhere/plan.svg"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model_file: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = tfqat_plan(model_file, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_replaces_blocks_shows_lines_of_what_is_wrong(model_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""version: 1
model: {{source: {model_file}}}
data: {{train: "d.py:t", validation: "d.py:t"}}
training: {{epochs: 1, batch_size: 1, learning_rate: 0.1, loss: mse, metrics: [accuracy]}}
replace:
  - match: logits
    with: relu
quantization:
  skip: [nothing_like_it]
"""
    )
    done = tfqat_plan(recipe)
    assert done.returncode == 2
    assert f"{recipe}:6: replace[0].match: pattern 'logits' matches only layers that 'relu' does not apply to: logits" in done.stderr
    done = tfqat_plan(recipe, "--set", "replace=[]")
    assert f"{recipe}:9: quantization.skip[0]: pattern 'nothing_like_it' matches none" in done.stderr
