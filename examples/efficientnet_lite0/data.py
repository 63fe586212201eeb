"""Colour photographs that scikit-image's wheel carries, cut into crops: 64 to calibrate with and 115 to test with. No download.

There are no ImageNet labels for these. The label of a crop is **the float model's own top-1 class**, so an `accuracy` measured with it
is the top-1 agreement with the float model (the float model's own accuracy is 1 by definition), not ImageNet accuracy.

Images are float32, shape (batch, 224, 224, 3), normalised as the weights want it: (pixel - 127) / 128. Labels are int64, shape (batch,).
No crop is in both sets, but crops of one photograph overlap: they measure what quantization changes, not how a model generalises.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfqat.errors import DataError
from tfqat.recipe.references import load_reference

build = load_reference(f"{Path(__file__).resolve().with_name('model.py')}:build", base=Path(__file__).parent)

# The colour photographs in the wheels of scikit-image 0.24 to 0.26; skimage.data would fetch the others from the network.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket", "stereo_motorcycle")
IMAGE_SIZE = 224
CALIBRATION_IMAGES, TEST_IMAGES, BATCH_SIZE = 64, 115, 16
# Positions along each axis for each size of crop, smallest size first.
POSITIONS = (4, 3, 3, 3)


def calibration() -> tf.data.Dataset:
    """64 crops in batches of 16, with the float model's classes as labels: what calibration sees."""
    return _batches("calibration")


def validation() -> tf.data.Dataset:
    """115 other crops in batches of 16, with the float model's classes as labels."""
    return _batches("test")


@cache
def images(split: str) -> np.ndarray:
    """The crops of split "calibration" (64, 224, 224, 3) or "test" (115, 224, 224, 3), normalised."""
    count = {"calibration": CALIBRATION_IMAGES, "test": TEST_IMAGES}[split]
    found = [crop for name in PHOTOGRAPHS for crop in crops(name, split)]
    # Evenly over all photographs and sizes.
    return np.stack([normalised(found[index]) for index in np.arange(count) * len(found) // count])


@cache
def labels(split: str) -> np.ndarray:
    """The classes that the float model gives to `images(split)`, int64."""
    return build().predict(images(split), batch_size=BATCH_SIZE, verbose=0).argmax(axis=1).astype(np.int64)


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, (height, width, 3) uint8.

    Raises:
        DataError: scikit-image is not installed; says how to install it.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise DataError(f"scikit-image, which holds the photographs, is not installed ({error}): pip install 'tfqat[examples]'") from error
    loaded = getattr(skimage.data, name)()
    return loaded[0] if isinstance(loaded, tuple) else loaded  # of the stereo pair, the left one


def normalised(picture: np.ndarray) -> np.ndarray:
    """A square picture as the network takes it: 224 x 224, float32, (pixel - 127) / 128."""
    from skimage.transform import resize

    resized = resize(picture, (IMAGE_SIZE, IMAGE_SIZE), preserve_range=True, anti_aliasing=True)
    return ((resized - 127) / 128).astype(np.float32)


def crops(name: str, split: str) -> list[np.ndarray]:
    """The square crops of a photograph that belong to a split: every third one is for calibration, the others are for testing."""
    picture = photograph(name)
    found = [picture[top : top + side, left : left + side] for side, top, left in _places(*picture.shape[:2])]
    return [crop for number, crop in enumerate(found) if (number % 3 == 0) == (split == "calibration")]


def _places(height: int, width: int) -> list[tuple[int, int, int]]:
    """(side, top, left) of each crop: sides from half the shorter side to all of it, and never so small that a crop would be enlarged.

    Enlarging blurs: the network was trained on photographs that were made smaller.
    """
    shorter = min(height, width)
    sides = np.linspace(max(IMAGE_SIZE, shorter / 2), shorter, len(POSITIONS)).round().astype(int)
    return [
        (int(side), int(top), int(left))
        for side, positions in zip(sides, POSITIONS, strict=True)
        for top in _spread(height - side, positions)
        for left in _spread(width - side, positions)
    ]


def _spread(room: int, positions: int) -> np.ndarray:
    return np.unique(np.linspace(0, room, positions).round().astype(int))


def _batches(split: str) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((images(split), labels(split))).batch(BATCH_SIZE)
