"""The adapter of TensorRT 8.6, 10, 11 and TensorRT for RTX against the recorded surface of each: a name that is not recorded is an error.

Nothing here runs TensorRT; the last test compares the recorded surface of TensorRT for RTX with the installed package.
"""

from __future__ import annotations

import enum
import importlib
import io
import json
import os
import types
from pathlib import Path
from typing import Any

import pytest

from tfqat.engines import tensorrt_rtx, worker

SURFACES = Path(__file__).parent / "surfaces"
ENUMS = ("NetworkDefinitionCreationFlag", "BuilderFlag", "ProfilingVerbosity", "LayerInformationFormat", "ComputeCapability")
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("OnnxParser", "get_error"): "ParserError",
}
ANSWERS: dict[tuple[str, str], Any] = {
    ("OnnxParser", "parse_from_file"): True,
    ("Builder", "build_serialized_network"): b"plan",
    ("IBuilderConfig", "set_timing_cache"): True,
    ("ITimingCache", "serialize"): b"new timings",
    ("EngineInspector", "get_engine_information"): '{"Layers": []}',
    ("ParserError", "desc"): "no such operator",
    ("ParserError", "node"): 4,
    ("ParserError", "node_name"): "stem",
    ("ParserError", "node_operator"): "Conv",
}
PROPERTIES = {("OnnxParser", "num_errors"): 1}


class Recorded:
    """A module with the classes of a surface, that writes down what is called and set."""

    def __init__(self, surface: str, answers: dict[tuple[str, str], Any] | None = None) -> None:
        data = json.loads((SURFACES / f"{surface}.json").read_text())
        self.calls: list[tuple[str, str, Any]] = []
        self.answers = ANSWERS | (answers or {})
        self.module = types.SimpleNamespace(__version__=data["version"])
        for name, members in data["classes"].items():
            made = enum.IntEnum(name, members, start=0) if name in ENUMS else self._class(name, members)
            setattr(self.module, name, made)

    def _class(self, name: str, members: list[str]) -> type:
        def assign(instance: Any, attribute: str, value: Any) -> None:
            if attribute not in members:
                raise AttributeError(f"{name} has no attribute {attribute!r}")
            self.calls.append((name, attribute, value))

        body: dict[str, Any] = {member: self._member(name, member) for member in members}
        if name != "ILogger":  # which is there to be extended
            body["__setattr__"] = assign
        return type(name, (), {**body, "__init__": lambda instance, *arguments: None})

    def _member(self, name: str, member: str) -> Any:
        if (name, member) in PROPERTIES:
            return property(lambda instance: PROPERTIES[name, member])

        def call(instance: Any, *arguments: Any) -> Any:
            self.calls.append((name, member, arguments))
            made = RETURNS.get((name, member))
            return getattr(self.module, made)() if made and (name, member) not in self.answers else self.answers.get((name, member))

        return call

    def made(self, *names: str) -> list[tuple[str, Any]]:
        """The calls of some functions and what some properties were set to, in order; objects stand as the names of their classes."""
        plain = lambda value: type(value).__name__ if type(value).__name__ in vars(self.module) and not isinstance(value, int) else value  # noqa: E731
        return [
            (name, tuple(map(plain, value)) if isinstance(value, tuple) else plain(value)) for _, name, value in self.calls if name in names
        ]


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    profile = {"image": [[1, 12], [8, 12], [32, 12]]}
    return {
        "onnx_path": "model.onnx",
        "plan_path": str(folder / "model.plan"),
        "compute_capability": None,
        "profile": profile,
        "fp16": False,
        "timing_cache": None,
        "timing_cache_out": None,
    } | changes


def run(recorded: Recorded, folder: Path, **changes: Any) -> dict[str, Any]:
    return worker.build(job(folder, **changes), recorded.module, io.StringIO())


