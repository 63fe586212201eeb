"""How the engines of several targets are built and put in place together: all of them, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfqat.engines.graph import ProductNode, check_batch, read_products
from tfqat.engines.layer_log import kernel_precisions
from tfqat.engines.report import EngineReport, TargetReport
from tfqat.engines.worker_process import Built, Job, run_worker
from tfqat.errors import EngineError

DEFAULT_BATCH = (1, 8, 32)
DEFAULT_TIMEOUT_S = 600.0
PLAN_SUFFIXES = (".plan", ".engine", ".trt")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A TensorRT to build with: its name in reports, its name for people, and the module with its Python bindings."""

    name: str
    title: str
    module: str


def plan_path(out: Path, compute_capability: str | None) -> Path:
    """Where the engine of a target goes: `model.plan` -> `model.sm86.plan`, and `model.plan` for the GPU of this machine (None).

    The target stands before the suffix, so that the engines of one model sort together and tools still see the type. A suffix
    that is not one of an engine is part of the name: `mobilenet_v1.0` -> `mobilenet_v1.0.sm86.plan`.
    """
    suffix = out.suffix if out.suffix in PLAN_SUFFIXES else ""
    target = f".{compute_capability.lower()}" if compute_capability else ""
    return out.with_name(out.name.removesuffix(suffix) + target + (suffix or ".plan"))


def build_engines(
    backend: Backend, onnx_path: Path, out: Path, targets: Sequence[str | None], *, batch: Sequence[int], timeout_s: float
) -> EngineReport:
    """Builds an engine for each target, each in a process of its own, and moves all of them into place when the last is done.

    Args:
        backend: The TensorRT to build with.
        onnx_path: A Q/DQ model.
        out: The path that `plan_path` names the engines after; its folder is made if it is missing.
        targets: Compute capabilities; None is the GPU of this machine.
        batch: The smallest, optimal and largest batch of the inputs whose first axis is dynamic.
        timeout_s: For each engine.

    Raises:
        EngineError: The model cannot be read or built, or the engines cannot be written; no engine is written then.
    """
    nodes, sizes = read_products(onnx_path), check_batch(batch)
    paths = [plan_path(out, target) for target in targets]
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise EngineError(f"an engine cannot be written to {folders[0]}: it is a folder")
    reports, version = [], ""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            plans = [Path(folder, path.name) for path in paths]
            for target, plan, path in zip(targets, plans, paths, strict=True):
                built = run_worker(_job(backend, onnx_path, plan, target, sizes), timeout_s=timeout_s)
                reports.append(_target_report(target, plan, path, built, nodes))
                version = built.version
            for plan, path in zip(plans, paths, strict=True):
                plan.replace(path)
    except OSError as error:
        raise EngineError(f"an engine cannot be written to {out.parent}: {error}") from error
    return EngineReport(backend=backend.name, version=version, status="built", message=_summary(reports), targets=tuple(reports))


def _job(backend: Backend, onnx_path: Path, plan: Path, target: str | None, batch: tuple[int, int, int]) -> Job:
    return Job(title=backend.title, module=backend.module, onnx_path=onnx_path, plan_path=plan, compute_capability=target, batch=batch)


def _target_report(target: str | None, plan: Path, path: Path, built: Built, nodes: tuple[ProductNode, ...]) -> TargetReport:
    return TargetReport(
        target=target or "this machine's GPU",
        seconds=round(built.seconds, 3),
        engine_path=str(path),
        size_bytes=plan.stat().st_size,
        layers=kernel_precisions(built.layers_message, nodes) if built.layers_message else (),
    )


def _summary(targets: Sequence[TargetReport]) -> str:
    """One line: `SM86: 6 of 6 convolutions and matrix products run Int8 x Int8; SM89: ...`."""
    return "; ".join(
        f"{target.target}: {sum(layer.int8 for layer in target.layers)} of {len(target.layers)} convolutions and matrix products "
        "run Int8 x Int8"
        if target.layers
        else f"{target.target}: built, but the build did not report the precision of its kernels"
        for target in targets
    )
