"""Scenes of Fashion-MNIST garments with their boxes and classes, as `tf.data` sets: the same in every run, and nothing is downloaded.

A scene is a grey image of 96 x 96 pixels: one to four garments, their longer sides 12 to 72 pixels, on a mottled, noisy ground. Scenes for
training and calibration are made of the 12,000 training images that `examples/fashion_mnist` carries, those for validation of the first
5,000 of its test images, those for testing of the other 5,000.

Images are float32 in [0, 1], shape (batch, 96, 96, 1). Labels are a pair in the order of the model's outputs, as `encode` makes them of a
scene's garments: `classes` (batch, 12, 12, 10) and `boxes` (batch, 12, 12, 4); `decode` reads them, and what the network answers, back.
Sample weights are a pair too, (batch, 12, 12) each: 1, and for the boxes 0 in the cells that see no garment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfqat.recipe.references import load_reference

SIZE, STRIDE, CLASSES = 96, 8, 10
CELLS = SIZE // STRIDE
SIDES = (12, 72)  # of a garment's longer side, in pixels; small ones are as frequent as in photographs: log-uniform
LEAST_SIDE = 9  # more than a cell: the centre of the cell that holds the centre of a box lies in the box
MOST_GARMENTS = 4
MOST_OVERLAP = 0.1  # of the smaller one of two boxes
BATCH_SIZE = 32
SCENES = {"train": 4000, "validation": 1000, "calibration": 256, "test": 1000}
SEEDS = {"train": 1, "validation": 2, "calibration": 3, "test": 4}

# By path: another example's module may go by the same name.
_FASHION_MNIST = Path(__file__).resolve().parent.parent / "fashion_mnist" / "data.py"
_SAMPLE = _FASHION_MNIST.with_name("sample")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image (96, 96) uint8; of each garment in it the box (left, top, right, bottom) in pixels, (n, 4), and the class, (n,)."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def train() -> tf.data.Dataset:
    """4,000 scenes of training images, shuffled anew in every epoch."""
    return _batches("train", shuffle=True)


def validation() -> tf.data.Dataset:
    """1,000 scenes: what sensitivity is measured on."""
    return _batches("validation")


def test() -> tf.data.Dataset:
    """1,000 other scenes, of other garments: what figures are reported for."""
    return _batches("test")


def calibration() -> tf.data.Dataset:
    """256 other scenes of training images."""
    return _batches("calibration")


@cache
def scenes(split: str) -> tuple[Scene, ...]:
    """All scenes of split "train", "validation", "calibration" or "test"."""
    return tuple(islice(compose(split), SCENES[split]))


def compose(split: str) -> Iterator[Scene]:
    """Ever new scenes of the garments of a split, the same ones each time that it is called."""
    rng = np.random.default_rng(SEEDS[split])
    garments, labels = _garments(split)
    while True:
        canvas, boxes, classes = _ground(rng), np.zeros((0, 4), np.int64), []
        for number in rng.integers(0, len(garments), rng.integers(1, MOST_GARMENTS + 1)):
            garment = _scaled(garments[number], rng)
            height, width = garment.shape
            for _ in range(10):  # places to try; a garment that fits in none of them is left out
                left, top = rng.integers(0, SIZE - width + 1), rng.integers(0, SIZE - height + 1)
                box = np.array([left, top, left + width, top + height])
                if np.all(overlap(box, boxes) <= MOST_OVERLAP):
                    _paste(canvas, garment, box, brightness=rng.uniform(0.7, 1.0))
                    boxes, classes = np.vstack([boxes, box]), [*classes, labels[number]]
                    break
        noisy = canvas + rng.normal(0.0, 0.03, canvas.shape)
        image = np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
        yield Scene(image=image, boxes=boxes.astype(np.float32), classes=np.array(classes))


def encode(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network should answer for a scene, cell by cell, as in FCOS (Tian et al. 2019).

    A cell of 8 x 8 pixels sees a garment if its centre lies in the inner part of the box, half as wide and half as high, or if it holds the
    centre of the box; of two garments it sees the smaller one.

    Args:
        boxes: (n, 4), (left, top, right, bottom) in pixels.
        classes: (n,).

    Returns:
        classes: (12, 12, 10), 1 for the class of the garment that a cell sees; and
        boxes: (12, 12, 4), the distances in pixels from the cell's centre to the box's left, top, right and bottom; 0 where none is seen.
    """
    one_hot, distances = np.zeros((CELLS, CELLS, CLASSES), np.float32), np.zeros((CELLS, CELLS, 4), np.float32)
    x, y = _centres()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for (left, top, right, bottom), number in zip(boxes[np.argsort(-areas)], classes[np.argsort(-areas)], strict=True):
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        seen = (abs(x - middle_x) < (right - left) / 4) & (abs(y - middle_y) < (bottom - top) / 4)
        seen[int(middle_y // STRIDE), int(middle_x // STRIDE)] = True
        one_hot[seen] = np.eye(CLASSES, dtype=np.float32)[number]
        distances[seen] = np.stack([x - left, y - top, right - x, bottom - y], axis=-1)[seen]
    return one_hot, distances


def decode(boxes: np.ndarray) -> np.ndarray:
    """The boxes of all cells, (..., 12, 12, 4), as (left, top, right, bottom) in pixels; from distances as `encode` makes them."""
    x, y = _centres()
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    return np.stack([x - left, y - top, x + right, y + bottom], axis=-1)


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much of the smaller one of two boxes lies in the other, for a box (4,) and each of `boxes` (n, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return np.prod(np.maximum(sides, 0), axis=1) / smaller


def arrays(found: tuple[Scene, ...]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Scenes as the network takes them: images (n, 96, 96, 1), and the labels of both outputs."""
    images = np.stack([scene.image for scene in found])[..., None].astype(np.float32) / np.float32(255)
    classes, boxes = zip(*(encode(scene.boxes, scene.classes) for scene in found), strict=True)
    return images, (np.stack(classes), np.stack(boxes))


def _batches(split: str, *, shuffle: bool = False) -> tf.data.Dataset:
    images, (classes, boxes) = arrays(scenes(split))
    weights = np.ones(classes.shape[:-1], np.float32), classes.max(axis=-1)
    examples = tf.data.Dataset.from_tensor_slices((images, (classes, boxes), weights))
    return (examples.shuffle(len(images), seed=0) if shuffle else examples).batch(BATCH_SIZE)


@cache
def _garments(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The images of the bundled sample that a split is made of, in [0, 1] and cut to the garment, and the class numbers."""
    source, part = {"validation": ("t10k", slice(5000)), "test": ("t10k", slice(5000, None))}.get(split, ("train", slice(None)))
    images, labels = load_reference(f"{_FASHION_MNIST}:load", base=_SAMPLE)(source, _SAMPLE)
    return [_cut(image[..., 0]) for image in images[part]], labels[part].astype(np.int64)


def _cut(image: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(image > 20)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32) / np.float32(255)


def _scaled(garment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The garment, mirrored half of the time, at a random size."""
    garment = garment[:, ::-1] if rng.random() < 0.5 else garment
    scale = np.exp(rng.uniform(*np.log(SIDES))) / max(garment.shape)
    rows, columns = (_interpolation(side, max(LEAST_SIDE, round(side * scale))) for side in garment.shape)
    return rows @ garment @ columns.T


@cache
def _interpolation(old: int, new: int) -> np.ndarray:
    """(new, old): linear interpolation between pixel centres, each row sums to 1. Shrinking averages, with a triangle as wide."""
    width = max(1.0, old / new)
    places = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - abs(places - np.arange(old)) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A mottled grey ground: eight by eight random greys, with smooth passages between them."""
    blow_up = _interpolation(8, SIZE)
    return blow_up @ rng.uniform(0.0, 0.4, (8, 8)).astype(np.float32) @ blow_up.T


def _paste(canvas: np.ndarray, garment: np.ndarray, box: np.ndarray, *, brightness: float) -> None:
    """Lay the garment on the canvas; what is nearly black in it is transparent."""
    left, top, right, bottom = box
    opaque = np.minimum(1, garment / 0.15)
    canvas[top:bottom, left:right] = (1 - opaque) * canvas[top:bottom, left:right] + opaque * brightness * garment


def _centres() -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the cells' centres in pixels, (12, 12) each."""
    middles = (np.arange(CELLS, dtype=np.float32) + np.float32(0.5)) * STRIDE
    return np.tile(middles, (CELLS, 1)), np.tile(middles[:, None], (1, CELLS))
