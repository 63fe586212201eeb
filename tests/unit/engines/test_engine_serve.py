"""`load_engine` on real graphs in ONNX Runtime: batching, types, what does not fit, threads, and no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tfqat.engines import onnxruntime as ort_runtime
from tfqat.engines import sessions
from tfqat.engines.serve import Engine, load_engine
from tfqat.errors import EngineError
from tfqat.form import Form, Pixels

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '
MEAN = "({type}[{batch}, {shape}] x) => (float[{batch}, C] y) {{ f = Cast<to=1>(x) y = ReduceMean<axes=[{axes}], keepdims=0>(f) }}"
TWO = "(float[N, 2] a, float[N, 2] b) => (float[N, 2] sum, float[N, 2] difference) { sum = Add(a, b) difference = Sub(a, b) }"
# Codes of scale 0.5: literal rounds twice, and so does the fused graph.
ROUND = "(float[N, 2] x) => (float[N, 2] y) <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"


def mean(batch: str = "N", shape: str = "3, 4, 5", axes: str = "2, 3", type: str = "float") -> str:
    return MEAN.format(batch=batch, shape=shape, axes=axes, type=type)


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str, form: Form = Form()) -> Path:  # noqa: B008
        model = onnx.parser.parse_model(HEAD + text)
        onnx.helper.set_model_props(model, form.to_metadata())
        onnx.save(model, str(tmp_path / "model.onnx"))
        return tmp_path / "model.onnx"

    return make


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Spy:
    """A runner that notes the shapes of what it runs."""

    def __init__(self, engine: Engine) -> None:
        self.runner, self.shapes = engine._runner, []  # type: ignore[var-annotated]
        engine._runner = self  # type: ignore[assignment]

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.shapes.append(next(iter(feed.values())).shape)
        assert self.runner is not None
        return self.runner.run(dict(feed))


@pytest.mark.parametrize(
    ("batch", "asked", "examples", "ran"),
    [
        ("N", None, 70, [32, 32, 6]),
        ("N", 25, 70, [25, 25, 20]),
        ("N", None, 1, [1]),
        ("N", None, 0, [1]),
        ("4", None, 10, [4, 4, 4]),
        ("4", 4, 4, [4]),
        ("4", None, 0, [4]),
    ],
)
def test_any_number_of_examples_in_parts(graph: Callable[..., Path], batch: str, asked: int | None, examples: int, ran: list[int]) -> None:
    engine = load_engine(graph(mean(batch)), batch_size=asked)
    spy, x = Spy(engine), normal(examples, 3, 4, 5)
    result = engine.predict(x)
    assert result.shape == (examples, 3) and result.dtype == np.float32
    np.testing.assert_allclose(result, x.mean((2, 3)), atol=1e-6)
    assert [shape[0] for shape in spy.shapes] == ran


def test_what_it_takes_and_gives(graph: Callable[..., Path]) -> None:
    with load_engine(graph(TWO)) as engine:
        assert [str(one) for one in engine.inputs] == ["'a' float32 [?, 2]", "'b' float32 [?, 2]"]
        assert [one.name for one in engine.outputs] == ["sum", "difference"]
        assert (engine.runtime, engine.batch_size) == ("cpu", 32)
        a, b = normal(40, 2), normal(40, 2)[::-1]
        for given in ((a, b), [a, b], {"b": b, "a": a}):
            found = engine.predict(given)
            assert list(found) == ["sum", "difference"]
            np.testing.assert_array_equal(found["difference"], a - b)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed: load it again"):
        engine.predict((a, b))


@pytest.mark.parametrize(
    ("type", "given", "expected"),
    [
        ("float", np.float64, None),
        ("float", np.float16, None),
        ("uint8", np.uint8, None),
        ("uint8", np.int64, None),
        ("float16", np.float32, None),
        ("float", np.uint8, r"input 'x' has the type uint8; expected 'x' float32 \[\?, 3, 4, 5\]; normalize pixels as the training data"),
        ("float", np.int32, r"has the type int32; expected .*; convert it with \.astype\('float32'\) if the numbers are"),
        ("uint8", np.float32, r"has the type float32; expected 'x' uint8 .*; the graph takes pixels .* by mean \[1\.0\] and std \[2\.0\]"),
        ("float", np.bool_, "has the type bool"),
    ],
)
def test_types(graph: Callable[..., Path], type: str, given: Any, expected: str | None) -> None:
    pixels = Pixels(mean=(1.0,), std=(2.0,)) if type == "uint8" else None
    engine = load_engine(graph(mean(type=type), Form(pixels=pixels)))
    x = np.arange(2 * 60).reshape(2, 3, 4, 5).astype(given)
    if expected is None:
        np.testing.assert_allclose(engine.predict(x), x.astype(np.float64).mean((2, 3)))
    else:
        with pytest.raises(EngineError, match=expected):
            engine.predict(x)


def test_numbers_that_the_type_cannot_hold(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph(mean(type="uint8")))
    with pytest.raises(EngineError, match=r"input 'x' has values from -1 to 300; expected 'x' uint8 .*, as the model takes uint8"):
        engine.predict(np.array([-1, 300] * 30).reshape(1, 3, 4, 5))
    engine = load_engine(graph(mean(type="float16")))
    with pytest.raises(EngineError, match=r"input 'x' has values beyond float16"):
        engine.predict(np.full((1, 3, 4, 5), 1e5, np.float32))
    assert np.isinf(engine.predict(np.full((1, 3, 4, 5), np.inf, np.float32))).all()


NCHW = Form(layout="nchw")


@pytest.mark.parametrize(
    ("text", "form", "x", "message"),
    [
        (
            mean(),
            NCHW,
            normal(2, 4, 5, 3),
            r"has the shape \[2, 4, 5, 3\]; expected 'x' float32 \[\?, 3, 4, 5\], any number .* layout nchw\)",
        ),
        (mean(), Form(), normal(2, 4, 5, 3), r"takes channels first, and this array has them last: np\.moveaxis\(x, -1, 1\) would fit"),
        (mean(shape="4, 5, 3"), Form(), normal(2, 3, 4, 5), r"takes channels last.* first: np\.moveaxis\(x, 1, -1\) would fit"),
        (mean(shape="H, W, 3"), Form(), normal(2, 3, 9, 9), r"expected 'x' float32 \[\?, \?, \?, 3\].*np\.moveaxis\(x, 1, -1\) would fit"),
        (mean(), Form(), normal(2, 3, 4, 6), r"axis 3 does not fit"),
        (mean(), Form(), normal(2, 1, 4, 5), r"axis 1 does not fit"),
        (mean(), Form(), normal(3, 4, 5), r"one example needs a batch axis in front: x\[None\]"),
        (mean(), Form(), normal(4, 5), r"the rank is 2 instead of 4"),
        (mean(), Form(), [[1.0], [2.0, 3.0]], r"input 'x' is no array"),
        (TWO, Form(), {"a": normal(1, 2)}, r"input 'b' is missing: got \['a'\], expected 'a' float32 \[\?, 2\], 'b' float32"),
        (TWO, Form(), {"a": normal(1, 2), "b": normal(1, 2), "bb": 1}, r"there is no input 'bb'; expected 'a' .*; did you mean 'b'\?"),
        (TWO, Form(), normal(1, 2), r"got 1 arrays for 2 inputs; expected 'a' float32 \[\?, 2\], 'b' .*: give a tuple in this order"),
        (TWO, Form(), (normal(3, 2), normal(2, 2)), r"different numbers of examples: 'a' has 3, 'b' has 2"),
    ],
)
def test_what_does_not_fit(graph: Callable[..., Path], text: str, form: Form, x: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(graph(text, form)).predict(x)


def test_free_sizes(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph(mean(shape="3, H, W")))
    for side in (4, 7):
        x = normal(33, 3, side, side + 1)
        np.testing.assert_allclose(engine.predict(x), x.mean((2, 3)), atol=1e-6)
    with pytest.raises(EngineError, match=r"input 'x' float32 \[\?, 3, \?, \?\] has a free axis: give warmup an example"):
        engine.warmup()
    spy = Spy(engine)
    engine.warmup(2, normal(2, 3, 4, 4))
    assert spy.shapes == [(2, 3, 4, 4)] * 2


def test_warmup_runs_the_batch_that_predict_runs(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph(mean()), batch_size=16)
    spy = Spy(engine)
    engine.warmup(3)
    assert spy.shapes == [(16, 3, 4, 5)] * 3


def test_outputs_without_a_batch(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph("(float[N, 2] x) => (float[2] y) { y = ReduceMean<axes=[0], keepdims=0>(x) }"))
    with pytest.raises(EngineError, match=r"output 'y' has the shape \[2\] for a batch of 3: its first axis is not the batch"):
        engine.predict(normal(3, 2))
    engine = load_engine(graph("(float[2, 3] a, float[] b) => (float[2, 3] y) { y = Mul(a, b) }"))
    np.testing.assert_array_equal(engine.predict((np.ones((2, 3)), 3.0)), np.full((2, 3), 3))


def test_threads_get_what_one_after_the_other_get(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph(mean()), batch_size=3)
    inputs = [np.random.default_rng(seed).standard_normal((7, 3, 4, 5)) for seed in range(160)]
    expected = [engine.predict(x) for x in inputs]
    found: list[Any] = [None] * 160

    def work(thread: int) -> None:
        for turn in range(20):
            found[thread * 20 + turn] = engine.predict(inputs[thread * 20 + turn])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len({result.tobytes() for result in expected}) == 160
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "cdua"}, r"unknown runtime 'cdua'; expected auto, cpu, cuda, tensorrt, tensorrt_rtx; did you mean 'cuda'\?"),
        ({"runtime": "tensorrt"}, r"ONNX Runtime has no TensorrtExecutionProvider here; it has cpu"),
        ({"batch_size": 0}, r"batch_size must be 4 for this model; got 0"),
        ({"batch_size": 8}, r"batch_size must be 4 for this model; got 8"),
        ({"literal": True, "runtime": "cuda"}, r"literal is for the CPU; got the runtime 'cuda'"),
    ],
)
def test_wrong_options(graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(sessions, "available", lambda: {"cpu": "CPUExecutionProvider"})
    with pytest.raises(EngineError, match=message):
        load_engine(graph(mean("4")), **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.onnx", r"nothing\.onnx is not a file"),
        ("text.onnx", r"ONNX Runtime cannot load .*text\.onnx"),
        ("model.keras", r"model\.keras is neither an ONNX graph \(\.onnx\) nor a plan \(\.plan, \.engine, \.trt\)"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(EngineError, match=message):
        load_engine(tmp_path / name)


def test_a_provider_that_falls_back_to_the_cpu_is_not_taken_for_it(graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists a provider that its package has, and starts without it where the GPU is missing."""
    made, session = [], ort_runtime.session

    def fallen_back(path: Path, *, literal: bool, provider: str, threads: int | None) -> Any:
        made.append(provider)
        return session(path, literal=literal, threads=threads)

    monkeypatch.setattr(sessions, "available", lambda: dict(sessions.RUNTIMES))
    monkeypatch.setattr(ort_runtime, "session", fallen_back)
    path = graph(mean())
    assert load_engine(path).runtime == "cpu"
    assert made == [sessions.RUNTIMES[name] for name in ("tensorrt", "tensorrt_rtx", "cuda", "cpu")]
    with pytest.raises(EngineError, match=r"ONNX Runtime has CUDAExecutionProvider, but cannot start it and would fall back to the CPU"):
        load_engine(path, runtime="cuda")


def test_literal_and_threads_reach_the_session(graph: Callable[..., Path]) -> None:
    engine = load_engine(graph(ROUND), literal=True, threads=1)
    options = engine._runner._session.get_session_options()  # type: ignore[union-attr]
    assert options.intra_op_num_threads == 1 and options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    np.testing.assert_array_equal(engine.predict(np.array([[0.25, 0.75]])), [[0.0, 1.0]])


WITHOUT = """
import sys
import numpy as np
import tfqat
engine = tfqat.load_engine(sys.argv[1])
assert engine.predict(np.ones((5, 3, 4, 5))).tolist() == [[1.0] * 3] * 5
heavy = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "tf2onnx", "onnx", "pydantic")
sys.exit(" ".join(name for name in heavy if name in sys.modules) or 0)
"""


def test_it_predicts_without_tensorflow(graph: Callable[..., Path]) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, graph(mean())], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
