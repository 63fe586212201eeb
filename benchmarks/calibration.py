"""What calibration costs, beside its limits: `python benchmarks/calibration.py`; `--quick` leaves out ResNet50.

Ratios are of times measured in turns in one process, so that other load meets both: median (least - most) over the rounds. Memory is
that of a process of its own for each number of batches. Exit code 1 if a figure is out of its limit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import tensorflow as tf
import tf_keras
from figures import Figure, show
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

import tfqat
from tfqat.calibration import calibrate as stage
from tfqat.calibration import observers
from tfqat.calibration.histogram import BINS, Histogram
from tfqat.export.onnx import export_float_onnx
from tfqat.quantize import state

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "fashion_mnist"
BATCHES, BATCH_SIZE = 16, 128
MEMORY_OPTION = "--memory-of"


def main() -> int:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without ResNet50")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    parser.add_argument(MEMORY_OPTION, type=int, dest="memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        return print_memory_of(arguments.memory_of)
    parts = (fashion_mnist, memory) if arguments.quick else (fashion_mnist, resnet50, memory)
    return 0 if show(itertools.chain.from_iterable(part(arguments.rounds) for part in parts)) else 1


def fashion_mnist(rounds: int) -> Iterator[Figure]:
    """Calibration of the example's network against its forward pass and against ONNX Runtime, 16 batches of 128 images."""
    model = tfqat.load_model(EXAMPLE / "float.keras")
    qmodel, batches = tfqat.quantize_model(model), _images()
    forward = tf.function(lambda batch: model(batch, training=False))
    tensors = stage._sources(model, state.handles(qmodel))
    counter = observers._Counter(tf.distribute.get_strategy(), tf_keras.Model(model.inputs, list(tensors.values())))
    names, points = list(tensors), [handle.point for handle in state.handles(qmodel).values()]

    def steady() -> None:
        for batch in batches:
            counter.count([([batch], BATCH_SIZE)])
        counts, largest, _ = counter.merged([0])
        found = zip(names, counts, largest.view(np.float32).tolist(), strict=True)
        stage._ranges({name: Histogram(counts=row[:BINS], largest=value) for name, row, value in found}, points)

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "float.onnx")
        export_float_onnx(model, path)
        times = measured(
            {
                "forward": lambda: _forward(forward, batches),
                "forward, traced": lambda: _forward(tf.function(lambda batch: model(batch, training=False)), batches),
                "steady": steady,
                "calibrate": lambda: tfqat.calibrate(qmodel, batches, batches=BATCHES),
                "ONNX Runtime": lambda: _quantize_static(path, str(Path(folder) / "int8.onnx"), batches),
            },
            rounds,
        )
    yield ratio("Fashion-MNIST: tfqat.calibrate / forward, both with tracing", times, "calibrate", "forward, traced", most=3.0)
    yield ratio("Fashion-MNIST: counting and choosing / forward, traced before", times, "steady", "forward", most=3.0)
    yield ratio("Fashion-MNIST: quantize_static (Percentile) / tfqat.calibrate", times, "ONNX Runtime", "calibrate", least=8.0)
    kept = tfqat.calibrate(qmodel, batches, batches=BATCHES).points
    histograms = {name: point.histogram for name, point in kept.items() if point.histogram}
    choosing = measured({"choose": lambda: stage._ranges(histograms, points)}, rounds)["choose"]
    name = "Fashion-MNIST: ranges of 16 points by 6 calibrators, from histograms, ms"
    yield Figure(name=name, value=f"{statistics.median(choosing) * 1e3:.0f}", limit="", kept=True)


def resnet50(rounds: int) -> Iterator[Figure]:
    """Calibration of ResNet50 with random weights against its forward pass, 64 images of 224x224."""
    model = tfqat.load_model(tf_keras.applications.ResNet50(weights=None))
    qmodel = tfqat.quantize_model(model)
    batches = [tf.random.stateless_normal((16, 224, 224, 3), (number, 0)) for number in range(4)]
    times = measured(
        {
            "forward": lambda: _forward(tf.function(lambda batch: model(batch, training=False)), batches),
            "calibrate": lambda: tfqat.calibrate(qmodel, batches, batches=4),
        },
        rounds,
    )
    yield ratio("ResNet50, 64 images: tfqat.calibrate / forward, both with tracing", times, "calibrate", "forward", most=1.8)


def memory(_: int) -> Iterator[Figure]:
    """Peak memory of processes that calibrate with more and more batches."""
    peaks = {}
    for batches in (4, 16, 64):
        command = [sys.executable, __file__, MEMORY_OPTION, str(batches)]
        peaks[batches] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1e6
    grown = max(peaks[16], peaks[64]) / peaks[4]
    value = ", ".join(f"{peak:.2f}" for peak in peaks.values())
    yield Figure(name="peak memory with 4, 16 and 64 batches, GB", value=value, limit="<= 1.05 of the first", kept=grown <= 1.05)


def print_memory_of(batches: int) -> int:
    """Calibrate with random images that nothing else holds, and print the peak memory of this process in KB."""
    qmodel = tfqat.quantize_model(tfqat.load_model(EXAMPLE / "float.keras"))
    images = (np.random.default_rng(number).random((BATCH_SIZE, 28, 28, 1), np.float32) for number in range(batches))
    tfqat.calibrate(qmodel, images, batches=batches)
    # Not getrusage: its peak begins with that of the process which started this one.
    print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
    return 0


def measured(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate, in turns; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            if number == 0 and name == "ONNX Runtime":  # takes long, and has nothing to warm up
                continue
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(name: str, times: Mapping[str, list[float]], over: str, under: str, *, most: float = float("inf"), least: float = 0.0) -> Figure:
    """The times of one over those of the other, round by round; the median is judged."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    median = statistics.median(ratios)
    seconds = "{:.2f} s / {:.2f} s".format(*(statistics.median(times[one]) for one in (over, under)))
    value = f"{median:.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    return Figure(name=f"{name}, {seconds}", value=value, limit=f"<= {most}" if least == 0 else f">= {least}", kept=least <= median <= most)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, batches: list[tf.Tensor]) -> None:
        self._batches = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        return next(self._batches, None)


def _quantize_static(path: str, out: str, batches: list[tf.Tensor]) -> None:
    quantize_static(
        path,
        out,
        _Reader(onnx.load(path).graph.input[0].name, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def _forward(function: Any, batches: list[tf.Tensor]) -> None:
    for batch in batches:
        function(batch).numpy()


def _images() -> list[tf.Tensor]:
    sys.path.insert(0, str(EXAMPLE))
    from data import bundled_calibration

    return [images for images, _ in bundled_calibration().take(BATCHES)]


if __name__ == "__main__":
    sys.exit(main())
