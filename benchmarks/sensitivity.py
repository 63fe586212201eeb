"""Whether the fast ranking is right and cheap, and what the search finds: `python benchmarks/sensitivity.py`; `--quick`: no large nets.

Rankings: Spearman's correlation of fast and exhaustive (leave one in, output error) on the Fashion-MNIST network, on EfficientNet-Lite0
(photographs) and on ResNet50, with the time of both, measured in turns; planted layers must come first in both. Search: the
Fashion-MNIST network with 4-bit weights, a planted network at 8 bits, and small networks against every subset. Exit code 1 if a figure is
out of its limit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras
from figures import Figure, show

import tfqat
from tfqat.analysis.bench import Bench
from tfqat.analysis.executors import InProcess
from tfqat.analysis.measure import Measurements
from tfqat.analysis.meters import make_meter
from tfqat.recipe.references import load_reference

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def main() -> int:
    """Measure everything and print it line by line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without EfficientNet-Lite0 and ResNet50")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timed comparisons (3)")
    arguments = parser.parse_args()
    return 0 if show(figures(quick=arguments.quick, rounds=arguments.rounds)) else 1


def figures(*, quick: bool, rounds: int) -> Iterator[Figure]:
    """Every figure."""
    images, labels = _fashion_mnist()
    yield from _planted(images[:512])
    yield from _against_every_subset(images[:384])
    network = tfqat.load_model(EXAMPLES / "fashion_mnist" / "float.keras")
    yield from _ranking("Fashion-MNIST network", network, images[:512], 128, rounds=1, speedup=None)
    yield from _search(network, images, labels)
    if quick:
        return
    photographs = _reference("efficientnet_lite0/data.py:images")("test")
    yield from _ranking(
        "EfficientNet-Lite0", _reference("efficientnet_lite0/model.py:build")(), photographs[:48], 16, rounds=1, speedup=None
    )
    resnet = tf_keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3), classes=100)
    noise = np.random.default_rng(0).normal(size=(512, 96, 96, 3)).astype(np.float32)
    yield from _ranking("ResNet50, 96 px, 56 units", resnet, noise, 16, rounds=rounds, speedup=10.0)


def _planted(images: np.ndarray) -> Iterator[Figure]:
    for name in ("bottleneck", "outlier_channel", "regression_head"):
        model, planted = _reference(f"{ROOT}/benchmarks/planted.py:{name}")()
        qmodel = _calibrated(model, {}, images, 128)
        for method in ("leave_one_in", "fast"):
            found = tfqat.sensitivity(qmodel, _batches(images, 128), method=method)
            first = tuple(unit.name for unit in found.units[: len(planted)])
            yield Figure(name=f"planted {name}, {method}: first", value=", ".join(first), limit=", ".join(planted), kept=first == planted)


def _ranking(name: str, model: Any, images: np.ndarray, batch: int, *, rounds: int, speedup: float | None) -> Iterator[Figure]:
    qmodel = _calibrated(model, {}, images, batch)
    data = _batches(images, batch)
    seconds: dict[str, list[float]] = {"leave_one_in": [], "fast": []}
    scores: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for method, spent in seconds.items():
            found = tfqat.sensitivity(qmodel, data, method=method)
            spent.append(found.seconds)
            scores[method] = {unit.name: unit.score for unit in found.units}
    exhaustive, fast = ([scores[method][unit] for unit in scores["fast"]] for method in seconds)
    correlation = _spearman(exhaustive, fast)
    yield Figure(
        name=f"{name}: Spearman, fast with leave one in, {len(fast)} units",
        value=f"{correlation:.3f}",
        limit=">= 0.85",
        kept=correlation >= 0.85,
    )
    ratios = [slow / quick for slow, quick in zip(*seconds.values(), strict=True)]
    yield Figure(
        name=f"{name}: time of leave one in / fast, {len(images)} images",
        value=f"{statistics.median(ratios):.1f} ({min(ratios):.1f} - {max(ratios):.1f}), {statistics.median(seconds['fast']):.0f} s",
        limit=f">= {speedup:g}" if speedup else "",
        kept=speedup is None or statistics.median(ratios) >= speedup,
    )


