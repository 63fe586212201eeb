"""How fast ONNX Runtime runs each tool's graph, beside tfqat's for that runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_target

from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peers import TFQAT
from benchmarks.scoreboard.spread import summary
from benchmarks.scoreboard.tables import Table, label, short, spread

TITLE = "Latency in ONNX Runtime"
ABOUT = """Default sessions, one image, in pairs: each graph and tfqat's `target: onnxruntime` in turns, no other session alive. Over
tfqat: the median (quartiles) of the ratio of the same turn; above 1 the other is slower."""
NETWORKS = ("fashion_mnist", "residual", "efficientnet")
ROUNDS = {"fashion_mnist": 600, "residual": 600, "efficientnet": 60}


def measure(bench: Bench) -> dict[str, Any]:
    """Rows for each network."""
    return {bench.network(name)[0].title: _network(bench, name) for name in (NETWORKS[:1] if bench.quick else NETWORKS)}


def _network(bench: Bench, name: str) -> list[dict[str, Any]]:
    made = bench.artifacts(name)
    network, folder = bench.network(name)
    ours = next((one["path"] for one in made if one["peer"] == TFQAT.title and one["variant"] == "onnxruntime" and "path" in one), None)
    if ours is None:
        return [{"peer": TFQAT.title, "variant": "onnxruntime", "failed": "it has no graph to compare with"}]
    images = np.load(network.test(folder)[0])[:1]
    graphs = [
        {"peer": "float", "variant": "", "path": str(folder / "float.onnx")},
        *(one for one in made if one.get("path") not in (None, ours)),
    ]
    bench.say(f"{name}: latency")
    rounds = 20 if bench.quick else ROUNDS[name]
    return [{"peer": one["peer"], "variant": one["variant"], **_pair(one["path"], ours, images, rounds)} for one in graphs]


def _pair(theirs: str, ours: str, images: np.ndarray, rounds: int) -> dict[str, Any]:
    try:
        sessions = {key: onnxruntime_target.session(Path(path)) for key, path in (("theirs", theirs), ("ours", ours))}
        times = onnxruntime_target.in_turns(sessions, images, rounds)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        return {"failed": " ".join(str(error).split())[:300]}
    ratios = summary([one / other for one, other in zip(times["theirs"], times["ours"], strict=True)])
    return {key: {**summary(found), "values": []} for key, found in times.items()} | {
        "over_tfqat": {**ratios, "values": []},
        "rounds": rounds,
    }


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each network."""
    for title, found in figures.items():
        rows = [[label(row), spread(row["theirs"]), spread(row["ours"]), spread(row["over_tfqat"])] for row in found if "over_tfqat" in row]
        notes = [f"{label(row)}: {short(row['failed'])}" for row in found if "failed" in row]
        yield Table(title=title, header=["", "ms", "tfqat's ms in the same pair", "over tfqat"], rows=rows, notes=notes)


def contests(figures: dict[str, Any]) -> Iterator[Contest]:
    """Ratios; where 1 lies between the quartiles nothing is decided."""
    for title, found in figures.items():
        for row in found:
            if row["peer"] == TFQAT.title or "over_tfqat" not in row:
                continue
            one = row["over_tfqat"]
            noise = one["median"] - one["low"] if one["median"] > 1 else one["high"] - one["median"]
            text = f"{row['ours']['median']:.2f} ms, {row['theirs']['median']:.2f} ms"
            yield Contest(section=TITLE, what=title, peer=label(row), lead=one["median"] - 1, noise=noise, text=text)
