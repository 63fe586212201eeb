"""How long quantizing takes, and how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peers import TFQAT
from benchmarks.scoreboard.spread import summary
from benchmarks.scoreboard.tables import Table, label, short, spread

TITLE = "Calibration"
ABOUT = """Everything from the float model to the quantized one, on the same batches, in a process that has imported the tool and loaded
the model; for tools that read ONNX without the export of the float model. Seconds: median (least - most) of three for the small
network, else one; the first of them has traced nothing before. Memory: the peak of the process above what it held before; the whole
peak beside it. tfqat's figure contains the rounding of weights that cancels errors."""
NETWORKS = ("fashion_mnist", "efficientnet")


def measure(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """A list of rows for each network."""
    return {bench.network(name)[0].title: [_row(made) for made in bench.artifacts(name)] for name in NETWORKS}


def _row(made: dict[str, Any]) -> dict[str, Any]:
    row = {key: made[key] for key in ("peer", "variant", "refused") if key in made}
    if "refused" in made:
        return row
    names = {"seconds": "seconds", "grown_mb": "grown_bytes", "peak_mb": "peak_bytes"}
    found = {key: [one[name] / (1e6 if key != "seconds" else 1) for one in made["quantize"]] for key, name in names.items()}
    return {**row, **{key: summary(values) for key, values in found.items()}}


def tables(figures: dict[str, list[dict[str, Any]]]) -> Iterator[Table]:
    """One for each network."""
    for title, found in figures.items():
        rows = [
            [label(row), spread(row.get("seconds")), spread(row.get("grown_mb"), "{:.0f}"), spread(row.get("peak_mb"), "{:.0f}")]
            for row in found
        ]
        notes = [f"{label(row)}: {short(row['refused'])}" for row in found if "refused" in row]
        yield Table(title=title, header=["", "seconds", "memory, MB more", "whole peak, MB"], rows=rows, notes=notes)


def contests(figures: dict[str, list[dict[str, Any]]]) -> Iterator[Contest]:
    """Time and memory; a tenth of tfqat's figure decides nothing."""
    for title, found in figures.items():
        mine = next((row for row in found if row["peer"] == TFQAT.title and "seconds" in row), None)
        for row in found:
            if mine is None or row["peer"] == TFQAT.title or "seconds" not in row:
                continue
            for key, what in (("seconds", "seconds"), ("grown_mb", "MB")):
                ours, theirs = mine[key]["median"], row[key]["median"]
                text = f"{ours:.1f} {what}, {theirs:.1f} {what}"
                yield Contest(section=TITLE, what=f"{title}, {what}", peer=label(row), lead=theirs - ours, noise=0.1 * ours, text=text)