@pytest.mark.parametrize(
    ("surface", "network", "flags"),
    [
        ("tensorrt_8.6", "EXPLICIT_BATCH", ["INT8"]),
        ("tensorrt_10", "STRONGLY_TYPED", []),
        ("tensorrt_11", "STRONGLY_TYPED", []),
        ("tensorrt_rtx_1.7", "STRONGLY_TYPED", []),
    ],
)
def test_the_flags_of_each_version(tmp_path: Path, surface: str, network: str, flags: list[str]) -> None:
    recorded = Recorded(surface)
    result = run(recorded, tmp_path)
    assert (result["built"], result["refused"], (tmp_path / "model.plan").read_bytes()) == (True, "", b"plan")
    creation, builder = recorded.module.NetworkDefinitionCreationFlag, recorded.module.BuilderFlag
    assert recorded.made("create_network") == [("create_network", (1 << creation[network],))]
    assert recorded.made("set_flag") == [("set_flag", (builder[flag],)) for flag in flags]
    assert recorded.made("profiling_verbosity") == [("profiling_verbosity", recorded.module.ProfilingVerbosity.DETAILED)]


@pytest.mark.parametrize("surface", ["tensorrt_8.6", "tensorrt_10", "tensorrt_11", "tensorrt_rtx_1.7"])
def test_the_profile_is_the_same_in_all_versions(tmp_path: Path, surface: str) -> None:
    recorded = Recorded(surface)
    run(recorded, tmp_path)
    assert recorded.made("set_shape", "add_optimization_profile") == [
        ("set_shape", ("image", (1, 12), (8, 12), (32, 12))),
        ("add_optimization_profile", ("IOptimizationProfile",)),
    ]
    without = Recorded(surface)
    run(without, tmp_path, profile={})
    assert without.made("create_optimization_profile", "add_optimization_profile", "set_input_shape") == []


def test_half_precision_is_a_flag_of_8_and_refused_by_the_others(tmp_path: Path) -> None:
    recorded = Recorded("tensorrt_8.6")
    run(recorded, tmp_path, fp16=True)
    flags = recorded.module.BuilderFlag
    assert recorded.made("set_flag") == [("set_flag", (flags.INT8,)), ("set_flag", (flags.FP16,))]
    for surface in ("tensorrt_10", "tensorrt_11", "tensorrt_rtx_1.7"):
        result = run(Recorded(surface), tmp_path / "no", fp16=True)
        assert (result["built"], result["refused"][:24]) == (False, "fp16 is for TensorRT 8: "), surface


@pytest.mark.parametrize("surface", ["tensorrt_8.6", "tensorrt_10", "tensorrt_11"])
def test_a_timing_cache_is_read_used_and_left(tmp_path: Path, surface: str) -> None:
    (tmp_path / "old").write_bytes(b"old timings")
    recorded, files = Recorded(surface), {"timing_cache": str(tmp_path / "old"), "timing_cache_out": str(tmp_path / "new")}
    assert run(recorded, tmp_path, **files)["built"]
    assert recorded.made("create_timing_cache", "set_timing_cache", "build_serialized_network", "serialize") == [
        ("create_timing_cache", (b"old timings",)),
        ("set_timing_cache", ("ITimingCache", False)),
        ("build_serialized_network", ("INetworkDefinition", "IBuilderConfig")),
        ("serialize", ()),
    ]
    assert (tmp_path / "new").read_bytes() == b"new timings"
    assert (tmp_path / "old").read_bytes() == b"old timings"


@pytest.mark.parametrize("answers", [{("IBuilderConfig", "set_timing_cache"): False}, {("IBuilderConfig", "create_timing_cache"): None}])
def test_a_timing_cache_that_does_not_fit_is_refused_before_the_build(tmp_path: Path, answers: dict[tuple[str, str], Any]) -> None:
    recorded = Recorded("tensorrt_10", answers)
    result = run(recorded, tmp_path, timing_cache_out=str(tmp_path / "new"))
    assert result["refused"].startswith("the timing cache is of another GPU, another TensorRT or is damaged; delete it")
    assert recorded.made("build_serialized_network") == []
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_for_rtx_has_no_timing_cache_although_it_has_the_functions(tmp_path: Path) -> None:
    recorded = Recorded("tensorrt_rtx_1.7")
    assert hasattr(recorded.module.IBuilderConfig, "create_timing_cache")
    result = run(recorded, tmp_path, timing_cache_out=str(tmp_path / "new"))
    assert result["refused"].startswith("TensorRT for RTX times nothing while it builds")
    assert recorded.made("create_timing_cache") == []


