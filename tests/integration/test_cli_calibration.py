"""`tfqat calibrate` and `tfqat sensitivity` as a user calls them, and what `tfqat run` does with the same blocks of a recipe."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_project, tmp_path / "project"))


def only_run(out: Path) -> Path:
    (found,) = out.iterdir()
    return found


def read(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text())


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_calibrate_then_another_method_without_data(project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    import tfqat

    result = tfqat_command("calibrate", project / "tiny.yaml", "--out", tmp_path / "first")
    assert result.code == 0, result.err
    first = only_run(tmp_path / "first")
    assert {"calibration.json", "placement.json", "quantized.keras", "recipe.yaml", "report.html", "metrics.json"} <= set(hashes(first))
    assert "Ranges from 256 examples" in result.out and "percentile 99.99" in result.out
    before = hashes(first)
    (project / "data.py").unlink()  # no data are read any more

    result = tfqat_command("calibrate", "--from", first, "--method", "entropy", "--out", tmp_path / "second")
    assert result.code == 0, result.err
    second = only_run(tmp_path / "second")
    assert hashes(first) == before
    points, moved = read(first, "calibration.json")["points"], read(second, "calibration.json")["points"]
    qmodel = tfqat.load_model(second / "quantized.keras")
    ranges = tfqat.quantize.state.ranges(qmodel)
    activations = [name for name, point in points.items() if point["candidates"]]
    assert len(activations) == 6
    for name in activations:
        assert moved[name]["method"] == "entropy"
        assert moved[name]["amax"] == pytest.approx(points[name]["candidates"]["entropy"])
        assert np.float32(moved[name]["amax"]) == ranges[name]
    assert any(moved[name]["amax"] != points[name]["amax"] for name in activations)
    assert "calibrator: entropy" in (second / "recipe.yaml").read_text()


BAD = {
    "neither": ([], "give either a recipe or --from RUN"),
    "method without run": (["tiny.yaml", "--method", "max"], "--method goes with --from"),
    "no such method": (["--from", "RUN", "--method", "median"], "one of max, entropy, mse, best, or percentile(P)"),
    "best needs data": (["--from", "RUN", "--method", "best"], "best compares the outputs of layers, which takes data"),
    "no run": (["--from", "nowhere", "--method", "max"], "has no calibration.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_of_calibrate(name: str, project: Path, monkeypatch: pytest.MonkeyPatch, tfqat_command: Callable[..., Any]) -> None:
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    arguments, message = BAD[name]
    result = tfqat_command("calibrate", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert sorted(project.rglob("*")) == before


def test_sensitivity_with_a_goal_that_holds_anyway(project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    result = tfqat_command(
        "sensitivity",
        project / "tiny.yaml",
        "--metric",
        "accuracy",
        "--max-drop",
        0.5,
        "--method",
        "leave_one_in",
        "--out",
        tmp_path / "out",
    )
    assert result.code == 0, result.err
    directory = only_run(tmp_path / "out")
    found = read(directory, "sensitivity.json")
    assert found["search"]["met"] and found["search"]["chosen"] == {} and found["recipe"] == ""
    assert {unit["name"] for unit in found["units"]} == {"stem", "depthwise", "project", "head", "pool", "logits"}
    project_unit = next(unit for unit in found["units"] if unit["name"] == "project")
    assert project_unit["layers"] == ["project", "add"]  # TensorRT fuses them
    scores = [unit["score"] for unit in found["units"]]
    assert scores == sorted(scores, reverse=True)
    assert all(unit["value"] == pytest.approx(found["float"] - unit["score"]) for unit in found["units"])
    assert "Sensitivity" in (directory / "report.html").read_text()


def test_sensitivity_as_json_names_what_to_raise(project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    """2-bit weights that are rounded to the nearest lose much: some have to have 8 bits again."""
    settings = ["--set", "quantization.weights.num_bits=2", "--set", "compile.enabled=false", "--set", "calibration.rounding=nearest"]
    result = tfqat_command("sensitivity", project / "tiny.yaml", *settings, "--max-drop", 0.1, "--json", "--out", tmp_path / "out")
    found = json.loads(result.out)
    assert result.code == 0
    assert found["metric"] == "output_error" and found["float"] == 0.0
    assert found["quantized"] > 0.1  # otherwise this shows nothing
    assert found["search"]["chosen"] and found["search"]["value"] <= 0.1
    assert "num_bits: 8" in found["recipe"]
    placement = read(only_run(tmp_path / "out"), "placement.json")
    bits = {point["id"]: point["spec"]["num_bits"] for point in placement["points"] if point["kind"] == "weight"}
    reasons = [point["reason"] for point in placement["points"] if point["spec"]["num_bits"] == 8 and point["kind"] == "weight"]
    assert set(bits.values()) == {2, 8}
    assert all("sensitive: +" in reason and reason.endswith("output error alone; 8 bits") for reason in reasons)


BAD_SENSITIVITY = {
    "unknown metric": (["--metric", "acuracy"], "sensitivity.metric: the model has no metric 'acuracy'; did you mean 'accuracy'?"),
    "unknown method": (["--method", "slow"], "sensitivity.method: expected 'fast', 'leave_one_in' or 'leave_one_out'"),
    "budget": (
        ["--set", "sensitivity.budget.int8_share=1.0", "--set", "quantization.skip=[stem]"],
        "1 cannot be met; the best that this model",
    ),
    "batches": (["--set", "sensitivity.batches=50"], "asked for 50 batches, the data held 4"),
    "function": (["--metric", "data.py:nothing"], "sensitivity.metric"),
}


@pytest.mark.parametrize("name", BAD_SENSITIVITY)
def test_bad_input_of_sensitivity(name: str, project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    arguments, message = BAD_SENSITIVITY[name]
    result = tfqat_command("sensitivity", project / "tiny.yaml", *arguments, "--out", tmp_path / "out")
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_run_searches_calibrators_and_leaves_sensitive_layers_float(
    project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]
) -> None:
    """The whole road with every block: the graph that comes out is proven for the placement that sensitivity led to."""
    recipe = (
        (project / "tiny.yaml").read_text().replace("calibration: {batches: 4}", "calibration: {batches: 4, search: [max, entropy, best]}")
    )
    recipe += "sensitivity: {metric: output_error, budget: {int8_share: 0.6}}\nptq_only: true\n"
    (project / "tiny.yaml").write_text(recipe)
    result = tfqat_command("run", project / "tiny.yaml", "--out", tmp_path / "out")
    assert result.code == 0, result.out + result.err
    directory = only_run(tmp_path / "out")
    metrics, found = read(directory, "metrics.json"), read(directory, "sensitivity.json")
    assert set(metrics["calibration_search"]) == {"max", "entropy", "best"} and metrics["calibrator"] in metrics["calibration_search"]
    assert found["search"]["chosen"]
    placement = read(directory, "placement.json")
    left = {layer["layer"]: layer["reason"] for layer in placement["float_layers"]}
    for name, level in found["search"]["chosen"].items():
        assert level == "float" and left[name].startswith("sensitive: +") and left[name].endswith("output error alone")
    assert {point["source"] for point in placement["points"] if point["kind"] == "weight"}.isdisjoint(found["search"]["chosen"])
    assert read(directory, "parity.json")["passed"]


def test_equalization_in_a_run(project: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    import tfqat

    result = tfqat_command(
        "run", project / "tiny.yaml", "--set", "calibration.equalization=true", "--set", "ptq_only=true", "--out", tmp_path / "out"
    )
    assert result.code == 0, result.out + result.err
    directory = only_run(tmp_path / "out")
    scaled = read(directory, "equalization.json")["exponents"]
    qmodel, before = tfqat.load_model(directory / "quantized.keras"), tfqat.load_model(project / "float.keras")
    assert scaled and any(type(layer).__name__ == "ChannelReLU" for layer in qmodel.layers)
    scales = [
        before.get_layer(name).gamma.numpy() / qmodel.get_layer(name).gamma.numpy()
        for name, parts in scaled.items()
        if parts["output"] and name.endswith("_bn")
    ]
    assert scales and any(np.any(scale != 1) for scale in scales)  # the run computes with the equalized model
    metrics = read(directory, "metrics.json")
    assert abs(metrics["ptq"]["accuracy"] - metrics["float"]["accuracy"]) < 0.02
