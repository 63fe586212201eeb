"""`tfqat export`: from a run and from a file, and what it says to wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tfqat.engines import tensorrt_rtx
from tfqat.engines.serve import load_engine


def test_from_a_run_and_from_a_file(tiny_run: Any, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    result = tfqat_command("export", tiny_run.directory, "-o", tmp_path / "a.onnx", "--opset", 21, "--batch", 2, "--layout", "nchw")
    assert result.code == 0, result.err
    assert "a.onnx: " in result.out and "opset 21, 5 weights and 6 activations in INT8" in result.out
    result = tfqat_command("verify", tiny_run.directory, "--onnx", tmp_path / "a.onnx", "--examples", 100)
    assert result.code == 0, result.out
    file = tiny_run.directory / ("qat.keras" if tiny_run.exported == "qat" else "quantized.keras")
    assert tfqat_command("export", file, "-o", tmp_path / "b.onnx").code == 0
    ours, own = onnx.load(tmp_path / "b.onnx"), onnx.load(tiny_run.directory / "model.onnx")
    assert ours.graph == own.graph


def test_other_types_and_another_target(tiny_run: Any, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    options = ("--remainder", "float16", "--weights", "float", "--std", 255, "--external-data")
    result = tfqat_command("export", tiny_run.directory, "-o", tmp_path / "a.onnx", *options)
    assert result.code == 0, result.err
    assert (tmp_path / "a.onnx.data").exists()
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    result = tfqat_command("export", tiny_run.directory, "-o", tmp_path / "b.onnx", "--target", "onnxruntime")
    assert result.code == 0 and "2 layers, stem the first, are wrong on CPUs without VNNI" in " ".join(result.out.split())
    result = tfqat_command("verify", tiny_run.directory, "--onnx", tmp_path / "b.onnx", "--examples", 50)
    assert result.code == 1 and "stem: two products add up to 64770" in " ".join(result.out.split())


def test_a_run_for_onnxruntime(tiny_project: Path, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    settings = ("--set", "export.target=onnxruntime", "--set", "export.layout=nchw", "--set", "ptq_only=true", "--out", tmp_path)
    result = tfqat_command("run", tiny_project / "tiny.yaml", *settings)
    assert result.code == 0, result.err
    (run,) = tmp_path.iterdir()
    bits = {point["id"]: point["spec"]["num_bits"] for point in json.loads((run / "placement.json").read_text())["points"]}
    assert bits["stem/kernel"] == bits["head/kernel"] == 7 and bits["project/kernel"] == 8
    assert json.loads((run / "engine.json").read_text())["message"].startswith("the graph is for ONNX Runtime")
    metrics = json.loads((run / "metrics.json").read_text())
    assert abs(metrics["onnx"]["accuracy"] - metrics["onnx_deployed"]["accuracy"]) <= 0.002
    parity = json.loads((run / "parity.json").read_text())
    assert parity["passed"] and parity["fused"]["codes"] > 1_000_000 and parity["fused"]["max_difference"] <= 1
    result = tfqat_command("export", run, "-o", tmp_path / "again.onnx")
    assert result.code == 0, result.err
    assert onnx.load(tmp_path / "again.onnx").graph == onnx.load(run / "model.onnx").graph  # in the form of its recipe
    result = tfqat_command("export", run, "-o", tmp_path / "other.onnx", "--layout", "nhwc")
    assert result.code == 0 and onnx.load(tmp_path / "other.onnx").graph.input[0].type.tensor_type.shape.dim[3].dim_value == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["float.keras"], "float.keras is a float model: quantize and calibrate it first"),
        (["nothing.keras"], "model file nothing.keras does not exist"),
        (["float.keras", "--layout", "chw"], "layout: expected 'nhwc' or 'nchw'; got 'chw'"),
        (["float.keras", "--opset", "0"], "opset: expected at least 13; got 0"),
        (["float.keras", "--opset", "24"], "opset: expected at most 23; got 24"),
        (["float.keras", "--size", "5,x"], "size.1: expected a whole number; got 'x'"),
        (["float.keras", "--target", "onnx"], "target: expected 'tensorrt' or 'onnxruntime'; got 'onnx'"),
        (["float.keras", "--remainder", "half"], "remainder: expected 'float32' or 'float16'; got 'half'"),
        (["float.keras", "--weights", "int4"], "weights: expected 'int8' or 'float'; got 'int4'"),
        (["float.keras", "--mean", "1,x"], "pixels.mean.1: expected a number; got 'x'"),
        (["float.keras", "--std", "0"], "pixels.std.0: expected more than 0.0; got 0"),
    ],
)
def test_wrong_input(
    arguments: list[str], message: str, tiny_project: Path, tfqat_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_project)
    result = tfqat_command("export", *arguments)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err
    assert not (tiny_project / "model.onnx").exists()


def test_bench(tiny_run: Any, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    graphs = (tiny_run.directory / "model.onnx", "--against", tiny_run.directory / "float.onnx")
    result = tfqat_command("bench", *graphs, "--batch", 1, "--batch", 4, "--rounds", 5, "--plot", tmp_path / "speed.svg")
    assert result.code == 0, result.err
    assert "examples/s" in result.out and "to the reference" in result.out and result.out.count("model.onnx") == 2
    assert (tmp_path / "speed.svg").read_text().startswith("<svg")
    rows = json.loads(tfqat_command("bench", *graphs, "--batch", 2, "--rounds", 3, "--json").out)
    assert [row["model"] for row in rows] == ["model.onnx", "float.onnx"] and rows[0]["ratio"] > 0 and rows[1]["ratio"] is None
    result = tfqat_command("bench", tmp_path / "nothing.onnx")
    assert result.code == 2 and "nothing.onnx is not a file; expected an ONNX model" in result.err


@pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="needs TensorRT for RTX")
def test_from_a_saved_model_to_an_engine(tiny_quantized: Any, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    import tfqat

    tfqat.export_saved_model(tiny_quantized, tmp_path / "served")
    result = tfqat_command("compile", tmp_path / "served", "-o", tmp_path / "model.plan", "--target", "SM86")
    assert result.code == 0, result.err
    assert "5 of 5 convolutions and matrix products run Int8 x Int8" in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.sm86.plan", "model.sm86.plan.json", "served"]


def test_a_run_goes_into_a_triton_repository(tiny_run: Any, tfqat_command: Callable[..., Any], tmp_path: Path) -> None:
    for options in (("--batch", 4), ("--batch", 4, "-o", tmp_path / "kept.onnx", "--external-data")):
        result = tfqat_command("export", tiny_run.directory, "--triton", tmp_path / "repository", *options)
        assert result.code == 0, result.err
    assert "repository/tiny/2/model.onnx: version 2 of tiny, no batching, as its batch is fixed" in result.out
    config = (tmp_path / "repository" / "tiny" / "config.pbtxt").read_text()
    assert "dims: [ 4, 12, 12, 1 ]" in config and "max_batch_size: 0" in config
    images = np.random.default_rng(0).uniform(0, 1, (6, 12, 12, 1))
    found = [load_engine(tmp_path / "repository" / "tiny" / version / "model.onnx").predict(images) for version in "12"]
    np.testing.assert_array_equal(*found)
    assert found[0].shape == (6, 4) and not Path("model.onnx").exists()
