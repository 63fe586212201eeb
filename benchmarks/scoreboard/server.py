"""Runs in a peer's own environment: reads orders from standard input, one JSON object a line, and answers each with one.

`python -m benchmarks.scoreboard.server MODULE`. Arrays go through `.npy` files. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scoreboard.peer import Cannot, Peer, Schedule


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    desk: Desk | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            desk = desk or Desk(importlib.import_module(f"benchmarks.scoreboard.peers.{sys.argv[1]}").PEER)
            answer = getattr(desk, order.pop("order"))(**order)
        except Cannot as reason:
            answer = {"cannot": str(reason)}
        except Exception as error:  # whatever a tool stumbles over is its result; the run goes on
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(answer), file=answers, flush=True)
    if desk:
        desk.folder.cleanup()
    os._exit(0)  # without taking TensorFlow down, which now and then waits for ever for a thread of tf.data (2.21)


class Desk:
    """One tool with the model that it has in hand."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.model: Any = None
        self.step_iterator: Any = None
        self.folder = tempfile.TemporaryDirectory()

    def about(self) -> dict[str, Any]:
        """What the tool is."""
        versions = {}
        for package in self.peer.packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:  # such as `tensorflow` where `tensorflow-cpu` provides it
                versions[package] = ""
        peer = self.peer
        return {"versions": versions, "variants": dict(peer.variants), "trains_from": peer.trains_from, "is_keras": peer.is_keras}

    def quantize(self, network: str, batches: str, bits: int, variant: str, seed: int = 0) -> dict[str, Any]:
        """Load and quantize; seconds of the second, and the memory that it took on top of what was there, in bytes."""
        _set_seed(seed)
        self.model = self.step_iterator = None
        model = self.peer.load(self._own_copy(Path(network)))
        data = list(np.load(batches))
        gc.collect()
        before = _start_of_peak()
        started = time.perf_counter()
        self.model = self.peer.quantize(model, data, bits=bits, variant=variant)
        seconds = time.perf_counter() - started
        peak = _memory("VmHWM")
        return {"seconds": seconds, "grown_bytes": max(0, peak - before), "peak_bytes": peak}

    def finetune(self, images: str, labels: str, schedule: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        """Train the model in hand; seconds."""
        _set_seed(seed)
        started = time.perf_counter()
        self.model = self.peer.finetune(self.model, np.load(images), np.load(labels), Schedule(**schedule))
        return {"seconds": time.perf_counter() - started}

    def refuse_finetuning(self) -> dict[str, Any]:
        """Have a tool that trains nothing say why."""
        self.peer.finetune(None, None, None, Schedule(epochs=1, batch_size=1, learning_rate=0.0))
        return {}

    def predict(self, images: str, out: str) -> dict[str, Any]:
        """Write the outputs of a Keras model."""
        np.save(out, self.model.predict(np.load(images), batch_size=100, verbose=0))
        return {}

    def export(self, path: str) -> dict[str, Any]:
        """Seconds, and the size of the file."""
        started = time.perf_counter()
        self.peer.export(self.model, Path(path))
        return {"seconds": time.perf_counter() - started, "size_bytes": Path(path).stat().st_size}

    def prepare_step(self, images: str, labels: str) -> dict[str, Any]:
        """Make `step` run what `fit` runs for each batch; the model was fine-tuned before, and so is compiled."""
        import tensorflow as tf

        batch = tuple(tf.constant(np.load(path)) for path in (images, labels))
        self.step_iterator = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())
        self.model.make_train_function()
        self.step()
        return {}

    def step(self) -> dict[str, Any]:
        """One training step."""
        return {"loss": float(self.model.train_function(self.step_iterator)["loss"])}

    def _own_copy(self, network: Path) -> Path:
        """Links to the network's files, so that tools which write beside their input do not meet."""
        own = Path(tempfile.mkdtemp(dir=self.folder.name))
        for path in network.iterdir():
            (own / path.name).symlink_to(path.resolve())
        return own


def _set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(seed)


def _start_of_peak() -> int:
    """What the process holds now, in bytes; the peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