def _search(network: Any, images: np.ndarray, labels: np.ndarray) -> Iterator[Figure]:
    data = [(images[start : start + 500], labels[start : start + 500]) for start in range(0, len(images), 500)]
    qmodel = _calibrated(network, {"weights": {"num_bits": 4}}, _calibration_images(), 128)
    found = tfqat.sensitivity(qmodel, data, metric="accuracy", max_drop=0.005)
    yield _found("Fashion-MNIST, 4-bit weights, rounded to nearest", found, 0.005)
    model, _ = _reference(f"{ROOT}/benchmarks/planted.py:outlier_channel")()
    own = model.predict(images[:2000], batch_size=500, verbose=0).argmax(axis=1)
    qmodel = _calibrated(model, {"activations": {"calibrator": "max"}}, images[:512], 128)
    data = [(images[start : start + 500], own[start : start + 500]) for start in range(0, 2000, 500)]
    found = tfqat.sensitivity(qmodel, data, metric="accuracy", max_drop=0.005)
    yield _found("planted outlier channel, 8 bits, agreement with float", found, 0.005)


def _found(name: str, found: Any, limit: float) -> Figure:
    search = found.search
    drop = found.float_value - search.value
    return Figure(
        name=f"{name}: drop {found.float_value - found.quantized_value:.4f} ->",
        value=f"{drop:.4f}, {len(search.chosen)} of {len(found.units)} raised, {found.seconds:.0f} s",
        limit=f"<= {limit}",
        kept=search.met and drop <= limit + 1e-9,
    )


def _against_every_subset(images: np.ndarray) -> Iterator[Figure]:
    """The search beside the best of all sets of one level, on a small network with two planted layers and 4-bit weights."""
    worst = 0
    counts = []
    for seed in range(3):
        model, _ = _reference(f"{ROOT}/benchmarks/planted.py:plain")(seed)
        own = model.predict(images, batch_size=128, verbose=0).argmax(axis=1)
        qmodel = _calibrated(model, {"weights": {"num_bits": 4}}, images, 128)
        data = [(images, own)]
        found = tfqat.sensitivity(qmodel, data, metric="accuracy", max_drop=0.01)
        bench = Bench(qmodel)
        meter = make_meter("accuracy", qmodel, loss=None, metrics=(), batch=data[0])
        measured = Measurements(bench=bench, batches=data, meter=meter, executor=InProcess(bench, data))
        names = [unit.name for unit in bench.units if unit.weights]
        best = next(
            size
            for size in range(len(names) + 1)
            if any(1.0 - measured.measure(dict.fromkeys(chosen, "int8")) <= 0.01 + 1e-9 for chosen in itertools.combinations(names, size))
        )
        counts.append(f"{len(found.search.chosen)}/{best}")
        worst = max(worst, len(found.search.chosen) - best)
    yield Figure(
        name="search / best of all subsets, 3 small networks, layers raised", value=", ".join(counts), limit="<= 1 more", kept=worst <= 1
    )


def _calibrated(model: Any, quantization: dict[str, Any], images: np.ndarray, batch: int) -> Any:
    qmodel = tfqat.quantize_model(model, quantization)
    batches = _batches(images, batch)
    tfqat.calibrate(qmodel, batches, batches=len(batches))
    return qmodel


def _batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _fashion_mnist() -> tuple[np.ndarray, np.ndarray]:
    batches = list(_reference("fashion_mnist/data.py:bundled_validation")())
    return np.concatenate([np.asarray(x) for x, _ in batches]), np.concatenate([np.asarray(y) for _, y in batches])


def _calibration_images() -> np.ndarray:
    return np.concatenate([np.asarray(x) for x, _ in _reference("fashion_mnist/data.py:bundled_calibration")().take(16)])


def _reference(text: str) -> Any:
    return load_reference(text if Path(text.partition(":")[0]).is_absolute() else f"{EXAMPLES}/{text}", base=ROOT)


def _spearman(left: list[float], right: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    raise SystemExit(main())
