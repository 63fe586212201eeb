"""The command lines of NVIDIA's tools that build the same engine: trtexec and Polygraphy, or tensorrt_rtx of TensorRT for RTX."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tfqat.engines.profile import Profile, Shape


def command_lines(
    version: str,
    onnx_path: Path,
    engine: Path,
    *,
    compute_capability: str | None,
    profile: Profile,
    fp16: bool = False,
    timing_cache: Path | None = None,
) -> tuple[str, ...]:
    """What to type for one engine.

    Args:
        version: TensorRT's; 8 needs `--int8`, 10 is told to keep the types of the graph, and later ones always do.
        onnx_path, engine: The files.
        compute_capability: The target of TensorRT for RTX, such as SM86; None means TensorRT itself.
        profile: The shapes of the inputs with a free axis.
        fp16: Whether TensorRT 8 may use half precision.
        timing_cache: The timing cache.

    Returns:
        The command lines, quoted for a POSIX shell.
    """
    if compute_capability is not None:
        target = f"--computeCapabilities={compute_capability.removeprefix('SM')}"
        return (shlex.join(["tensorrt_rtx", *_files(onnx_path, engine), target, *_trtexec_shapes(profile), "--skipInference"]),)
    major = int(version.partition(".")[0])
    trtexec = {8: ["--int8", *(["--fp16"] if fp16 else [])], 10: ["--stronglyTyped"]}.get(major, [])
    polygraphy = {8: trtexec, 10: ["--strongly-typed"]}.get(major, [])
    cached = [f"--timingCacheFile={timing_cache}"] if timing_cache else []
    kept = ["--load-timing-cache", str(timing_cache), "--save-timing-cache", str(timing_cache)] if timing_cache else []
    shaped, convert = _trtexec_shapes(profile), ["polygraphy", "convert", str(onnx_path), "-o", str(engine)]
    return (
        shlex.join(["trtexec", *_files(onnx_path, engine), *trtexec, *shaped, "--profilingVerbosity=detailed", *cached, "--skipInference"]),
        shlex.join([*convert, *polygraphy, *_polygraphy_shapes(profile), "--profiling-verbosity", "detailed", *kept]),
    )


def _files(onnx_path: Path, engine: Path) -> list[str]:
    return [f"--onnx={onnx_path}", f"--saveEngine={engine}"]


def _trtexec_shapes(profile: Profile) -> list[str]:
    """`--minShapes=image:1x32x32x3 --optShapes=... --maxShapes=...`; a name with a colon or comma has single quotes of its own."""
    return [
        f"--{bound}Shapes=" + ",".join(f"{_quoted(name)}:{'x'.join(map(str, shapes[i]))}" for name, shapes in profile.items())
        for i, bound in enumerate(("min", "opt", "max"))
        if profile
    ]


def _polygraphy_shapes(profile: Profile) -> list[str]:
    """`--trt-min-shapes image:[1,32,32,3] --trt-opt-shapes ...`."""
    found: list[str] = []
    for i, bound in enumerate(("min", "opt", "max")):
        if profile:
            found += [f"--trt-{bound}-shapes", *(f"{name}:{_list(shapes[i])}" for name, shapes in profile.items())]
    return found


def _list(shape: Shape | Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _quoted(name: str) -> str:
    return f"'{name}'" if set(name) & {":", ","} else name
