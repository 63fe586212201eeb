"""What TensorRT for RTX makes of each tool's graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deploy_engines

from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peers import TFQAT
from benchmarks.scoreboard.tables import NONE, Table, label, short
from tfqat.engines import tensorrt_rtx
from tfqat.errors import EngineError

TITLE = "Engines by TensorRT for RTX"
ABOUT = """Built for GPUs of two generations without one, batches of 1 to 32. Int8: the share of all multiply-accumulates that runs Int8
x Int8, from the build's own report of its kernels. How fast they run is not known without a GPU."""
NETWORKS = ("fashion_mnist", "residual", "efficientnet")
TARGETS = ("SM86", "SM89")


def measure(bench: Bench) -> dict[str, Any]:
    """Rows for each network; none where TensorRT for RTX is not installed."""
    available, reason = tensorrt_rtx.is_available()
    if not available:
        return {"not run": [{"peer": "TensorRT for RTX", "variant": "", "refused": reason}]}
    return {bench.network(name)[0].title: _network(bench, name) for name in (NETWORKS[:1] if bench.quick else NETWORKS)}


def _network(bench: Bench, name: str) -> list[dict[str, Any]]:
    folder = bench.network(name)[1]
    graphs = [{"peer": "float", "variant": "", "path": str(folder / "float.onnx")}, *bench.artifacts(name)]
    bench.say(f"{name}: engines")
    rows = []
    for made in graphs:
        row = {"peer": made["peer"], "variant": made["variant"]}
        if "path" in made:
            rows.append({**row, "targets": {target: _built(Path(made["path"]), target) for target in TARGETS}})
        else:
            rows.append({**row, "refused": made.get("refused") or made["not_exported"]})
    return rows


def _built(path: Path, target: str) -> dict[str, Any]:
    report = deploy_engines.built(path, target, strict=False)
    if isinstance(report, EngineError):
        text = " ".join(str(report).split())
        return {"refused": text.partition("the graph cannot be built: ")[2] or text}
    one = report.targets[0]
    return {"kernels": one.kernels, "reformats": one.reformats, "int8_macs": one.int8_macs, "size_bytes": one.size_bytes}


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each network."""
    for title, found in figures.items():
        rows, notes = [], []
        for row in found:
            targets = row.get("targets", {})
            reasons = {row["refused"]} if "refused" in row else {one["refused"] for one in targets.values() if "refused" in one}
            notes += [f"{label(row)}: no engine: {short(reason)}" for reason in sorted(reasons)]
            rows.append([label(row), *(cell for target in TARGETS for cell in _cells(targets.get(target, {})))])
        header = ["", *(f"{target}: {what}" for target in TARGETS for what in ("Int8", "kernels", "reformats"))]
        yield Table(title=title, header=header, rows=rows, notes=notes)


def _cells(one: dict[str, Any]) -> tuple[str, str, str]:
    if "kernels" not in one:
        return ("refused", NONE, NONE)
    share = NONE if one["int8_macs"] is None else f"{100 * one['int8_macs']:.2f}%"
    return share, str(one["kernels"]), str(one["reformats"])


def contests(figures: dict[str, Any]) -> Iterator[Contest]:
    """Int8 share and kernels, by target; a graph that is refused loses both."""
    for title, found in figures.items():
        mine = next((row["targets"] for row in found if row["peer"] == TFQAT.title and "targets" in row), None)
        for row in found:
            if mine is None or row["peer"] in (TFQAT.title, "float"):
                continue
            for target in TARGETS:
                yield from _contest(f"{title}, {target}", label(row), mine[target], row.get("targets", {}).get(target, {}))


def _contest(what: str, peer: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Contest]:
    if "kernels" not in ours or "kernels" not in theirs:
        lead = float("kernels" in ours) - float("kernels" in theirs)
        verdicts = {True: "built", False: "refused"}
        text = f"{verdicts['kernels' in ours]}, {verdicts['kernels' in theirs]}"
        yield Contest(section=TITLE, what=f"{what}: builds", peer=peer, lead=lead, noise=0.0, text=text)
        return
    shares = [100 * (one["int8_macs"] or 0.0) for one in (ours, theirs)]
    text = f"{shares[0]:.2f}%, {shares[1]:.2f}%"
    yield Contest(section=TITLE, what=f"{what}: Int8", peer=peer, lead=shares[0] - shares[1], noise=0.005, text=text)
    counts = [one["kernels"] + one["reformats"] for one in (ours, theirs)]
    text = f"{counts[0]}, {counts[1]}"
    yield Contest(section=TITLE, what=f"{what}: kernels and reformats", peer=peer, lead=counts[1] - counts[0], noise=0.0, text=text)
