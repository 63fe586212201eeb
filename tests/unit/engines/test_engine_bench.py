"""`bench`: what it runs, in which order, and the figures that it makes of the times."""

from __future__ import annotations

import statistics
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tfqat.engines import bench as module
from tfqat.engines.bench import available, bench
from tfqat.errors import EngineError
from tfqat.report.bench_figure import throughput

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[{batch}, 4] x) => (float[{batch}, 4] y) {{ y = Relu(x) }}'


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, batch: str = "N") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        onnx.save(onnx.parser.parse_model(TEXT.format(batch=batch)), str(path))
        return path

    return make


def test_graphs_take_turns_and_the_figures_are_those_of_their_times(graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = graph("one.onnx"), graph("other.onnx")
    rng = np.random.default_rng(0)
    seconds = {"one.onnx": rng.uniform(0.001, 0.003, 12).tolist(), "other.onnx": rng.uniform(0.002, 0.004, 12).tolist()}
    clock, ran = [0.0], []
    names: dict[int, str] = {}
    session = module.runtime.session

    def named(path: Path, **settings: Any) -> Any:
        made = session(path, **settings)
        names[id(made)] = path.name
        return made

    def execute(one: Any, feed: Any) -> list[Any]:
        ran.append((names[id(one)], next(iter(feed.values())).shape))
        clock[0] += seconds[ran[-1][0]][sum(name == ran[-1][0] for name, _ in ran) - 1]
        return []

    monkeypatch.setattr(module.runtime, "session", named)
    monkeypatch.setattr(module.runtime, "execute", execute)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(module, "available", lambda: {"cpu": "CPUExecutionProvider"})
    timings = bench(one, other, batches=[3], rounds=10, warmup=2)
    assert {shape for _, shape in ran} == {(3, 4)} and len(ran) == 24
    assert [name for name, _ in ran[:4]] == ["other.onnx", "one.onnx", "one.onnx", "other.onnx"]
    mine, theirs = ([1e3 * value for value in seconds[name][2:]] for name in ("one.onnx", "other.onnx"))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    first, second = timings
    assert (first.model, first.runtime, first.batch) == ("one.onnx", "cpu", 3)
    assert first.median_ms == pytest.approx(statistics.median(mine)) and first.throughput == pytest.approx(3e3 / statistics.median(mine))
    assert first.p95_ms == pytest.approx(float(np.percentile(mine, 95)))
    assert first.ratio == pytest.approx(statistics.median(ratios))
    assert first.ratio_spread is not None and first.ratio_spread[0] < first.ratio < first.ratio_spread[1]
    assert second.ratio is None


def test_on_this_machine(graph: Callable[..., Path]) -> None:
    timings = bench(graph("a/model.onnx"), graph("b/model.onnx"), batches=[1, 4], rounds=5)
    assert [(one.model, one.batch) for one in timings if one.runtime == "cpu"] == [
        ("a/model.onnx", 1),
        ("b/model.onnx", 1),
        ("a/model.onnx", 4),
        ("b/model.onnx", 4),
    ]
    assert all(0 < one.median_ms <= one.p95_ms for one in timings) and "cpu" in available()
    picture = throughput(timings)
    assert picture.startswith("<svg xmlns=") and "a/model.onnx, cpu" in picture and picture.count("<path") == 2 * len(available())


def test_a_fixed_batch_size_is_the_one_that_is_timed(graph: Callable[..., Path]) -> None:
    assert {one.batch for one in bench(graph("fixed.onnx", "8"), rounds=2)} == {8}


def test_wrong_input(graph: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"fixed batch sizes \[4, 8\], and cannot be compared"):
        bench(graph("four.onnx", "4"), graph("eight.onnx", "8"), rounds=2)
    with pytest.raises(EngineError, match=r"at least 2 rounds and batch sizes from 1; got 1 rounds"):
        bench(graph("one.onnx"), rounds=1)
    with pytest.raises(EngineError, match=r"nothing\.onnx is not a file"):
        bench(tmp_path / "nothing.onnx")
