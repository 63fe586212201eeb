"""The main job on real data: the shipped recipe, whole, against the figures that it is meant to reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tfqat.engines import tensorrt_rtx

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tfqat

    return tfqat.run(ROOT / "recipes" / "fashion_mnist.yaml", out=tmp_path_factory.mktemp("runs"))


def test_accuracies(result: Any) -> None:
    accuracy = {stage: result.metrics[stage]["accuracy"] for stage in ("float", "ptq", "qat", "onnx")}
    assert result.metrics["examples"] == 10_000
    assert accuracy["float"] >= 0.918
    assert accuracy["ptq"] >= accuracy["float"] - 0.003
    assert accuracy["qat"] >= accuracy["float"] - 0.002
    exported = accuracy[result.exported]
    assert abs(accuracy["onnx"] - exported) <= 0.0005


def test_size(result: Any) -> None:
    sizes = result.metrics["size_bytes"]
    assert sizes["model_onnx"] <= 0.30 * sizes["float_onnx"]


def test_parity(result: Any) -> None:
    parity = result.parity
    assert parity.examples == 1000
    assert parity.failures == ()
    assert parity.local.equal >= 0.9999 and parity.local.max_difference <= 1
    assert 1 - parity.end_to_end.equal <= max(1.5 * (1 - parity.noise_floor.equal), 1e-4)
    assert parity.end_to_end.max_difference <= max(1.5 * parity.noise_floor.max_difference, 1)
    assert parity.outputs.top1_agreement >= 0.998


@pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="needs TensorRT for RTX")
def test_every_quantized_layer_runs_int8(result: Any) -> None:
    engine = result.engine
    assert engine.status == "built"
    assert [target.target for target in engine.targets] == ["SM86", "SM89"]
    layers = [point.source for point in result.placement.weights]
    assert len(layers) == 15
    assert engine.float_layers(layers) == ()
    for target in engine.targets:
        assert {layer.keras_layer for layer in target.layers if layer.int8} == set(layers)


def test_the_run_is_complete(result: Any) -> None:
    assert json.loads((result.directory / "manifest.json").read_text())["status"] == "complete"
    assert (result.directory / "report.html").stat().st_size > 10_000
