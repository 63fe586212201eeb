"""`tfqat verify A --against B`: exit codes, what is printed, and where the inputs come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def shifted(tiny_onnx: Path, tmp_path: Path) -> Path:
    """The graph with another bias in its second layer."""
    model = onnx.load(tiny_onnx)
    (tensor,) = (one for one in model.graph.initializer if one.name == "depthwise/bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), tensor.name))
    onnx.save(model, str(tmp_path / "shifted.onnx"))
    return tmp_path / "shifted.onnx"


def test_two_files(tiny_onnx: Path, shifted: Path, tfqat_command: Callable[..., Any]) -> None:
    same = tfqat_command("verify", tiny_onnx, "--against", tiny_onnx)
    assert same.code == 0
    assert "on 100 examples of standard normal noise, seed 0" in same.out and "100.00000%" in same.out and "failed" not in same.out
    other = tfqat_command("verify", tiny_onnx, "--against", shifted, "--examples", 20)
    assert other.code == 1
    assert "failed: first difference: 'depthwise_relu': constants differ: depthwise/bias" in other.out


def test_a_file_of_arrays_as_json(tiny_onnx: Path, shifted: Path, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).random((9, 12, 12, 1), np.float32))
    result = tfqat_command("verify", tiny_onnx, "--against", shifted, "--data", tmp_path / "x.npz", "--json")
    assert result.code == 1
    report = json.loads(result.out)
    assert (report["examples"], report["data"], report["passed"]) == (9, str(tmp_path / "x.npz"), False)
    assert report["first_difference"]["point"] == "depthwise_relu" and report["constants"] == ["depthwise/bias"]


def test_a_run_gives_its_graph_and_its_data(tiny_run: Any, tmp_path: Path, tfqat_command: Callable[..., Any]) -> None:
    other = tmp_path / "other.onnx"
    assert tfqat_command("export", tiny_run.directory, "-o", other, "--layout", "nchw", "--batch", 3, "--output", "scores").code == 0
    result = tfqat_command("verify", tiny_run.directory, "--against", other, "--examples", 70, "--json")
    assert result.code == 0, result.out
    report = json.loads(result.out)
    assert report["examples"] == 70 and "data.validation" in report["data"]
    assert report["first"] == str(tiny_run.directory.resolve() / "model.onnx")
    assert (report["codes"]["equal"], report["only_in_first"], report["only_in_second"]) == (1.0, [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{graph}"], "model.onnx is a file; expected the directory of a run. To compare two graphs: tfqat verify A.onnx --against B.onnx"),
        (["{graph}", "--against", "{tmp}/none.onnx"], "none.onnx does not exist"),
        (["{tmp}/none.onnx", "--against", "{graph}"], "none.onnx does not exist"),
        (["{tmp}", "--against", "{graph}"], "has no metrics.json: is it the directory of a run that came that far?"),
        (["{graph}", "--against", "{text}"], "is not an ONNX model"),
        (["{graph}", "--against", "{graph}", "--data", "{tmp}/none.npz"], "none.npz does not exist"),
        (["{graph}", "--data", "{text}"], "--data goes with --against"),
        (["{graph}", "--against", "{graph}", "--onnx", "{graph}"], "--onnx takes the place of a run's graph"),
        (["{graph}", "--max-drop", "-1"], "Invalid value for '--max-drop'"),
    ],
)
def test_wrong_input_ends_with_2(
    arguments: list[str], message: str, tiny_onnx: Path, tmp_path: Path, tfqat_command: Callable[..., Any]
) -> None:
    (tmp_path / "text").write_text("no graph")
    given = [one.format(graph=tiny_onnx, tmp=tmp_path, text=tmp_path / "text") for one in arguments]
    result = tfqat_command("verify", *given)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


def test_a_proof_fails_by_its_metrics_alone(tiny_run: Any) -> None:
    from tfqat.stages.metrics import MAX_DROP, GraphMetrics
    from tfqat.verify_run import Proof

    metrics = GraphMetrics(examples=1000, first="accuracy", **{name: {"accuracy": 0.926} for name in ("keras", "graph", "deployed")})
    proof = Proof(parity=tiny_run.parity, metrics=metrics)
    assert proof.passed and proof.failures == () and metrics.max_drop == MAX_DROP == 0.0002
    lost = dataclasses.replace(proof, metrics=dataclasses.replace(metrics, graph={"accuracy": 0.9257}))
    assert not lost.passed and lost.parity.passed
    (failure,) = lost.to_dict()["failures"]
    assert failure == "accuracy: Keras 0.9260, graph 0.9257 on 1000 examples; at most 0.0002 apart is allowed (--max-drop)"
    assert dataclasses.replace(metrics, graph={"accuracy": 0.9258}).failures == ()  # at the limit
