"""How long writing ONNX takes, and how large the file is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peers import TFQAT
from benchmarks.scoreboard.tables import NONE, Table, label, short

TITLE = "Export"
ABOUT = """Seconds from the quantized model to the ONNX file (once, tracing included), and the file beside that of the float model.
Tools that work on ONNX have written it already, so their seconds are those of a copy and are left out."""
NETWORKS = ("fashion_mnist", "residual", "efficientnet")


def measure(bench: Bench) -> dict[str, Any]:
    """For each network the size of the float file, and rows."""
    return {bench.network(name)[0].title: _network(bench, name) for name in _names(bench)}


def _names(bench: Bench) -> tuple[str, ...]:
    return NETWORKS[:1] if bench.quick else NETWORKS


def _network(bench: Bench, name: str) -> dict[str, Any]:
    rows = []
    for made in bench.artifacts(name):
        row = {key: made[key] for key in ("peer", "variant", "refused", "not_exported") if key in made}
        if "export" in made:
            row |= {"seconds": made["export"]["seconds"] if "outputs" in made else None, "size_bytes": made["export"]["size_bytes"]}
        rows.append(row)
    return {"float_bytes": (bench.network(name)[1] / "float.onnx").stat().st_size, "rows": rows}


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each network."""
    for title, found in figures.items():
        rows = [["float", NONE, f"{found['float_bytes'] / 1e3:.0f}", "1.00"]]
        for row in (row for row in found["rows"] if "size_bytes" in row):
            seconds = NONE if row["seconds"] is None else f"{row['seconds']:.1f}"
            share = row["size_bytes"] / found["float_bytes"]
            rows.append([label(row), seconds, f"{row['size_bytes'] / 1e3:.0f}", f"{share:.2f}"])
        notes = [f"{label(row)}: {short(row.get('refused') or row['not_exported'])}" for row in found["rows"] if "size_bytes" not in row]
        yield Table(title=title, header=["", "seconds", "kB", "over float"], rows=rows, notes=notes)


def contests(figures: dict[str, Any]) -> Iterator[Contest]:
    """Size and seconds; 2% of the size and a tenth of the seconds decide nothing."""
    for title, found in figures.items():
        mine = next((row for row in found["rows"] if row["peer"] == TFQAT.title and "size_bytes" in row), None)
        for row in found["rows"] if mine else ():
            if row["peer"] == TFQAT.title or "size_bytes" not in row:
                continue
            text = f"{mine['size_bytes'] / 1e3:.0f} kB, {row['size_bytes'] / 1e3:.0f} kB"
            lead, noise = row["size_bytes"] - mine["size_bytes"], 0.02 * mine["size_bytes"]
            yield Contest(section=TITLE, what=f"{title}, size", peer=label(row), lead=lead, noise=noise, text=text)
            if row["seconds"] is not None:
                text = f"{mine['seconds']:.1f} s, {row['seconds']:.1f} s"
                lead, noise = row["seconds"] - mine["seconds"], 0.1 * mine["seconds"]
                yield Contest(section=TITLE, what=f"{title}, seconds", peer=label(row), lead=lead, noise=noise, text=text)
