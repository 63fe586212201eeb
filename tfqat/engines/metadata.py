"""The file beside each engine that says where it comes from: `model.sm86.plan.json` for `model.sm86.plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfqat import __version__, files
from tfqat.engines.graph import SourceGraph
from tfqat.engines.profile import Profile
from tfqat.engines.report import TargetReport
from tfqat.engines.tensors import graph_tensors
from tfqat.errors import EngineError

_TYPES: Mapping[str, type] = {"onnx": dict, "engine": dict, "profile": dict, "inputs": list, "outputs": list, "backend": str}


def metadata_path(engine: Path) -> Path:
    """Where the metadata of an engine is."""
    return engine.with_name(engine.name + ".json")


def read_metadata(engine: Path) -> dict[str, Any] | None:
    """What is known of an engine; None if there is no such file.

    Raises:
        EngineError: The file is no JSON object.
    """
    path = metadata_path(engine)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path} cannot be read ({error}); compile the engine again, or delete that file to go without") from error
    if not isinstance(found, dict):
        raise EngineError(f"{path} is no JSON object; compile the engine again, or delete that file to go without")
    wrong = [key for key, kind in _TYPES.items() if not isinstance(found.get(key, kind()), kind)]
    if wrong or not isinstance(found.get("onnx", {}).get("metadata", {}), dict):
        raise EngineError(
            f"{path} is damaged: {(wrong or ['onnx'])[0]!r} is of another type; compile the engine again, or delete that file"
        )
    return found


def engine_metadata(
    graph: SourceGraph, plan: Path, target: TargetReport, profile: Profile, *, backend: str, version: str, gpu: str | None
) -> dict[str, Any]:
    """What to write beside an engine.

    Args:
        graph: What it was built from.
        plan: The engine's bytes, wherever they are now.
        target: Its report.
        profile: The shapes that it takes.
        backend, version: What built it.
        gpu: The name of the GPU that it was built on, if that is what it was built for.
    """
    digest = files.sha256(plan)
    inputs, outputs = graph_tensors(graph.model)
    return {
        "onnx": {"file": graph.path.name, "sha256": graph.sha256, "metadata": dict(graph.metadata)},
        "engine": {"file": Path(target.engine_path or plan).name, "sha256": digest, "size_bytes": target.size_bytes},
        "backend": backend,
        "version": version,
        "target": target.target,
        "gpu": gpu,
        "tfqat": __version__,
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "inputs": [one.to_dict() for one in inputs],
        "outputs": [one.to_dict() for one in outputs],
        "seconds": target.seconds,
    }
