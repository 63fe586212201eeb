"""Train the float detector that the recipe starts from: `python examples/detector/train_float.py [--out float.keras]`.

Each step sees new scenes. About four minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import metric
import model
import tensorflow as tf
import tf_keras as keras

EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, SEED = 10, 300, 32, 3e-3, 1e-4, 1
FOCUS, BALANCE = 2.0, 0.25  # gamma and alpha of the focal loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("float.keras"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(SEED)
    steps = arguments.epochs * STEPS_PER_EPOCH
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 10, warmup_target=LEARNING_RATE, warmup_steps=steps // 10)
    network = model.build()
    network.compile(keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY), loss={"classes": focal_loss, "boxes": giou_loss})
    network.fit(_endless(), steps_per_epoch=STEPS_PER_EPOCH, epochs=arguments.epochs, verbose=2)
    trained = model.build()  # a model that was not compiled saves without the optimizer's state
    trained.set_weights(network.get_weights())
    trained.save(arguments.out)
    images, labels = data.arrays(data.scenes("test"))
    found = metric.average_precisions(trained.predict(images, verbose=0), labels)
    print(arguments.out, trained.count_params(), "parameters,", ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def focal_loss(wanted: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """sum -a (1 - p)^2 log p over all cells and classes, divided by the number of cells that see a garment (Lin et al. 2017).

    p is the score where the class is there and 1 - score elsewhere, a is 0.25 and 0.75.
    """
    there = wanted > 0
    right = tf.clip_by_value(tf.where(there, scores, 1 - scores), 1e-6, 1.0)
    terms = tf.where(there, BALANCE, 1 - BALANCE) * (1 - right) ** FOCUS * -tf.math.log(right)
    return 4 * tf.reduce_sum(terms) / tf.maximum(tf.reduce_sum(wanted), 1.0)


def giou_loss(wanted: tf.Tensor, distances: tf.Tensor) -> tf.Tensor:
    """1 - GIoU of the boxes, the mean over the cells that see a garment (Rezatofighi et al. 2019). Both are distances from one point."""
    seen = tf.cast(tf.reduce_max(wanted, axis=-1) > 0, tf.float32)
    common = _area(tf.minimum(wanted, distances))
    union = _area(wanted) + _area(distances) - common
    hull = _area(tf.maximum(wanted, distances))
    generalised = common / tf.maximum(union, 1e-6) - (hull - union) / tf.maximum(hull, 1e-6)
    return 2 * tf.reduce_sum(seen * (1 - generalised)) / tf.maximum(tf.reduce_sum(seen), 1.0)


def _area(distances: tf.Tensor) -> tf.Tensor:
    left, top, right, bottom = tf.unstack(distances, axis=-1)
    return (left + right) * (top + bottom)


def _endless() -> tf.data.Dataset:
    def batches() -> Iterator[Any]:
        stream = data.compose("train")
        while True:
            yield data.arrays(tuple(next(stream) for _ in range(BATCH_SIZE)))

    shapes = (data.SIZE, data.SIZE, 1), ((data.CELLS, data.CELLS, data.CLASSES), (data.CELLS, data.CELLS, 4))
    image, labels = tf.TensorSpec((None, *shapes[0])), tuple(tf.TensorSpec((None, *shape)) for shape in shapes[1])
    return tf.data.Dataset.from_generator(batches, output_signature=(image, labels)).prefetch(8)


if __name__ == "__main__":
    main()
