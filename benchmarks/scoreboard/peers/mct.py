"""Sony's Model Compression Toolkit, on Keras 2.15, with its default target (imx500: powers of two for activations).

It writes Keras and TFLite; the Keras model with fake quantization is taken to ONNX by tf2onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf
import tf2onnx
from model_compression_toolkit.core.common.network_editors import NodeTypeFilter

from benchmarks.scoreboard.peer import Schedule


def quantize(model: Any, batches: list[Any]) -> Any:
    """Post-training quantization as in the tutorials."""
    quantized, _ = mct.ptq.keras_post_training_quantization(model, lambda: ([batch] for batch in batches))
    return quantized


def finetune(model: Any, batches: list[Any], images: Any, labels: Any, schedule: Schedule) -> Any:
    """Its quantization-aware training, which is marked experimental."""
    qmodel, _, _ = mct.qat.keras_quantization_aware_training_init_experimental(model, lambda: ([batch] for batch in batches))
    return fit(qmodel, images, labels, schedule)


def export(quantized: Any, path: Path) -> None:
    """Keras with fake quantization, and from there ONNX."""
    keras = str(path.with_suffix(".keras"))
    mct.exporter.keras_export_model(quantized, keras, quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT)
    tf2onnx.convert.from_keras(tf.keras.models.load_model(keras), opset=17, output_path=str(path))


def fit(qmodel: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
    """Plain Keras."""
    steps = schedule.epochs * -(-len(images) // schedule.batch_size)
    rate = tf.keras.optimizers.schedules.CosineDecay(schedule.learning_rate, steps, alpha=0.01)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qmodel.compile(tf.keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    qmodel.fit(images, labels, batch_size=schedule.batch_size, epochs=schedule.epochs, shuffle=False, verbose=0)
    return qmodel


GPTQ_EPOCHS = 5


def of_bits(bits: int, model: Any) -> Any:
    """All weights in `bits`, by hand: the default target has 8, and 4 and 2 as choices of its mixed precision.

    It takes no kind of layer that the model does not have.
    """
    widths = mct.core.BitWidthConfig()
    if bits != 8:
        kinds = {tf.keras.layers.Conv2D: "kernel", tf.keras.layers.DepthwiseConv2D: "depthwise_kernel", tf.keras.layers.Dense: "kernel"}
        for kind, weight in kinds.items():
            if not any(type(layer) is kind for layer in model.layers):
                continue
            widths.set_manual_weights_bit_width(NodeTypeFilter(kind), bits, weight)
    return mct.core.CoreConfig(bit_width_config=widths)


class _Mct:
    packages = ("model-compression-toolkit", "tensorflow-cpu", "tf2onnx", "onnx")
    variants: Mapping[str, str] = {
        "PTQ": "`keras_post_training_quantization`, default target and settings",
        "GPTQ": f"`keras_gradient_post_training_quantization`, {GPTQ_EPOCHS} epochs over the calibration images",
        "QAT": "`keras_quantization_aware_training_init_experimental`, default target and settings",
    }
    trains_from = "QAT"
    is_keras = True

    def load(self, folder: Path) -> Any:
        """The architecture with Keras 2.15's own module names, without the one argument that it does not know."""
        text = (folder / "model.json").read_text(encoding="utf-8").replace("tf_keras.src.", "keras.src.")
        described = json.loads(text, object_hook=lambda one: {key: value for key, value in one.items() if key != "optional"})
        model = tf.keras.models.model_from_json(json.dumps(described))
        with np.load(folder / "weights.npz") as weights:
            model.set_weights([weights[name] for name in weights.files])
        return model

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        """Other widths and GPTQ are spelled here, as what is counted is the plain way."""

        def data() -> Any:
            return ([batch] for batch in batches)

        if variant == "QAT":
            return mct.qat.keras_quantization_aware_training_init_experimental(model, data, core_config=of_bits(bits, model))[0]
        if variant == "GPTQ":
            config = mct.gptq.get_keras_gptq_config(n_epochs=GPTQ_EPOCHS)
            return mct.gptq.keras_gradient_post_training_quantization(model, data, gptq_config=config, core_config=of_bits(bits, model))[0]
        if bits == 8:
            return quantize(model, batches)
        return mct.ptq.keras_post_training_quantization(model, data, core_config=of_bits(bits, model))[0]

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        return fit(model, images, labels, schedule)

    def export(self, model: Any, path: Path) -> None:
        if any(type(layer).__name__ == "KerasTrainableQuantizationWrapper" for layer in model.layers):
            model = mct.qat.keras_quantization_aware_training_finalize_experimental(model)
        export(model, path)


PEER = _Mct()
