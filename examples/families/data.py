"""Fashion-MNIST in the shapes that the recipes by family need: stand-ins for data of yours.

The images are those of the sample that `examples/fashion_mnist` carries: 12,000 for training and 10,000 for testing, of which a few hundred
are taken so that a run takes minutes. Everything is the same in every run. Batches hold 32 examples.

The garments lie on a grey, noisy ground, as in a photograph. On the flat black of the originals, values repeat exactly over half of the
image, and where one of them is at a rounding border all flip at once, which the parity check counts (docs/adr/0005).

| functions | inputs | labels |
| --- | --- | --- |
| `images_*` | (32, 96, 96, 3) in [-1, 1] | class |
| `pixels_*` | (32, 96, 96, 3) in [0, 255] | class |
| `patches_*` | (32, 48, 48, 1) in [0, 1] | class |
| `masks_*` | (32, 32, 32, 1) in [0, 1] | 1 where the garment is, same shape |
| `boxes_*` | (32, 64, 64, 1) in [0, 1] | `kind`: one-hot class; `box`: (top, left, bottom, right) / 64 |
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.recipe.references import load_reference

BATCH_SIZE = 32
TRAINING = 1024
VALIDATION = 512
LARGE_VALIDATION = 64  # for the large networks: what takes the time is the proof, which runs them on each image ten times
CALIBRATION = 256
CLASSES = 10
CANVAS = 64
GROUND = 0.25
NOISE = 0.05
SEED = 0

# By path: another example's module may go by the same name.
_FASHION_MNIST = Path(__file__).resolve().parent.parent / "fashion_mnist" / "data.py"
_SAMPLE = _FASHION_MNIST.with_name("sample")


def images_train() -> tf.data.Dataset:
    return _classes("train", TRAINING, 96, channels=3, scale=2.0, offset=-1.0)


def images_validation() -> tf.data.Dataset:
    return _classes("t10k", LARGE_VALIDATION, 96, channels=3, scale=2.0, offset=-1.0)


def images_calibration() -> tf.data.Dataset:
    return _classes("train", CALIBRATION, 96, channels=3, scale=2.0, offset=-1.0)


def pixels_train() -> tf.data.Dataset:
    return _classes("train", TRAINING, 96, channels=3, scale=255.0)


def pixels_validation() -> tf.data.Dataset:
    return _classes("t10k", LARGE_VALIDATION, 96, channels=3, scale=255.0)


def pixels_calibration() -> tf.data.Dataset:
    return _classes("train", CALIBRATION, 96, channels=3, scale=255.0)


def patches_train() -> tf.data.Dataset:
    return _classes("train", TRAINING, 48)


def patches_validation() -> tf.data.Dataset:
    return _classes("t10k", VALIDATION, 48)


def patches_calibration() -> tf.data.Dataset:
    return _classes("train", CALIBRATION, 48)


def masks_train() -> tf.data.Dataset:
    return _masks("train", TRAINING)


def masks_validation() -> tf.data.Dataset:
    return _masks("t10k", VALIDATION)


def masks_calibration() -> tf.data.Dataset:
    return _masks("train", CALIBRATION)


def boxes_train() -> tf.data.Dataset:
    return _boxes("train", TRAINING)


def boxes_validation() -> tf.data.Dataset:
    return _boxes("t10k", VALIDATION)


def boxes_calibration() -> tf.data.Dataset:
    return _boxes("train", CALIBRATION)


def _classes(split: str, examples: int, size: int, *, channels: int = 1, scale: float = 1.0, offset: float = 0.0) -> tf.data.Dataset:
    """Garments enlarged to `size` x `size`, grey in each of the channels, and their class numbers."""
    garments, labels = _load(split, examples)

    def enlarge(number: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        larger = tf.repeat(tf.image.resize(example[0], (size, size)), channels, axis=-1)
        noise = tf.random.stateless_normal(larger.shape, (SEED, number), stddev=NOISE)
        return _on_ground(larger, noise) * scale + offset, example[1]

    return tf.data.Dataset.from_tensor_slices((garments, labels)).enumerate().map(enlarge).batch(BATCH_SIZE)


def _masks(split: str, examples: int) -> tf.data.Dataset:
    """Garments in a margin of two pixels, and where they are."""
    garments, _ = _load(split, examples)
    clean = np.pad(garments, ((0, 0), (2, 2), (2, 2), (0, 0)))
    noise = np.random.default_rng(SEED).normal(0.0, NOISE, clean.shape).astype(np.float32)
    masks = (clean > 0).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((_on_ground(clean, noise), masks)).batch(BATCH_SIZE)


def _boxes(split: str, examples: int) -> tf.data.Dataset:
    """Each garment somewhere on a larger canvas: its class, one-hot, and the box around its pixels."""
    garments, labels = _load(split, examples)
    rng = np.random.default_rng(SEED)
    canvases = np.zeros((len(garments), CANVAS, CANVAS, 1), np.float32)
    boxes = np.zeros((len(garments), 4), np.float32)
    for number, garment in enumerate(garments):
        top, left = rng.integers(0, CANVAS - len(garment) + 1, 2)
        canvases[number, top : top + len(garment), left : left + len(garment)] = garment
        rows, columns, _ = np.nonzero(canvases[number])
        boxes[number] = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / CANVAS
    images = _on_ground(canvases, rng.normal(0.0, NOISE, canvases.shape).astype(np.float32))
    targets = {"kind": np.eye(CLASSES, dtype=np.float32)[labels], "box": boxes}
    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(BATCH_SIZE)


def _on_ground(garments: Any, noise: Any) -> tf.Tensor:
    """Garments, 0 where there is none, on the grey ground; in [0, 1]."""
    return tf.clip_by_value(GROUND + (1 - GROUND) * garments + noise, 0.0, 1.0)


@cache
def _load(split: str, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images (examples, 28, 28, 1) in [0, 1] and labels (examples,) of the bundled sample."""
    images, labels = load_reference(f"{_FASHION_MNIST}:load", base=_SAMPLE)(split, _SAMPLE)
    return images[:examples].astype(np.float32) / np.float32(255), labels[:examples].astype(np.int64)
