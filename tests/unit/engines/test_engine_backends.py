"""The choice of a backend, the arguments that are refused before a build, and the names of engines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

import tfqat
from tfqat.engines import build, compile, tensorrt, tensorrt_rtx
from tfqat.engines.build import plan_path
from tfqat.engines.options import BuildOptions
from tfqat.engines.report import EngineReport
from tfqat.engines.worker_process import Built, Job, timings_path
from tfqat.errors import EngineError

BUILT = EngineReport(backend="stub", version="1", status="built", message="")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    made = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(made, {"tfqat.recipe_hash": "abc", "producer": "someone"})
    onnx.save(made, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, dict[str, Any]]]:
    made: list[tuple[str, Path, dict[str, Any]]] = []
    for module in (tensorrt, tensorrt_rtx):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "build", lambda source, out, name=name, **options: made.append((name, out, options)) or BUILT)
    return made


def usable(monkeypatch: pytest.MonkeyPatch, *, full: bool, rtx: bool) -> None:
    monkeypatch.setattr(tensorrt, "is_available", lambda: (full, "full"))
    monkeypatch.setattr(tensorrt_rtx, "is_available", lambda: (rtx, "rtx"))


@pytest.mark.parametrize(
    ("backend", "full", "rtx", "chosen"),
    [
        ("auto", True, True, "tensorrt"),
        ("auto", False, True, "tensorrt_rtx"),
        ("tensorrt", False, True, "tensorrt"),
        ("tensorrt_rtx", True, False, "tensorrt_rtx"),
    ],
)
def test_the_backend_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, Path, dict[str, Any]]], backend: str, full: bool, rtx: bool, chosen: str
) -> None:
    usable(monkeypatch, full=full, rtx=rtx)
    assert compile.compile_engine("a/model.onnx", backend=backend, batch=(1, 2, 3)) is BUILT
    ((name, out, options),) = calls
    assert (name, out, options["options"].batch) == (chosen, Path("a/model.plan"), (1, 2, 3))


def test_without_a_backend_nothing_is_built_and_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    usable(monkeypatch, full=False, rtx=False)
    report = compile.compile_engine(model)
    assert (report.backend, report.status, report.targets) == ("none", "not_run", ())
    assert "`pip install tfqat[rtx]`" in report.message
    assert "\n" not in report.message


def test_without_a_backend_a_missing_model_is_still_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usable(monkeypatch, full=False, rtx=False)
    with pytest.raises(EngineError, match="is not a file"):
        compile.compile_engine(tmp_path / "model.onnx")


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(EngineError, match=r"unknown backend 'tensor_rtx'; .*did you mean 'tensorrt_rtx'\?"):
        compile.compile_engine("model.onnx", backend="tensor_rtx")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [(tensorrt, "FULL", r"TensorRT is not installed"), (tensorrt_rtx, "RTX", r"TensorRT for RTX is not usable .*pip install tfqat\[rtx\]")],
)
def test_a_backend_that_is_asked_for_and_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, model: Path, module: object, name: str, message: str
) -> None:
    import dataclasses

    monkeypatch.setattr(module, name, dataclasses.replace(getattr(module, name), module="tfqat_no_such_module"))
    with pytest.raises(EngineError, match=message):
        compile.compile_engine(model, backend=getattr(module, name).name)


def test_tensorrt_without_a_gpu_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.9"))
    monkeypatch.setattr(tensorrt, "gpu_visible", lambda: False)
    assert tensorrt.is_available() == (False, "TensorRT 10.9 is installed, but no NVIDIA GPU is visible to build with")
    monkeypatch.setattr(tensorrt, "gpu_visible", lambda: True)
    assert tensorrt.is_available() == (True, "10.9")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["SM87"], r"unknown compute capability 'SM87'; expected one of SM75, SM80, SM86.*did you mean"),
        ([], r"compute_capabilities must be a list"),
        ("SM86", r"compute_capabilities must be a list"),
    ],
)
def test_compute_capabilities_that_are_refused(monkeypatch: pytest.MonkeyPatch, model: Path, names: list[str], message: str) -> None:
    monkeypatch.setattr(tensorrt_rtx, "is_available", lambda: (True, "rtx"))
    with pytest.raises(EngineError, match=message):
        tensorrt_rtx.build(model, model.with_suffix(".plan"), compute_capabilities=names)


@pytest.mark.parametrize(
    ("out", "target", "path"),
    [
        ("run/model.plan", "SM86", "run/model.sm86.plan"),
        ("model.engine", "SM120", "model.sm120.engine"),
        ("model", "SM86", "model.sm86.plan"),
        ("mobilenet_v1.0", "SM86", "mobilenet_v1.0.sm86.plan"),
        ("model.plan", None, "model.plan"),
        ("mobilenet_v1.0", None, "mobilenet_v1.0.plan"),
    ],
)
def test_the_path_of_an_engine(out: str, target: str | None, path: str) -> None:
    assert plan_path(Path(out), target) == Path(path)


def test_doctor_gets_a_line_for_each_backend() -> None:
    lines = compile.usable_backends()
    assert list(lines) == ["tensorrt", "tensorrt_rtx", "onnxruntime"]
    assert "CPUExecutionProvider" in lines["onnxruntime"]


def test_every_option_reaches_the_backend(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, Path, dict[str, Any]]], tmp_path: Path
) -> None:
    usable(monkeypatch, full=True, rtx=False)
    shapes = {"x": ((1, 2), (2, 3), (4, 5))}
    compile.compile_engine("m.onnx", shapes=shapes, strict=True, timeout_s=5, timing_cache=tmp_path / "t.cache", fp16=True)
    assert calls[0][2]["options"] == BuildOptions(shapes=shapes, strict=True, timeout_s=5, timing_cache=tmp_path / "t.cache", fp16=True)


def test_a_strict_build_without_a_backend_is_an_error(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    usable(monkeypatch, full=False, rtx=False)
    with pytest.raises(EngineError, match=r"strict: no engine was built: neither TensorRT nor TensorRT for RTX is usable here"):
        compile.compile_engine(model, strict=True)


@pytest.mark.parametrize("cache", ["no/t.cache", "."])
def test_a_timing_cache_that_could_not_be_written_is_refused_before_the_build(tmp_path: Path, model: Path, cache: str) -> None:
    with pytest.raises(EngineError, match=r"a timing cache cannot be written to .*: give a file in a folder that exists"):
        compile.compile_engine(model, timing_cache=tmp_path / cache)


def test_the_timing_cache_and_the_metadata_of_tensorrt(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    """The build itself is replaced: TensorRT cannot run here."""

    def run_worker(job: Job, *, timeout_s: float) -> Built:
        job.plan_path.write_bytes(b"engine")
        timings_path(job.plan_path).write_bytes(b"timings")
        return Built(version="10.9.0", seconds=1.25, layers_message="", inspector="")

    monkeypatch.setattr(build, "run_worker", run_worker)
    options = BuildOptions(timing_cache=tmp_path / "t.cache")
    report = build.build_engines(tensorrt.FULL, model, tmp_path / "out" / "m.plan", (None,), options, gpu="NVIDIA A10")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m.plan", "m.plan.json"]
    assert (tmp_path / "t.cache").read_bytes() == b"timings"
    assert [line.split()[0] for line in report.commands] == ["trtexec", "polygraphy"]
    assert json.loads((tmp_path / "out" / "m.plan.json").read_text()) == {
        "onnx": {"file": "model.onnx", "sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "metadata": {"tfqat.recipe_hash": "abc"}},
        "engine": {"file": "m.plan", "sha256": hashlib.sha256(b"engine").hexdigest(), "size_bytes": 6},
        "backend": "tensorrt",
        "version": "10.9.0",
        "target": "this machine's GPU",
        "gpu": "NVIDIA A10",
        "tfqat": tfqat.__version__,
        "profile": {"x": [[1, 4], [8, 4], [32, 4]]},
        "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 4]}],
        "seconds": 1.25,
    }


def test_a_timing_cache_that_cannot_be_written_leaves_no_engine(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    def run_worker(job: Job, *, timeout_s: float) -> Built:
        job.plan_path.write_bytes(b"engine")
        timings_path(job.plan_path).write_bytes(b"timings")
        (tmp_path / "t").rmdir()
        return Built(version="10.9.0", seconds=1.25, layers_message="", inspector="")

    (tmp_path / "t").mkdir()
    monkeypatch.setattr(build, "run_worker", run_worker)
    with pytest.raises(EngineError, match=r"cannot write .*t/t\.cache"):
        build.build_engines(
            tensorrt.FULL, model, tmp_path / "out" / "m.plan", (None,), BuildOptions(timing_cache=tmp_path / "t" / "t.cache")
        )
    assert not (tmp_path / "out").exists()
