"""What units cost: their share of the multiply-accumulates, or milliseconds in ONNX Runtime, in float and in INT8."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfqat.analysis.bench import Bench
from tfqat.analysis.units import Unit, macs_of
from tfqat.engines.layer_latency import layer_latencies
from tfqat.export.onnx import export_float_onnx, export_onnx
from tfqat.quantize.apply import strip
from tfqat.recipe.schema import BudgetConfig


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Milliseconds for one example: of each unit in `float` and `int8`, and of the whole INT8 graph."""

    of: Mapping[str, Mapping[str, float]]
    total_int8: float


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What it costs to leave each unit float, and how much of that a budget leaves room for, both in the unit of the goal."""

    of: Mapping[str, float]
    room: float
    goal: Mapping[str, float]


def latencies(qmodel: Any, units: Sequence[Unit]) -> Latencies:
    """Measures the model, exported in INT8 and in float, layer by layer in ONNX Runtime on this machine.

    The sum over the layers stands for the whole: measured alike in both forms, it holds still where other load makes totals jump.
    """
    plain = strip(qmodel)
    layers = [layer.name for layer in plain.layers]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"int8": Path(folder) / "int8.onnx", "float": Path(folder) / "float.onnx"}
        export_onnx(qmodel, paths["int8"])
        export_float_onnx(plain, paths["float"])
        found = {form: layer_latencies(path, layers) for form, path in paths.items()}
    of = {unit.name: {form: sum(by_layer.get(layer, 0.0) for layer in unit.layers) for form, by_layer in found.items()} for unit in units}
    return Latencies(of=of, total_int8=sum(found["int8"].values()))


def prices(budget: BudgetConfig, bench: Bench, measured: Latencies | None) -> Prices:
    """The prices of a budget.

    `int8_share`: multiply-accumulates as a share of those of the whole model; the room is what may be float less what is float anyway.
    `latency_ms`: milliseconds more than in INT8; the room is what the budget leaves beyond the INT8 graph.
    """
    if measured is not None and budget.latency_ms is not None:
        of = {name: times["float"] - times["int8"] for name, times in measured.of.items()}
        return Prices(of=of, room=budget.latency_ms - measured.total_int8, goal={"latency_ms": budget.latency_ms})
    total = sum(macs_of(bench.graph, node) for node in bench.graph.nodes) or 1
    share = float(budget.int8_share or 0.0)
    of = {unit.name: unit.macs / total for unit in bench.units}
    return Prices(of=of, room=sum(of.values()) - share, goal={"int8_share": share})
