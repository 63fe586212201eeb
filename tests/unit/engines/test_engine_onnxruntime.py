"""ONNX Runtime: literal and fused sessions, batches, latency, and the CPU flags that decide whether fused kernels saturate."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from tfqat.engines import onnxruntime as engine
from tfqat.engines.onnxruntime import cpu_has_vnni, latency_ms, run_batches, session
from tfqat.errors import EngineError

# Scale 0.5, codes clipped to [-128, 127]; the fused graph drops the pair Q, DQ only if optimization is on.
ROUND = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y)
<float s = {0.5}, int8 z = {0}>
{
   q = QuantizeLinear(x, s, z)
   y = DequantizeLinear(q, s, z)
}
"""
TWO = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2] a, float[N, 2] b) => (float[N, 2] sum, float[N, 2] difference)
{
   sum = Add(a, b)
   difference = Sub(a, b)
}
"""


def serialized(text: str) -> bytes:
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def test_batches_are_joined_and_codes_round_half_to_even() -> None:
    batches = [np.array([[0.25, 0.75]]), np.array([[100.0, -100.0], [0.3, -0.3]], np.float32)]
    result = run_batches(session(serialized(ROUND), literal=True), batches)
    np.testing.assert_array_equal(result, np.array([[0.0, 1.0], [63.5, -64.0], [0.5, -0.5]], np.float32))


def test_two_outputs_come_as_a_tuple_and_inputs_by_order_or_name() -> None:
    one, two = np.full((1, 2), 3.0), np.full((1, 2), 1.0)
    batches = [(one, two), {"b": one, "a": two}]
    total, difference = run_batches(session(serialized(TWO), literal=False), batches)
    np.testing.assert_array_equal(total, [[4, 4], [4, 4]])
    np.testing.assert_array_equal(difference, [[2, 2], [-2, -2]])


@pytest.mark.parametrize("batch", [np.zeros((1, 2)), (np.zeros((1, 2)),), {"a": np.zeros((1, 2)), "c": np.zeros((1, 2))}])
def test_a_batch_with_other_inputs_is_refused(batch: object) -> None:
    with pytest.raises(EngineError, match=r"does not fit the inputs \['a', 'b'\]"):
        run_batches(session(serialized(TWO), literal=True), [batch])


def test_a_batch_of_another_shape_is_refused() -> None:
    with pytest.raises(EngineError, match="cannot run a batch"):
        run_batches(session(serialized(ROUND), literal=True), [np.zeros((1, 3))])


def test_no_batch_is_refused() -> None:
    with pytest.raises(EngineError, match="there is no batch"):
        run_batches(session(serialized(ROUND), literal=True), [])


@pytest.mark.parametrize("literal", [True, False])
def test_the_optimization_level_of_a_session(literal: bool) -> None:
    import onnxruntime as ort

    expected = ort.GraphOptimizationLevel.ORT_DISABLE_ALL if literal else ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert session(serialized(ROUND), literal=literal).get_session_options().graph_optimization_level == expected


def test_a_missing_or_broken_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is not a file"):
        session(tmp_path / "model.onnx", literal=True)
    (tmp_path / "model.onnx").write_bytes(b"hello world")
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        session(tmp_path / "model.onnx", literal=True)


def test_latency_is_measured_for_each_model(tmp_path: Path) -> None:
    paths = {"round": tmp_path / "round.onnx", "two": tmp_path / "two.onnx"}
    paths["round"].write_bytes(serialized(ROUND))
    paths["two"].write_bytes(serialized(TWO))
    result = latency_ms(paths, repeats=3, warmup=1, batch=2)
    assert list(result) == ["round", "two"]
    assert all(0 < value < 1000 for value in result.values())


def test_models_take_turns_and_the_median_leaves_out_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = [0.0]
    seconds = {"a": iter([9, 9, 0.001, 0.002, 0.009]), "b": iter([9, 9, 0.004, 0.004, 0.001])}

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def get_inputs(self) -> list[types.SimpleNamespace]:
            return [types.SimpleNamespace(name="x", shape=["N", 2], type="tensor(float)")]

        def run(self, outputs: None, feed: dict[str, np.ndarray]) -> None:
            assert feed["x"].shape == (4, 2)
            order.append(self.name)
            clock[0] += next(seconds[self.name])

    monkeypatch.setattr(engine, "session", lambda path, literal: Session(path.name))
    monkeypatch.setattr(engine, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    result = latency_ms({"one": Path("a"), "two": Path("b")}, repeats=3, warmup=2, batch=4)
    assert result == {"one": pytest.approx(2.0), "two": pytest.approx(4.0)}
    assert order == ["a", "b"] * 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags\t\t: fpu avx_vnni\nflags\t\t: fpu\n", True),
        ("flags\t\t: fpu avx2 avx512_vnni_other\n", False),
        ("Features\t: fp asimd\n", None),
    ],
)
def test_the_flag_of_vnni(tmp_path: Path, text: str, expected: bool | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_vnni(tmp_path / "cpuinfo") is expected


def test_a_machine_without_cpuinfo_is_unknown(tmp_path: Path) -> None:
    assert cpu_has_vnni(tmp_path / "cpuinfo") is None
