"""The command lines of NVIDIA's tools, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfqat.engines.commands import command_lines

PROFILE = {"image": ((1, 8, 8), (4, 16, 8), (8, 32, 8)), "x:0": ((1, 2), (4, 2), (8, 2))}
TRTEXEC_SHAPES = (
    """'--minShapes=image:1x8x8,'"'"'x:0'"'"':1x2' '--optShapes=image:4x16x8,'"'"'x:0'"'"':4x2' """
    """'--maxShapes=image:8x32x8,'"'"'x:0'"'"':8x2'"""
)
POLYGRAPHY_SHAPES = (
    "--trt-min-shapes 'image:[1,8,8]' 'x:0:[1,2]' --trt-opt-shapes 'image:[4,16,8]' 'x:0:[4,2]' "
    "--trt-max-shapes 'image:[8,32,8]' 'x:0:[8,2]'"
)


def lines(version: str, **options: Any) -> tuple[str, ...]:
    return command_lines(version, Path("m.onnx"), Path("out/m.plan"), **{"compute_capability": None, "profile": {}} | options)


@pytest.mark.parametrize(
    ("version", "options", "trtexec", "polygraphy"),
    [
        ("8.6.1", {}, "--int8 --profilingVerbosity=detailed", "--int8 --profiling-verbosity detailed"),
        ("8.6.1", {"fp16": True}, "--int8 --fp16 --profilingVerbosity=detailed", "--int8 --fp16 --profiling-verbosity detailed"),
        ("10.9.0", {}, "--stronglyTyped --profilingVerbosity=detailed", "--strongly-typed --profiling-verbosity detailed"),
        ("11.4.1", {}, "--profilingVerbosity=detailed", "--profiling-verbosity detailed"),
        (
            "11.4.1",
            {"profile": PROFILE},
            f"{TRTEXEC_SHAPES} --profilingVerbosity=detailed",
            f"{POLYGRAPHY_SHAPES} --profiling-verbosity detailed",
        ),
        (
            "10.9.0",
            {"timing_cache": Path("t.cache")},
            "--stronglyTyped --profilingVerbosity=detailed --timingCacheFile=t.cache",
            "--strongly-typed --profiling-verbosity detailed --load-timing-cache t.cache --save-timing-cache t.cache",
        ),
    ],
    ids=["8.6", "8.6 half", "10", "11", "11 shapes", "10 timing cache"],
)
def test_tensorrt(version: str, options: dict[str, Any], trtexec: str, polygraphy: str) -> None:
    assert lines(version, **options) == (
        f"trtexec --onnx=m.onnx --saveEngine=out/m.plan {trtexec} --skipInference",
        f"polygraphy convert m.onnx -o out/m.plan {polygraphy}",
    )


def test_tensorrt_for_rtx() -> None:
    profile = {"image": ((1, 8), (4, 8), (8, 8))}
    assert lines("1.7.1.116", compute_capability="SM120", profile=profile) == (
        "tensorrt_rtx --onnx=m.onnx --saveEngine=out/m.plan --computeCapabilities=120 --minShapes=image:1x8 --optShapes=image:4x8 "
        "--maxShapes=image:8x8 --skipInference",
    )


def test_names_with_spaces_are_quoted() -> None:
    (line,) = command_lines("1.7", Path("my model.onnx"), Path("m.plan"), compute_capability="SM86", profile={})
    assert line == "tensorrt_rtx '--onnx=my model.onnx' --saveEngine=m.plan --computeCapabilities=86 --skipInference"
