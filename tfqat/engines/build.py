"""How the engines of several targets are built and put in place together: all of them, or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfqat import files
from tfqat.engines.commands import command_lines
from tfqat.engines.graph import ProductNode, SourceGraph, read_graph
from tfqat.engines.inspector import parse_inspector
from tfqat.engines.layer_log import parse_kernels
from tfqat.engines.metadata import engine_metadata, metadata_path
from tfqat.engines.options import BuildOptions
from tfqat.engines.precisions import int8_share, kernel_precisions
from tfqat.engines.profile import Profile, check_batch, check_shapes, profile_of
from tfqat.engines.report import EngineReport, TargetReport
from tfqat.engines.worker_process import Built, Job, run_worker, timings_path
from tfqat.errors import EngineError, RunDirectoryError

PLAN_SUFFIXES = (".plan", ".engine", ".trt")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A TensorRT to build with: its name in reports, its name for people, and the module with its Python bindings."""

    name: str
    title: str
    module: str


@dataclass(frozen=True, kw_only=True)
class _Place:
    """An engine in the making: its target, where its bytes are until all engines are built, and where they go."""

    target: str | None
    plan: Path
    path: Path


def plan_path(out: Path, compute_capability: str | None) -> Path:
    """Where the engine of a target goes: `model.plan` -> `model.sm86.plan`, and `model.plan` for the GPU of this machine (None).

    The target stands before the suffix, so that the engines of one model sort together and tools still see the type. A suffix
    that is not one of an engine is part of the name: `mobilenet_v1.0` -> `mobilenet_v1.0.sm86.plan`.
    """
    suffix = out.suffix if out.suffix in PLAN_SUFFIXES else ""
    target = f".{compute_capability.lower()}" if compute_capability else ""
    return out.with_name(out.name.removesuffix(suffix) + target + (suffix or ".plan"))


def read_source(onnx_path: Path, options: BuildOptions) -> tuple[SourceGraph, Profile]:
    """A checked graph and the profile of its inputs; an EngineError if either cannot be had."""
    graph = read_graph(onnx_path)
    return graph, profile_of(graph.inputs, check_batch(options.batch), check_shapes(options.shapes))


def build_engines(
    backend: Backend, onnx_path: Path, out: Path, targets: Sequence[str | None], options: BuildOptions, *, gpu: str | None = None
) -> EngineReport:
    """Builds an engine for each target, each in a process of its own, and moves all of them into place when the last is done.

    Beside each engine goes its metadata. Nothing is written before all is built.

    Args:
        backend: The TensorRT to build with.
        onnx_path: A Q/DQ model.
        out: The path that `plan_path` names the engines after; its folder is made if it is missing.
        targets: Compute capabilities; None is the GPU of this machine.
        options: Everything else.
        gpu: The name of the GPU of this machine, for the metadata.

    Raises:
        EngineError: The model cannot be read or built, the build is strict and a quantized product is float, or the engines cannot
            be written; no engine is written then.
    """
    graph, profile = read_source(onnx_path, options)
    paths = [plan_path(out, target) for target in targets]
    folders = [one for path in paths for one in (path, metadata_path(path)) if one.is_dir()]
    if folders:
        raise EngineError(f"an engine cannot be written to {folders[0]}: it is a folder")
    try:
        with files.folder_for(out.parent), files.staging(out.parent) as folder:
            places = [_Place(target=target, plan=folder / path.name, path=path) for target, path in zip(targets, paths, strict=True)]
            report = _report(backend, graph, profile, places, options, gpu)
            _put_in_place(places, options.timing_cache, folder)
    except OSError as error:
        raise EngineError(f"an engine cannot be written: {files.unwritable(out, error)}") from error
    except RunDirectoryError as error:
        raise EngineError(f"an engine cannot be written: {error}") from error
    return report


def _report(
    backend: Backend, graph: SourceGraph, profile: Profile, places: Sequence[_Place], options: BuildOptions, gpu: str | None
) -> EngineReport:
    products = graph.counted(profile)
    reports: list[TargetReport] = []
    commands: list[str] = []
    version = ""
    for place in places:
        built = run_worker(_job(backend, graph, profile, place, options), timeout_s=options.timeout_s)
        version = built.version
        reports.append(target_report(place.target, place.path, place.plan.stat().st_size, built, products))
        if options.strict:
            check_strict(reports[-1], graph.path)
        metadata = engine_metadata(graph, place.plan, reports[-1], profile, backend=backend.name, version=version, gpu=gpu)
        metadata_path(place.plan).write_text(json.dumps(metadata, indent=1) + "\n")
        commands += command_lines(
            version,
            graph.path,
            place.path,
            compute_capability=place.target,
            profile=profile,
            fp16=options.fp16,
            timing_cache=options.timing_cache,
        )
    message = "; ".join(one.summary() for one in reports)
    return EngineReport(
        backend=backend.name, version=version, status="built", message=message, targets=tuple(reports), commands=tuple(commands)
    )


def target_report(target: str | None, path: Path, size_bytes: int, built: Built, products: Sequence[ProductNode]) -> TargetReport:
    """What a build says of one engine: by the engine inspector if it could look into it, else by the build log."""
    kernels = parse_inspector(built.inspector) or parse_kernels(built.layers_message)
    layers = kernel_precisions(kernels, products) if kernels else ()
    return TargetReport(
        target=target or "this machine's GPU",
        seconds=round(built.seconds, 3),
        engine_path=str(path),
        size_bytes=size_bytes,
        layers=layers,
        kernels=sum(kernel.role != "none" for kernel in kernels) if kernels else None,
        reformats=sum(kernel.role == "reformat" for kernel in kernels) if kernels else None,
        int8_macs=int8_share(layers),
    )


def check_strict(target: TargetReport, onnx_path: Path) -> None:
    """Raise an EngineError if a product that the graph quantizes does not run Int8 x Int8, or if that cannot be told."""
    if not target.layers:
        raise EngineError(
            f"strict: the build for {target.target} did not report the precision of its kernels, so Int8 x Int8 is not shown; "
            "leave strict out to keep the engine"
        )
    if target.unmet:
        found = ", ".join(f"{layer.keras_layer} ({' x '.join(layer.inputs) or 'no kernel of its own'})" for layer in target.unmet)
        raise EngineError(
            f"strict: {len(target.unmet)} of {sum(layer.quantized is True for layer in target.layers)} products that {onnx_path.name} "
            f"quantizes do not run as such for {target.target}: {found}; expected Int8 x Int8. `tfqat lint {onnx_path}` says what TensorRT "
            "would not fuse; leave strict out to keep the engine"
        )


def _job(backend: Backend, graph: SourceGraph, profile: Profile, place: _Place, options: BuildOptions) -> Job:
    return Job(
        title=backend.title,
        module=backend.module,
        onnx_path=graph.path,
        plan_path=place.plan,
        compute_capability=place.target,
        profile=profile,
        fp16=options.fp16,
        timing_cache=options.timing_cache,
    )


def _put_in_place(places: Sequence[_Place], timing_cache: Path | None, folder: Path) -> None:
    """All engines with their metadata, or what was there before; two builds for one path do not mix theirs."""
    for place in places:
        if timing_cache is not None:
            files.write_bytes(timing_cache, timings_path(place.plan).read_bytes())
    moved = [pair for place in places for pair in ((metadata_path(place.plan), metadata_path(place.path)), (place.plan, place.path))]
    with files.one_at_a_time(folder.parent):
        files.put_in_place(moved, folder)
