"""What each way to quantize without training keeps of EfficientNet-Lite0's logits, in one run: `python benchmarks/ptq.py`.

Real ImageNet weights, photographs, symmetric int8 at TensorRT's places, logit SQNR against float on 115 test images, 64 images to
calibrate with. ONNX Runtime's `quantize_static` beside it, symmetric and asymmetric, its graph executed as written. Exit code 1 if the
best of tfqat is not 2 dB above its best single calibrator, or not above ONNX Runtime's asymmetric one. The Fashion-MNIST network
beside it, with weights of 8 and 4 bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tfqat
from tfqat.calibration.calibrate import apply, choose_best, recalibrate
from tfqat.calibration.equalize import equalize
from tfqat.calibration.sequential import correct
from tfqat.quantize.apply import placement_of
from tfqat.recipe.references import load_reference
from tfqat.spec import Calibrator

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "efficientnet_lite0"
BATCH_SIZE = 16
CALIBRATORS = ("max", "percentile(99.9)", "percentile(99.99)", "percentile(99.999)", "entropy", "mse")
CORRECTIONS = {
    "bias": {"rounding": False, "bias": True},
    "rounding": {"rounding": True, "bias": False},
    "rounding, bias": {"rounding": True, "bias": True},
}


def main() -> int:
    """Measure every row and judge."""
    build, images, agreement, with_onnxruntime = (
        load_reference(f"{EXAMPLE / file}:{name}", base=EXAMPLE)
        for file, name in (("model.py", "build"), ("data.py", "images"), ("compare.py", "agreement"), ("compare.py", "with_onnxruntime"))
    )
    network, calibration, test = build(), images("calibration"), images("test")
    fashion_mnist(agreement)
    reference = network.predict(test, batch_size=BATCH_SIZE, verbose=0)
    found: dict[str, float] = {}
    for name, seconds, model in ways(network, calibration):
        found[name] = _show(name, seconds, agreement(reference, model.predict(test, batch_size=BATCH_SIZE, verbose=0)))
    for name, symmetric in (("ONNX Runtime, symmetric", True), ("ONNX Runtime, asymmetric", False)):
        started = time.perf_counter()
        logits = with_onnxruntime(network, None, calibration, test, symmetric=symmetric)
        found[name] = _show(name, time.perf_counter() - started, agreement(reference, logits))
    single = max(found[name] for name in CALIBRATORS)
    best = max((name for name in found if not name.startswith("ONNX Runtime")), key=lambda name: found[name])
    verdicts = (
        (f"best recipe ({best}) over the best single calibrator, dB", found[best] - single, 2.0),
        ("the same over ONNX Runtime's asymmetric quantize_static, dB", found[best] - found["ONNX Runtime, asymmetric"], 0.0),
    )
    for text, value, limit in verdicts:
        print(f"{'ok ' if value >= limit else 'OUT'} {text}: {value:+.2f} (at least {limit:+.1f})")
    return 0 if all(value >= limit for _, value, limit in verdicts) else 1


def fashion_mnist(agreement: Any) -> None:
    """Print what the corrections are worth on the example's network: accuracy and SQNR of its logits on the 10,000 test images."""
    folder = EXAMPLE.parent / "fashion_mnist"
    validation, calibration = (
        load_reference(f"{folder / 'data.py'}:bundled_{name}", base=folder)() for name in ("validation", "calibration")
    )
    images = np.concatenate([np.asarray(x) for x, _ in validation])
    labels = np.concatenate([np.asarray(y) for _, y in validation])
    network = tfqat.load_model(folder / "float.keras")
    reference = network.predict(images, batch_size=500, verbose=0)
    for bits in (8, 4):
        qmodel = tfqat.quantize_model(network, {"weights": {"num_bits": bits}})
        tfqat.calibrate(qmodel, calibration, batches=16)
        fresh = qmodel.get_weights()
        for name, arguments in ({"nearest": None} | CORRECTIONS).items():
            qmodel.set_weights(fresh)
            if arguments:
                correct(qmodel, calibration.take(16), **arguments)
            logits = qmodel.predict(images, batch_size=500, verbose=0)
            accuracy = np.mean(logits.argmax(axis=1) == labels)
            sqnr = agreement(reference, logits)["sqnr_db"]
            print(f"Fashion-MNIST, {bits} bits, {name:32} {sqnr:6.2f} dB   accuracy {accuracy:.2%}", flush=True)


def ways(network: Any, calibration: np.ndarray) -> Iterator[tuple[str, float, Any]]:
    """(what was done, seconds, the quantized model) for every way; the model is only good until the next one."""
    batches = [calibration[start : start + BATCH_SIZE] for start in range(0, len(calibration), BATCH_SIZE)]
    for weights in ("max", "mse"):
        qmodel = tfqat.quantize_model(network, {"weights": {"calibrator": weights}})
        started = time.perf_counter()
        measured = tfqat.calibrate(qmodel, batches, batches=len(batches))
        seconds = time.perf_counter() - started
        points, fresh = placement_of(qmodel).points, qmodel.get_weights()
        suffix = "" if weights == "max" else ", weights mse"
        for text in (*CALIBRATORS, "best") if weights == "max" else ("mse",):
            started = time.perf_counter()
            if text == "best":
                ranges = choose_best(qmodel, measured, [point.id for point in points if point.kind == "activation"], batches)
            else:
                ranges = recalibrate(measured, points, Calibrator.parse(text))
            qmodel.set_weights(fresh)
            apply(qmodel, ranges)
            yield f"{text}{suffix}", seconds + time.perf_counter() - started, qmodel
            if text in ("percentile(99.999)", "mse"):
                yield from _corrected(qmodel, ranges, batches, f"{text}{suffix}", fresh)
    equalized = equalize(network, batches, batches=len(batches)).model
    qmodel = tfqat.quantize_model(equalized, {"activations": {"calibrator": "mse"}})
    tfqat.calibrate(qmodel, batches, batches=len(batches))
    fresh = qmodel.get_weights()
    yield "mse, equalized", 0.0, qmodel
    yield from _corrected(qmodel, None, batches, "mse, equalized", fresh)


def _corrected(qmodel: Any, ranges: Any, batches: list[Any], name: str, fresh: Any) -> Iterator[tuple[str, float, Any]]:
    for correction, arguments in CORRECTIONS.items():
        qmodel.set_weights(fresh)
        if ranges is not None:
            apply(qmodel, ranges)
        started = time.perf_counter()
        correct(qmodel, batches, **arguments)
        yield f"{name} + {correction}", time.perf_counter() - started, qmodel


def _show(name: str, seconds: float, measures: dict[str, float]) -> float:
    print(f"{name:48} {measures['sqnr_db']:6.2f} dB   top-1 agreement {measures['top1_agreement']:6.1%}   {seconds:5.0f} s", flush=True)
    return measures["sqnr_db"]


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    raise SystemExit(main())
