"""One run of the benchmark: its folder, its sizes, the networks as files, and what every tool makes of them."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_target

from benchmarks.scoreboard.networks import NETWORKS, Network
from benchmarks.scoreboard.peer import Cannot, Schedule
from benchmarks.scoreboard.peers import PEERS, Place
from benchmarks.scoreboard.worker import Failed, Worker
from tfqat.engines import onnxruntime

ROUNDS = {"fashion_mnist": 3}
"""How often each tool quantizes the network; once where it is not named."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Settings, and what was made so far.

    Attributes:
        seeds: of accuracy: each draws the calibration images and orders the training images.
        quick: few images, one round, no EfficientNet: to see that everything works. Its figures mean nothing.
        gptq: measure MCT's GPTQ too.
        networks: of accuracy, by their names in NETWORKS; none: all.
        tools_wanted: of accuracy, by their titles, beside the float model and tfqat; none: all.
        earlier: figures of the comparison from the run before, which those that are measured again replace.
        keep: takes what a comparison has found so far, so that one that is cut short is not lost.
    """

    seeds: int
    quick: bool
    gptq: bool = False
    networks: tuple[str, ...] = ()
    tools_wanted: tuple[str, ...] = ()
    earlier: dict[str, Any] = field(default_factory=dict)
    keep: Callable[[dict[str, Any]], None] = lambda found: None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="scoreboard-")))
    made: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """What tfqat derives from twenty float epochs at 0.1 in batches of 128, of which this is one epoch of the two."""
        return Schedule(epochs=1, batch_size=64, learning_rate=1e-3)

    @property
    def training_images(self) -> int:
        """How many images fine-tuning sees in an epoch."""
        return 640 if self.quick else 8_000

    def network(self, name: str) -> tuple[Network, Path]:
        """The network and the folder of its files."""
        network = NETWORKS[name]
        if self.quick:
            network = replace(network, batches=1, data=lambda: _few(NETWORKS[name].data()))
        return network, network.written(self.folder / name)

    def worker(self, place: Place, threads: int | None = None) -> Worker:
        """A process of the tool; its versions and settings are noted."""
        worker = Worker(place, self.folder / f"{place.module}.log", threads=threads)
        self.tools[place.title] = {key: worker.about[key] for key in ("versions", "variants")}
        return worker

    def artifacts(self, name: str) -> list[dict[str, Any]]:
        """What every tool and variant makes of a network with 8 bits; made at the first call.

        Each is a dict with `peer` and `variant`, and either `refused`, a reason, or `quantize` (a list of seconds and bytes, one for each
        round), for Keras models `outputs` (a file of those on the test images), and `export` (seconds and size) with `path`, or
        `not_exported`, a reason.
        """
        if name not in self.made:
            self.made[name] = [one for place in PEERS.values() for one in self._made_by(place, name)]
        return self.made[name]

    def _made_by(self, place: Place, name: str) -> Iterator[dict[str, Any]]:
        network, folder = self.network(name)
        try:
            worker = self.worker(place)
        except (Cannot, Failed) as reason:
            yield {"peer": place.title, "variant": "", "refused": str(reason)}
            return
        rounds = 1 if self.quick else ROUNDS.get(name, 1)
        order = {"network": str(folder), "batches": str(network.calibration(folder, 0)), "bits": 8}
        with worker:
            for variant in worker.about["variants"]:
                if variant in ("QAT", "GPTQ"):
                    continue  # MCT's: the first is where its fine-tuning starts, not a result; the second takes the time of all the others
                self.say(f"{name}: {place.title}, {variant}")
                yield self._made(worker, variant, order, rounds, name)

    def _made(self, worker: Worker, variant: str, order: dict[str, Any], rounds: int, name: str) -> dict[str, Any]:
        made: dict[str, Any] = {"peer": worker.place.title, "variant": variant}
        network, folder = self.network(name)
        path = folder / f"{worker.place.module} {variant}.onnx"
        try:
            made["quantize"] = [worker.call("quantize", variant=variant, **order) for _ in range(rounds)]
            if worker.about["is_keras"]:
                made["outputs"] = str(path.with_suffix(".npy"))
                worker.call("predict", images=str(network.test(folder)[0]), out=made["outputs"])
        except (Cannot, Failed) as reason:
            return {**made, "refused": str(reason)}
        try:
            made |= {"export": worker.call("export", path=str(path)), "path": str(path)}
        except (Cannot, Failed) as reason:
            made["not_exported"] = str(reason)
        return made

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def outputs(path: str | Path, images: np.ndarray, *, literal: bool) -> np.ndarray | str:
    """What ONNX Runtime computes, with Q/DQ as written or by its fused kernels; in the place of outputs the reason why it does not."""
    try:
        run = onnxruntime_target.session(Path(path), literal=literal)
        found = onnxruntime.run_batches(run, (images[start : start + 100] for start in range(0, len(images), 100)))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found[0] if isinstance(found, tuple) else found


def _few(data: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """640 images for training and for the test; 16 of large ones."""
    large = data[0][0].size > 10_000
    images, labels, test, test_labels = (None if array is None else array[: 16 if large else 640] for array in data)
    return images, labels, test, test_labels
