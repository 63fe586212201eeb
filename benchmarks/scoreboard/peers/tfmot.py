"""TensorFlow Model Optimization's quantization-aware training, default scheme: `tfmot.quantization.keras.quantize_model`.

It has no calibration: ranges start at +-6 and move with what the layers see while training. Its way out is TFLite, as its guide says;
tf2onnx makes ONNX of that. Weights of 4 bits come from its experimental `default_n_bit` scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf2onnx
import tf_keras

from benchmarks.scoreboard.peer import Schedule

COLLECTED = 100
"""Batches that the moving averages of the ranges see, each by the factor 0.999."""


def quantize(model: Any, batches: list[Any]) -> Any:
    """Insert, then let the ranges move, with BatchNorms and weights as they are."""
    qmodel = tfmot.quantization.keras.quantize_model(model)
    return collect(qmodel, batches)


def finetune(qmodel: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
    """Plain Keras, as in the guide."""
    steps = schedule.epochs * -(-len(images) // schedule.batch_size)
    rate = tf_keras.optimizers.schedules.CosineDecay(schedule.learning_rate, steps, alpha=0.01)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qmodel.compile(tf_keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    qmodel.fit(images, labels, batch_size=schedule.batch_size, epochs=schedule.epochs, shuffle=False, verbose=0)
    return qmodel


def export(qmodel: Any, path: Path) -> None:
    """TFLite, and from there ONNX."""
    converter = tf.lite.TFLiteConverter.from_keras_model(qmodel)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    lite = path.with_suffix(".tflite")
    lite.write_bytes(converter.convert())
    tf2onnx.convert.from_tflite(str(lite), opset=17, output_path=str(path))


def collect(qmodel: Any, batches: list[Any]) -> Any:
    """Show batches in training mode, in which the ranges follow."""
    norms = [layer.layer for layer in qmodel.layers if isinstance(getattr(layer, "layer", None), tf_keras.layers.BatchNormalization)]
    for norm in norms:
        norm.trainable = False
    step = tf.function(lambda batch: qmodel(batch, training=True))  # traced once: to its advantage where time is measured
    for number in range(COLLECTED):
        step(batches[number % len(batches)])
    for norm in norms:
        norm.trainable = True
    return qmodel


def insert_n_bit(model: Any, bits: int) -> Any:
    """The experimental scheme of other widths."""
    from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit import default_n_bit_quantize_scheme

    scheme = default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(num_bits_weight=bits, num_bits_activation=8)
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    with tfmot.quantization.keras.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(annotated, scheme=scheme)


class _Tfmot:
    packages = ("tensorflow-model-optimization", "tensorflow", "tf-keras", "tf2onnx")
    variants: Mapping[str, str] = {
        "inserted": "`quantize_model`, nothing else: ranges are at their start, +-6",
        "ranges collected": f"`quantize_model`, then {COLLECTED} batches in training mode, BatchNorms frozen, no step of an optimizer",
    }
    trains_from = "ranges collected"
    is_keras = True

    def load(self, folder: Path) -> Any:
        return tf_keras.models.load_model(folder / "model.keras", compile=False)

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        if bits == 8 and variant == "ranges collected":
            return quantize(model, batches)
        qmodel = tfmot.quantization.keras.quantize_model(model) if bits == 8 else insert_n_bit(model, bits)
        return qmodel if variant == "inserted" else collect(qmodel, batches)

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        return finetune(model, images, labels, schedule)

    def export(self, model: Any, path: Path) -> None:
        export(model, path)


PEER = _Tfmot()
