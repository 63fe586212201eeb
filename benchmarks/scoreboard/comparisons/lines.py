"""How much a user writes, counted in the adapters that were run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.scoreboard import source_lines
from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peers import PEERS, TFQAT
from benchmarks.scoreboard.tables import NONE, Table

TITLE = "What a user writes"
ABOUT = """Statements in `quantize`, `finetune` and `export` of each `benchmarks/scoreboard/peers/*.py`, which this benchmark runs, and
in what they use of that file; each in the plain way its documentation shows, for 8 bits. Imports are not counted, nor the export of the
float model that tools on ONNX need before."""
FOLDER = Path(__file__).resolve().parents[1] / "peers"


def measure(bench: Bench) -> dict[str, dict[str, int]]:
    """Statements of each function by tool."""
    found = {place.title: (FOLDER / f"{place.module}.py").read_text(encoding="utf-8") for place in PEERS.values()}
    return {title: source_lines.count(source) for title, source in found.items()}


def tables(figures: dict[str, dict[str, int]]) -> Iterator[Table]:
    """A column for each function."""
    rows = [[title, *(str(found.get(name, NONE)) for name in source_lines.FUNCTIONS)] for title, found in figures.items()]
    yield Table(title="Statements", header=["", *source_lines.FUNCTIONS], rows=rows)


def contests(figures: dict[str, dict[str, int]]) -> Iterator[Contest]:
    """Function by function."""
    mine = figures.get(TFQAT.title, {})
    for title, found in figures.items():
        for name, count in found.items() if title != TFQAT.title else ():
            text = f"{mine[name]}, {count} statements"
            yield Contest(section=TITLE, what=name, peer=title, lead=count - mine[name], noise=0.0, text=text)
