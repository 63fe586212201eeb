"""Fashion-MNIST as `tf.data` sets: the full data where the machine has it, else the sample that lies beside this file.

Images are float32 in [0, 1], shape (batch, 28, 28, 1); labels are int64, shape (batch,). Batches hold 128 images; `tfqat`
re-batches the training set to the batch size of its schedule.

`train`, `validation` and `calibration` take the first source that is there: Keras's own cache (`$KERAS_HOME`), Debian's
package `dataset-fashion-mnist`, the bundled sample. `bundled_train` and `bundled_calibration` always take the sample, so that a recipe
which names them gives the same numbers on every machine. The 10,000 test images (`validation`) are the same in all three.
"""

from __future__ import annotations

import gzip
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

BATCH_SIZE = 128
SHUFFLE_SEED = 0

_KERAS_CACHE = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "fashion-mnist"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_BUNDLED = Path(__file__).resolve().parent / "sample"
_SOURCES = {"Keras cache": _KERAS_CACHE, "Debian package dataset-fashion-mnist": _DEBIAN, "bundled sample": _BUNDLED}


def source() -> tuple[str, Path]:
    """The first source that holds all four files: its name and its folder."""
    for name, folder in _SOURCES.items():
        if all(_find(folder, stem) for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")):
            return name, folder
    raise FileNotFoundError(f"Fashion-MNIST is in none of: {', '.join(map(str, _SOURCES.values()))}")


def load(split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28, 1) uint8 and labels (n,) uint8 of split "train" or "t10k", from the IDX files in `folder`."""
    images, labels = _find(folder, f"{split}-images-idx3"), _find(folder, f"{split}-labels-idx1")
    if images is None or labels is None:
        raise FileNotFoundError(f"{folder} holds no {split} images and labels in IDX format")
    return _read_idx(images, header=16).reshape(-1, 28, 28, 1), _read_idx(labels, header=8)


def train() -> tf.data.Dataset:
    """Training images of the first source (60,000, or the 12,000 of the sample), shuffled anew in every epoch."""
    return _shuffled(*load("train", _say_and_pick()))


def validation() -> tf.data.Dataset:
    """The 10,000 test images, in order."""
    return _in_order(*load("t10k", _say_and_pick()))


def calibration() -> tf.data.Dataset:
    """Training images in their order, without augmentation: what calibration sees."""
    return _in_order(*load("train", _say_and_pick()))


def bundled_train() -> tf.data.Dataset:
    """The 12,000 training images of the bundled sample, shuffled anew in every epoch."""
    return _shuffled(*load("train", _BUNDLED))


def bundled_validation() -> tf.data.Dataset:
    """The 10,000 test images of the bundled sample, in order."""
    return _in_order(*load("t10k", _BUNDLED))


def bundled_calibration() -> tf.data.Dataset:
    """The training images of the bundled sample, in their order."""
    return _in_order(*load("train", _BUNDLED))


def _say_and_pick() -> Path:
    name, folder = source()
    print(f"Fashion-MNIST from the {name} ({folder})", file=sys.stderr)
    return folder


def _find(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}-ubyte{suffix}" for suffix in (".gz", ".xz", ""))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(path: Path, *, header: int) -> np.ndarray:
    readers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}
    raw = readers.get(path.suffix, bytes)(path.read_bytes())
    return np.frombuffer(raw, np.uint8, offset=header)


def _to_float(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return images.astype(np.float32) / np.float32(255), labels.astype(np.int64)


def _in_order(images: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(_to_float(images, labels)).batch(BATCH_SIZE)


def _shuffled(images: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    examples = tf.data.Dataset.from_tensor_slices(_to_float(images, labels))
    return examples.shuffle(len(images), seed=SHUFFLE_SEED, reshuffle_each_iteration=True).batch(BATCH_SIZE)
