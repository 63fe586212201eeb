"""The onnxruntime target beside ONNX Runtime's own `quantize_static`: how fast, and how right. `python benchmarks/onnxruntime_target.py`.

Speed: ResNet50 and MobileNetV2 (Keras's, random weights, BatchNorm statistics of noise), default sessions, all variants in turns in one
run; the ratio is of times in the same round, with its quartiles. Rightness: the Fashion-MNIST network, accuracy on the test images of the
graph run literally, as ONNX Runtime fuses it on this CPU, and fused on a CPU without VNNI. For the last, `qemu-x86_64 -cpu Haswell`
(Debian's package qemu-user) runs the same library: its int8 kernels are those that add two products in 16 bits.

Exit code 1 if the target is slower than quantize_static's uint8 graph, or its fused kernels lose more than 0.05 points of accuracy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnxruntime as ort
import tensorflow as tf
import tf_keras
from figures import Figure, show
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import tfqat
from tfqat.export.onnx import export_float_onnx
from tfqat.form import Form
from tfqat.recipe.references import load_reference

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_mnist"
NETWORKS = {"ResNet50": tf_keras.applications.ResNet50, "MobileNetV2": tf_keras.applications.MobileNetV2}
TARGET, STATIC, SYMMETRIC = "tfqat, onnxruntime", "quantize_static, uint8", "quantize_static, symmetric int8"
EXACT = ", x64quantprecision"
LOST = 0.0005
NO_VNNI = ("qemu-x86_64", "-cpu", "Haswell")


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=10_000, help="test images of Fashion-MNIST")
    parser.add_argument("--emulated", type=int, default=1000, help="of them emulated, but for the target")
    parser.add_argument("--skip", choices=("speed", "rightness"))
    given = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        if given.skip != "rightness":
            kept &= show(rightness(Path(folder), given.images, given.emulated))
        for name in NETWORKS if given.skip != "speed" else ():
            kept &= show(speed(name, Path(folder), given.size, given.rounds))
    return 0 if kept else 1


def speed(name: str, folder: Path, size: int, rounds: int) -> Iterator[Figure]:
    """Time every variant of a network; one line each, and the target against quantize_static."""
    images = np.random.default_rng(0).uniform(-1, 1, (8, size, size, 3)).astype(np.float32)
    graphs = variants(network(name, images), images, folder / name)
    sessions = {key: session(path) for key, path in graphs.items()}
    for key in (TARGET, STATIC, SYMMETRIC):
        sessions[key + EXACT] = session(graphs[key], exact=True)
    times = in_turns(sessions, images[:1], rounds)
    for key, found in times.items():
        yield Figure(name=f"{name}: {key}", value=f"{statistics.median(found):.2f} ms", limit=ratio(times["float"], found)[1], kept=True)
    del sessions  # the threads of idle sessions spin for a while, so the two that are judged run alone
    pair = in_turns({key: session(graphs[key]) for key in (STATIC, TARGET)}, images[:1], 3 * rounds)
    middle, text = ratio(pair[STATIC], pair[TARGET])
    yield Figure(name=f"{name}: {STATIC} / {TARGET}", value=text, limit="at least 1.00", kept=middle >= 1.0)


def network(name: str, images: np.ndarray) -> Any:
    """A network with random weights whose BatchNorms have seen data, and whose classifier has a bias, as trained ones do."""
    tf_keras.utils.set_random_seed(0)
    model = NETWORKS[name](weights=None, input_shape=images.shape[1:])
    norms = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.5
    for _ in range(6):
        model(images, training=True)
    model.layers[-1].bias.assign(tf.random.normal([1000], stddev=0.1, seed=0))
    return model


def variants(model: Any, images: np.ndarray, folder: Path) -> dict[str, Path]:
    """The graphs of a model: float, tfqat's for both targets, and quantize_static's."""
    folder.mkdir()
    paths = {"float": folder / "float.onnx"}
    export_float_onnx(tfqat.load_model(model), paths["float"])
    for key, target in (("tfqat, tensorrt", "tensorrt"), (TARGET, "onnxruntime")):
        qmodel = tfqat.quantize_model(model, {"target": target})
        tfqat.calibrate(qmodel, [images], batches=1)
        paths[key] = folder / f"{target}.onnx"
        tfqat.export_onnx(qmodel, paths[key], form=Form(target=target))
    quant_pre_process(str(paths["float"]), str(folder / "prepared.onnx"))
    for key, kind, symmetric in ((STATIC, QuantType.QUInt8, False), (SYMMETRIC, QuantType.QInt8, True)):
        paths[key] = folder / f"{key.replace(', ', '_')}.onnx"
        static_graph(folder / "prepared.onnx", paths[key], images, kind=kind, symmetric=symmetric)
    return paths


def static_graph(prepared: Path, path: Path, images: np.ndarray, *, kind: QuantType, symmetric: bool, **more: Any) -> None:
    """quantize_static's graph of a prepared float one: Q/DQ, weights symmetric int8 per channel."""
    quantize_static(
        str(prepared),
        str(path),
        Reader(prepared, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=kind,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, **more},
    )


