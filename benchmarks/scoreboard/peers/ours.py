"""tfqat, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras

import tfqat
from benchmarks.scoreboard.peer import Schedule
from tfqat.form import Form

LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def quantize(model: Any, batches: list[Any], bits: int = 8, target: str = "tensorrt") -> Any:
    """Ranges by percentile 99.99, weights per channel and rounded so that their errors cancel: what the preset `selective` does."""
    qmodel = tfqat.quantize_model(model, {"weights": {"num_bits": bits}, "target": target})
    tfqat.calibrate(qmodel, batches, batches=len(batches))
    tfqat.correct(qmodel, batches, bias=False)
    return qmodel


def finetune(qmodel: Any, images: Any, labels: Any, float_training: dict[str, Any]) -> Any:
    """The schedule that follows from how the float model was trained."""
    plan = tfqat.qat_plan(float_training, examples=len(images))
    tfqat.qat_compile(qmodel, plan, LOSS, ["accuracy"])
    callbacks = tfqat.qat_callbacks(plan)
    qmodel.fit(images, labels, batch_size=plan.batch_size, epochs=plan.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return qmodel


def export(qmodel: Any, path: Path, target: str = "tensorrt") -> None:
    """ONNX with Q/DQ."""
    tfqat.export_onnx(qmodel, path, form=Form(target=target))


class _Tfqat:
    packages = ("tfqat", "tensorflow", "tf-keras", "tf2onnx", "onnx", "onnxruntime", "tensorrt-rtx-cu13-libs", "scikit-image", "numpy")
    variants: Mapping[str, str] = {
        "tensorrt": "preset selective: symmetric int8, percentile 99.99, weights per channel with compensated rounding",
        "onnxruntime": "the same, exported for ONNX Runtime's integer kernels (`target: onnxruntime`)",
    }
    trains_from = "tensorrt"
    is_keras = True

    def __init__(self) -> None:
        self.target = "tensorrt"

    def load(self, folder: Path) -> Any:
        return tf_keras.models.load_model(folder / "model.keras", compile=False)

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        self.target = variant
        return quantize(model, batches, bits, variant)

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        """The float training of which the plan makes this schedule: ten times the epochs, twice the batch, a hundred times the rate."""
        rate, batch_size = 100 * schedule.learning_rate, 2 * schedule.batch_size
        return finetune(model, images, labels, {"epochs": 10 * schedule.epochs, "batch_size": batch_size, "learning_rate": rate})

    def export(self, model: Any, path: Path) -> None:
        export(model, path, self.target)


PEER = _Tfqat()
