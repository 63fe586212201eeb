"""The float network: what is fine-tuned without any quantization is the control of all fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras

from benchmarks.scoreboard.peer import Schedule


def finetune(model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
    """Plain Keras."""
    steps = schedule.epochs * -(-len(images) // schedule.batch_size)
    rate = tf_keras.optimizers.schedules.CosineDecay(schedule.learning_rate, steps, alpha=0.01)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=schedule.batch_size, epochs=schedule.epochs, shuffle=False, verbose=0)
    return model


class _Float:
    packages = ("tf-keras", "tensorflow")
    variants: Mapping[str, str] = {"float": "not quantized"}
    trains_from = "float"
    is_keras = True

    def load(self, folder: Path) -> Any:
        return tf_keras.models.load_model(folder / "model.keras", compile=False)

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        return model

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        return finetune(model, images, labels, schedule)

    def export(self, model: Any, path: Path) -> None:
        import tf2onnx

        tf2onnx.convert.from_keras(model, opset=17, output_path=str(path))


PEER = _Float()
