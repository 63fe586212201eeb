"""The main job on real data: the shipped recipe, whole, against the figures that it is meant to reach.

CI has just run it when these tests start: `TFQAT_MAIN_RUN` names that run's directory, and it is not done a second time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tfqat.engines import tensorrt_rtx
from tfqat.engines.report import EngineReport
from tfqat.placement.plan import Placement
from tfqat.recipe.load import load_recipe, recipe_hash

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "fashion_mnist.yaml"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if made := os.environ.get("TFQAT_MAIN_RUN"):
        return Path(made)
    import tfqat

    return tfqat.run(RECIPE, out=tmp_path_factory.mktemp("runs")).directory  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def result(directory: Path) -> Any:
    def read(name: str) -> Any:
        return json.loads((directory / name).read_text())

    return read


def test_the_run_is_complete(directory: Path, result: Any) -> None:
    manifest = result("manifest.json")
    assert (manifest["status"], manifest["recipe_hash"]) == ("complete", recipe_hash(load_recipe(RECIPE)))
    assert (directory / "report.html").stat().st_size > 10_000


def test_accuracies(result: Any) -> None:
    metrics = result("metrics.json")
    accuracy = {stage: metrics[stage]["accuracy"] for stage in ("float", "ptq", "qat", "onnx")}
    assert metrics["examples"] == 10_000
    assert accuracy["float"] >= 0.918
    assert accuracy["ptq"] >= accuracy["float"] - 0.003
    assert accuracy["qat"] >= accuracy["float"] - 0.002
    assert abs(accuracy["onnx"] - accuracy[metrics["exported"]]) <= 0.0005


def test_size(result: Any) -> None:
    sizes = result("metrics.json")["size_bytes"]
    assert sizes["model_onnx"] <= 0.30 * sizes["float_onnx"]


def test_parity(result: Any) -> None:
    parity = result("parity.json")
    local, whole, floor = parity["local"], parity["end_to_end"], parity["noise_floor"]
    assert parity["examples"] == 1000
    assert (parity["passed"], parity["failures"]) == (True, [])
    assert local["equal"] >= 0.9999 and local["max_difference"] <= 1
    assert 1 - whole["equal"] <= max(1.5 * (1 - floor["equal"]), 1e-4)
    assert whole["max_difference"] <= max(1.5 * floor["max_difference"], 1)
    assert parity["outputs"]["top1_agreement"] >= 0.998


@pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="needs TensorRT for RTX")
def test_every_quantized_layer_runs_int8(result: Any) -> None:
    engine = EngineReport.from_dict(result("engine.json"))
    assert engine.status == "built"
    assert [target.target for target in engine.targets] == ["SM86", "SM89"]
    layers = {point.source for point in Placement.from_dict(result("placement.json")).weights}
    assert len(layers) == 15
    assert engine.float_layers(layers) == ()
    for target in engine.targets:
        assert {layer.keras_layer for layer in target.layers if layer.int8} == layers
