"""What a fine-tuning step costs, beside the float step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import qat_step

from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.peer import Cannot
from benchmarks.scoreboard.peers import FLOAT, PEERS, TFQAT
from benchmarks.scoreboard.spread import summary
from benchmarks.scoreboard.tables import Table, short, spread
from benchmarks.scoreboard.worker import Failed, Worker

TITLE = "Training step"
ABOUT = """One step of `fit` on 64 images in memory, each tool in its own process, all in turns; ratio to the float step (tf_keras,
tfqat's TensorFlow) of the same turn: median (quartiles). Sony MCT runs on the TensorFlow that it needs, 2.15, so its ratio compares
versions too."""
NETWORKS = ("fashion_mnist", "residual")
TURNS = 60


def measure(bench: Bench) -> dict[str, Any]:
    """Figures of each network."""
    return {bench.network(name)[0].title: _network(bench, name) for name in NETWORKS}


def _network(bench: Bench, name: str) -> dict[str, Any]:
    refused: dict[str, str] = {}
    steps: dict[str, Any] = {}
    with ExitStack() as stack:
        for place in (FLOAT, *PEERS.values()):
            bench.say(f"{name}: step of {place.title}")
            try:
                worker = stack.enter_context(bench.worker(place))
                _prepare(bench, name, worker)
            except (Cannot, Failed) as reason:
                refused[place.title] = str(reason)
                continue
            steps[place.title] = lambda worker=worker: worker.call("step")
        times = qat_step.in_turns(steps, 3 if bench.quick else TURNS)
    ratios = {title: summary(qat_step.ratios(times, title)) for title in times if title != FLOAT.title}
    milliseconds = {title: summary([1e3 * one for one in found]) for title, found in times.items()}
    return {"milliseconds": milliseconds, "ratios": ratios, "refused": refused}


def _prepare(bench: Bench, name: str, worker: Worker) -> None:
    variant = worker.about["trains_from"]
    if not variant:
        raise Cannot("it trains no quantized Keras models")
    network, folder = bench.network(name)
    paths = [folder.with_name(f"{folder.name}_step_{part}.npy") for part in ("images", "labels")]
    for path, whole in zip(paths, network.training(folder, 0, 640), strict=True):
        np.save(path, np.load(whole)[:64])
    data = dict(zip(("images", "labels"), map(str, paths), strict=True))
    worker.call("quantize", network=str(folder), batches=str(network.calibration(folder, 0)), bits=8, variant=variant)
    worker.call("finetune", schedule=asdict(bench.schedule), **data)
    worker.call("prepare_step", **data)


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each network."""
    for title, found in figures.items():
        rows = [[name, spread(one, "{:.1f}"), spread(found["ratios"].get(name))] for name, one in found["milliseconds"].items()]
        notes = [f"{name}: {short(reason)}" for name, reason in found["refused"].items()]
        yield Table(title=title, header=["", "ms", "over float"], rows=rows, notes=notes)


def contests(figures: dict[str, Any]) -> Iterator[Contest]:
    """Ratios to float; less than half the distance between tfqat's quartiles decides nothing."""
    for title, found in figures.items():
        mine = found["ratios"].get(TFQAT.title)
        for name, one in found["ratios"].items() if mine else ():
            if name != TFQAT.title:
                text = f"{mine['median']:.2f}, {one['median']:.2f} of the float step"
                noise = (mine["high"] - mine["low"]) / 2
                yield Contest(section=TITLE, what=title, peer=name, lead=one["median"] - mine["median"], noise=noise, text=text)
