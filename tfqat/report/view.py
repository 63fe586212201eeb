"""What a report shows: the contents of a run directory's files as frozen dataclasses, and how each is read from its JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfqat.placement.plan import Placement
from tfqat.report.calibration_view import Calibration
from tfqat.report.fields import numbers
from tfqat.report.sensitivity_view import Sensitivity

STAGES = ("float", "control", "ptq", "qat", "onnx", "onnx_deployed")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """`metrics.json`: the values of each stage that ran, and what was exported; `calibration_search`: those of each calibrator tried."""

    stages: Mapping[str, Mapping[str, float]]
    exported: str | None = None
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    examples: int | None = None
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    calibration_search: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibrator: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metrics:
        """Reads the JSON object; every key may be absent, as in a run that was stopped."""
        return cls(
            stages={stage: numbers(data[stage]) for stage in STAGES if data.get(stage)},
            exported=data.get("exported"),
            size_bytes=numbers(data.get("size_bytes")),
            latency_ms=numbers(data.get("latency_ms")),
            parameters=data.get("parameters"),
            examples=data.get("examples"),
            warnings=tuple(str(text) for text in data.get("warnings") or ()),
            versions={name: str(version) for name, version in (data.get("versions") or {}).items()},
            seconds=numbers(data.get("seconds")),
            calibration_search={name: numbers(values) for name, values in (data.get("calibration_search") or {}).items()},
            calibrator=data.get("calibrator"),
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sets of int8 codes agree: the share that is equal, and the largest difference in codes."""

    equal: float
    max_difference: float

    @classmethod
    def find(cls, data: Mapping[str, Any], prefix: str = "") -> Agreement | None:
        """Reads `<prefix>equal` and `<prefix>max_difference`; None if they were not measured."""
        if data.get(f"{prefix}equal") is None:
            return None
        return cls(equal=float(data[f"{prefix}equal"]), max_difference=float(data[f"{prefix}max_difference"]))


@dataclass(frozen=True, kw_only=True)
class StructureCheck:
    """One rule that the exported graph's structure has to keep."""

    rule: str
    passed: bool
    detail: str = ""


KINDS = ("local", "end_to_end", "floor")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """`parity.json`: agreements by kind (local, end_to_end, floor), for the graph (`compiled`, `perturbed`, `fused` too) and each QPoint.

    `local_output_difference` is that of the outputs from the same codes, as a share of the largest output; None if not measured.
    `first_divergence` names the first point beyond its limits, its layers and the likely cause; empty if there is none.
    """

    examples: int
    passed: bool
    total: Mapping[str, Agreement | None]
    points: Mapping[str, Mapping[str, Agreement | None]]
    outputs: Mapping[str, float]
    structure: tuple[StructureCheck, ...]
    limits: Mapping[str, Any]
    local_output_difference: float | None = None
    first_divergence: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Parity:
        """Reads the JSON object."""
        names = (
            *zip(KINDS, ("local", "end_to_end", "noise_floor"), strict=True),
            ("compiled", "compiled"),
            ("perturbed", "perturbed"),
            ("fused", "fused"),
        )
        divergence = data.get("first_divergence") or {}
        checks = data.get("structure") or ()
        return cls(
            examples=data["examples"],
            passed=bool(data["passed"]),
            total={kind: Agreement.find(data.get(name) or {}) for kind, name in names if (data.get(name) or {}).get("codes") != 0},
            points={row["id"]: {kind: Agreement.find(row, f"{kind}_") for kind in KINDS} for row in data.get("points") or ()},
            outputs=numbers(data.get("outputs")),
            structure=tuple(StructureCheck(rule=row["rule"], passed=bool(row["passed"]), detail=row.get("detail") or "") for row in checks),
            limits=data.get("limits") or {},
            local_output_difference=data.get("local_output_difference"),
            first_divergence=f"{divergence['point']}, made by {', '.join(divergence['layers'])}: {divergence['cause']}"
            if divergence
            else "",
        )


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One convolution or matrix product of an engine, with the types that its kernel reads and writes."""

    keras_layer: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    int8: bool
    kernel: str = ""
    fused_with: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineTarget:
    """The engine for one kind of GPU."""

    target: str
    layers: tuple[EngineLayer, ...]
    seconds: float | None = None
    size_bytes: int | None = None
    kernels: int | None = None
    reformats: int | None = None
    int8_macs: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineTarget:
        """Reads one entry of `targets` in `engine.json`."""
        layers = tuple(
            EngineLayer(
                keras_layer=row.get("keras_layer") or "",
                op=row.get("op") or "",
                inputs=tuple(row.get("inputs") or ()),
                outputs=tuple(row.get("outputs") or ()),
                int8=bool(row["int8"]),
                kernel=row.get("kernel") or "",
                fused_with=tuple(row.get("fused_with") or ()),
            )
            for row in data.get("layers") or ()
        )
        known = {key: data.get(key) for key in ("seconds", "size_bytes", "kernels", "reformats", "int8_macs")}
        return cls(target=data["target"], layers=layers, **known)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """`engine.json`."""

    backend: str
    version: str
    status: str
    message: str
    targets: tuple[EngineTarget, ...]
    commands: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Engine:
        """Reads the JSON object."""
        texts = {name: str(data.get(name) or "") for name in ("backend", "version", "message")}
        targets = tuple(EngineTarget.from_dict(row) for row in data.get("targets") or ())
        return cls(status=data["status"], targets=targets, commands=tuple(data.get("commands") or ()), **texts)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A whole run directory; None stands for a file that the run did not write."""

    name: str
    metrics: Metrics
    placement: Placement
    recipe: str | None = None
    calibration: Calibration | None = None
    history: Mapping[str, tuple[float, ...]] | None = None
    parity: Parity | None = None
    engine: Engine | None = None
    sensitivity: Sensitivity | None = None
