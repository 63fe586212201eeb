"""Train the float network that the recipes start from: `python examples/fashion_mnist/train_float.py [--out float.keras]`.

The settings below are the `training` block of `recipes/fashion_mnist.yaml`, from which tfqat derives the QAT schedule.
Needs the full 60,000 images (Keras's cache or Debian's package `dataset-fashion-mnist`).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import data
import model
import numpy as np
import tensorflow as tf
import tf_keras as keras

EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, SEED = 20, 128, 0.1, 0.9, 1e-4, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("float.keras"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(SEED)
    name, folder = data.source()
    images, labels = data.load("train", folder)
    if len(images) != 60_000:
        raise SystemExit(f"the {name} holds {len(images)} training images, not 60,000: install dataset-fashion-mnist")
    steps = math.ceil(len(images) / BATCH_SIZE) * arguments.epochs
    network = model.build()
    network.compile(
        optimizer=keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 20, warmup_target=LEARNING_RATE, warmup_steps=steps // 20),
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    network.fit(_augmented(images, labels), validation_data=data.validation(), epochs=arguments.epochs, verbose=2)
    trained = model.build()  # a model that was not compiled saves without the optimizer's state
    trained.set_weights(network.get_weights())
    trained.save(arguments.out)
    print(arguments.out, network.count_params(), "parameters")


def _augmented(images: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    """Mirror half of the images and shift them by up to two pixels."""

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(image)[0]
        image = tf.cast(image, tf.float32) / 255.0
        mirrored = tf.random.uniform((count, 1, 1, 1)) < 0.5
        image = tf.where(mirrored, image[:, :, ::-1], image)
        return tf.image.random_crop(tf.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0))), (count, 28, 28, 1)), label

    examples = tf.data.Dataset.from_tensor_slices((images, labels.astype(np.int64)))
    return examples.shuffle(len(images)).batch(BATCH_SIZE).map(augment).prefetch(4)


if __name__ == "__main__":
    main()
