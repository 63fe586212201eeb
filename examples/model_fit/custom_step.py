"""The same with a training step of your own: `quantize_model` keeps the class of the model. `python examples/model_fit/custom_step.py`."""

from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

import tfqat
from tfqat.recipe.references import load_reference

EXAMPLE = Path(__file__).resolve().parent.parent / "fashion_mnist"


class Mixup(tf_keras.Model):  # type: ignore[misc]
    """Trains on mixtures of two images and their labels (Zhang et al. 2018)."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on a batch of (images, labels)."""
        images, labels = data
        share = tf.random.uniform([])
        mixed = share * images + (1 - share) * images[::-1]
        targets = share * tf.one_hot(labels, 10) + (1 - share) * tf.one_hot(labels[::-1], 10)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, self(mixed, training=True)))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss}


def main() -> None:
    """Fine-tune the Fashion-MNIST network with mixup."""
    train, validation, calibration = (
        load_reference(f"data.py:{name}", base=EXAMPLE)() for name in ("bundled_train", "bundled_validation", "bundled_calibration")
    )
    base = tf_keras.models.load_model(EXAMPLE / "float.keras")
    qmodel = tfqat.quantize_model(Mixup(base.inputs, base.outputs))
    tfqat.calibrate(qmodel, calibration, batches=16)
    examples = sum(len(labels) for _, labels in train)
    plan = tfqat.qat_plan({"epochs": 10, "batch_size": 128, "learning_rate": 0.1}, examples=examples)
    tfqat.qat_compile(qmodel, plan, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    qmodel.fit(train.rebatch(64), validation_data=validation, epochs=plan.epochs, callbacks=tfqat.qat_callbacks(plan), verbose=2)
    print("fine-tuned with mixup:", qmodel.evaluate(validation, verbose=0)[1])


if __name__ == "__main__":
    main()