class Reader(CalibrationDataReader):
    """The same images that tfqat calibrates with, four at a time."""

    def __init__(self, graph: Path, images: np.ndarray) -> None:
        name = session(graph).get_inputs()[0].name
        self.batches = iter([{name: images[start : start + 4]} for start in range(0, len(images), 4)])

    def get_next(self) -> Any:
        """The next batch, None behind the last."""
        return next(self.batches, None)


def session(path: Path, *, literal: bool = False, exact: bool = False) -> Any:
    """A session as a user opens it; `literal`: Q/DQ as they are written; `exact`: without 16-bit sums, at a price."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_turns(sessions: Mapping[str, Any], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round; every round goes through all sessions, forwards or backwards."""
    times: dict[str, list[float]] = {key: [] for key in sessions}
    for turn in range(rounds + 5):
        for key in list(sessions)[:: 1 if turn % 2 else -1]:
            feed = {sessions[key].get_inputs()[0].name: images}
            started = time.perf_counter()
            sessions[key].run(None, feed)
            if turn >= 5:
                times[key].append((time.perf_counter() - started) * 1e3)
    return times


def ratio(reference: list[float], found: list[float]) -> tuple[float, str]:
    """How many times faster than the reference, by the median over rounds, with its quartiles."""
    each = [one / other for one, other in zip(reference, found, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return middle, f"{middle:.2f} x ({low:.2f} to {high:.2f})"


def rightness(folder: Path, count: int, emulated_count: int) -> Iterator[Figure]:
    """Accuracy of every variant of the Fashion-MNIST network, run literally, fused here, and fused without VNNI."""
    data = {name: load_reference(f"{EXAMPLE / 'data.py'}:{name}", base=EXAMPLE) for name in ("bundled_calibration", "bundled_validation")}
    images = np.concatenate([batch[0] for batch in data["bundled_calibration"]().take(16)])
    test = [np.concatenate(parts)[:count] for parts in zip(*data["bundled_validation"]().as_numpy_iterator(), strict=True)]
    graphs = variants(tf_keras.models.load_model(EXAMPLE / "float.keras"), images, folder / "fashion_mnist")
    for key, path in graphs.items():
        found = {"literal": accuracy(session(path, literal=True), *test), "here": accuracy(session(path), *test)}
        lost = found["literal"] - found["here"]
        if shutil.which(NO_VNNI[0]) and key != "float":
            few = test if key == TARGET else [array[:emulated_count] for array in test]
            found[f"first {len(few[0])} literal"] = accuracy(session(path, literal=True), *few)
            found["without VNNI"] = emulated(path, folder, *few)
            lost = max(lost, found[f"first {len(few[0])} literal"] - found["without VNNI"])
            if key in (STATIC, SYMMETRIC):
                found[f"without VNNI{EXACT}"] = emulated(path, folder, *few, exact=True)
        elif key == TARGET:
            print(f"not run: {NO_VNNI[0]} is not installed (apt-get install qemu-user), so kernels without VNNI are not seen")
        text = ", ".join(f"{name} {100 * value:.2f}" for name, value in found.items())
        limit = f"fused within {100 * LOST:g} points" if key == TARGET else ""
        yield Figure(name=f"Fashion-MNIST, {len(test[0])} images: {key}", value=text, limit=limit, kept=key != TARGET or lost <= LOST)


def accuracy(run: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest output is that of their label."""
    name = run.get_inputs()[0].name
    chosen = [run.run(None, {name: images[start : start + 500]})[0].argmax(axis=1) for start in range(0, len(images), 500)]
    return float((np.concatenate(chosen) == labels).mean())


def emulated(path: Path, folder: Path, images: np.ndarray, labels: np.ndarray, *, exact: bool = False) -> float:
    """The accuracy in a process on an emulated CPU without VNNI."""
    np.savez(folder / "test.npz", images=images, labels=labels)
    given = [str(path), str(folder / "test.npz"), "exact" if exact else ""]
    command = [*NO_VNNI, os.path.realpath(sys.executable), "-c", _EMULATED, *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


_EMULATED = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
if sys.argv[3]:
    options.add_session_config_entry("session.x64quantprecision", "1")
run, data = ort.InferenceSession(sys.argv[1], options), np.load(sys.argv[2])
name, images = run.get_inputs()[0].name, data["images"]
chosen = [run.run(None, {name: images[start : start + 500]})[0].argmax(axis=1) for start in range(0, len(images), 500)]
print((np.concatenate(chosen) == data["labels"]).mean())
"""


if __name__ == "__main__":
    raise SystemExit(main())