@pytest.mark.parametrize("surface", ["tensorrt_8.6", "tensorrt_10", "tensorrt_11"])
def test_the_inspector_is_asked_for_the_optimal_shapes(tmp_path: Path, surface: str) -> None:
    recorded = Recorded(surface)
    assert run(recorded, tmp_path)["inspector"] == '{"Layers": []}'
    assert recorded.made("deserialize_cuda_engine", "set_input_shape", "execution_context", "get_engine_information") == [
        ("deserialize_cuda_engine", (b"plan",)),
        ("set_input_shape", ("image", (8, 12))),
        ("execution_context", "IExecutionContext"),
        ("get_engine_information", (recorded.module.LayerInformationFormat.JSON,)),
    ]


def test_tensorrt_for_rtx_gets_its_target_and_loads_no_engine(tmp_path: Path) -> None:
    recorded = Recorded("tensorrt_rtx_1.7")
    assert run(recorded, tmp_path, compute_capability="SM89")["inspector"] == ""
    assert recorded.made("num_compute_capabilities", "set_compute_capability", "deserialize_cuda_engine") == [
        ("num_compute_capabilities", 1),
        ("set_compute_capability", (recorded.module.ComputeCapability.SM89, 0)),
    ]


@pytest.mark.parametrize(
    ("surface", "error"),
    [
        ("tensorrt_8.6", {"node": "", "op": "", "message": "node number 4 of the graph: no such operator"}),
        ("tensorrt_10", {"node": "stem", "op": "Conv", "message": "no such operator"}),
    ],
)
def test_parser_errors(tmp_path: Path, surface: str, error: dict[str, str]) -> None:
    result = run(Recorded(surface, {("OnnxParser", "parse_from_file"): False}), tmp_path)
    assert (result["built"], result["errors"]) == (False, [error])


def test_an_engine_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    result = run(Recorded("tensorrt_10"), tmp_path, plan_path=str(tmp_path / "no" / "model.plan"))
    assert result["refused"].startswith("a file of the build cannot be read or written: [Errno 2]")


def test_an_unrecorded_name_is_an_error() -> None:
    config = Recorded("tensorrt_11").module.IBuilderConfig()
    with pytest.raises(AttributeError, match="int8_calibrator"):
        config.int8_calibrator = None
    assert not hasattr(config, "set_compute_capability")


def used() -> set[tuple[str, str]]:
    """Every member that a build calls, sets or asks for, with all options, in any version."""
    found = {("IBuilderConfig", "set_compute_capability"), ("ParserError", "node_name")}
    found |= {("NetworkDefinitionCreationFlag", flag) for flag in ("STRONGLY_TYPED", "EXPLICIT_BATCH")}
    found |= {("BuilderFlag", "INT8"), ("BuilderFlag", "FP16"), ("ProfilingVerbosity", "DETAILED"), ("ComputeCapability", "SM86")}
    for surface, options in (("tensorrt_8.6", {"fp16": True}), ("tensorrt_10", {}), ("tensorrt_rtx_1.7", {"compute_capability": "SM86"})):
        for parses in (True, False):
            recorded = Recorded(surface, {("OnnxParser", "parse_from_file"): parses})
            worker.build(job(Path(), plan_path=os.devnull, **options), recorded.module, io.StringIO())
            found |= {(owner, member) for owner, member, _ in recorded.calls}
    return found


@pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="not compared: TensorRT for RTX is not installed")
def test_the_recorded_surface_of_tensorrt_for_rtx_is_the_installed_one() -> None:
    installed = importlib.import_module(tensorrt_rtx.RTX.module)
    recorded = json.loads((SURFACES / "tensorrt_rtx_1.7.json").read_text())["classes"]
    names = used()
    assert len(names) > 25
    for owner, member in names:
        assert hasattr(getattr(installed, owner), member) == (member in recorded[owner]), (owner, member)
