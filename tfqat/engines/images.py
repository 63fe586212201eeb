"""Image files as the input of a model: colours, size, layout and numbers as the model takes them. Pillow reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfqat.engines.tensors import Tensor
from tfqat.errors import DataError
from tfqat.form import Form, Pixels

SUFFIXES = (".png", ".jpg", ".jpeg")
UNIT = Pixels(std=(255.0,))
"""Pixels as numbers from 0 to 1."""
_MODES = {None: "L", 1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's colours by the number of channels; None: a model without an axis of channels."""


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an image becomes an example.

    Attributes:
        size: (height, width) to resize to; None for a side that the model leaves free.
        channels: 1, 3 or 4; None: no axis of channels.
        channels_first: whether that axis comes first.
        dtype: of the input.
        normalization: of the pixels of an input of floats; None: it takes pixels.
    """

    size: tuple[int | None, int | None]
    channels: int | None
    channels_first: bool
    dtype: str
    normalization: Pixels | None

    def describe(self) -> str:
        """`resized to 224 x 224 (bilinear), RGB, pixels / 255`."""
        height, width = ("as it is" if side is None else str(side) for side in self.size)
        free, fixed = "in their own size", f"resized to {height} x {width} (height x width, bilinear)"
        return f"images {free if self.size == (None, None) else fixed}, {_MODES[self.channels]}, {self._numbers()}"

    def _numbers(self) -> str:
        if self.normalization is None:
            return "as uint8 pixels"
        if self.normalization == UNIT:
            return "pixels / 255"
        return f"(pixel - {_text(self.normalization.mean)}) / {_text(self.normalization.std)}"

    def read(self, path: Path) -> np.ndarray[Any, Any]:
        """One example, without a batch axis.

        Raises:
            DataError: the file is no image, or Pillow is not installed.
        """
        pixels = self._pixels(path)
        values = pixels if self.normalization is None else self.normalization.normalized(pixels)
        values = values[..., 0] if self.channels is None else values
        return np.asarray(np.moveaxis(values, -1, 0) if self.channels_first else values, self.dtype)

    def _pixels(self, path: Path) -> np.ndarray[Any, Any]:
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError(f"images are read with Pillow, which is not installed ({error}): pip install 'tfqat[images]'") from error
        try:
            with Image.open(path) as file:
                image = file.convert(_MODES[self.channels])
        except Exception as error:  # Pillow raises errors of a dozen types for a damaged file, struct's and zlib's among them
            raise DataError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from error
        height, width = (own if side is None else side for side, own in zip(self.size, (image.height, image.width), strict=True))
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels


def image_files(path: Path) -> tuple[Path, ...]:
    """An image, or the images of a folder by name; a DataError if there is none."""
    if path.is_file():
        return (path,)
    found = tuple(sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)) if path.is_dir() else ()
    if not found:
        raise DataError(f"{path} has no images; expected a folder with files that end in {', '.join(SUFFIXES)}")
    return found


def image_input(inputs: Sequence[Tensor], form: Form, normalization: Pixels | None) -> ImageInput:
    """How the model of these inputs takes images.

    Args:
        inputs: what it takes: images alone, with the batch first.
        form: of its graph.
        normalization: for an input of floats, as the training data were normalized.

    Raises:
        DataError: the model takes something else, or pixels would be normalized twice or not at all.
    """
    if len(inputs) != 1 or len(inputs[0].shape) not in (3, 4):
        raise DataError(f"the model does not take one image each, but {', '.join(map(str, inputs))}: give its inputs as an .npz file")
    (given,) = inputs
    if given.dtype == "uint8" and normalization is not None:
        raise DataError(f"the input {given} takes pixels, and the graph normalizes them: leave --mean, --std and --unit out")
    if given.dtype != "uint8" and normalization is None:
        raise DataError(
            f"the input {given} takes normalized numbers, not pixels: say how the training data were normalized, with --mean and --std, "
            "(pixel - mean) / std, or with --unit, pixel / 255"
        )
    first = len(given.shape) == 4 and (
        form.layout == "nchw" or (given.shape[3] not in _MODES and given.shape[1] is not None and given.shape[1] in _MODES)
    )
    sizes = given.shape[2:] if first else given.shape[1:3]
    channels = given.shape[1 if first else 3] if len(given.shape) == 4 else None
    if len(given.shape) == 4 and (channels is None or channels not in _MODES):
        raise DataError(f"the input {given} has {channels} channels; images have 1, 3 or 4")
    for name, values in () if normalization is None else (("mean", normalization.mean), ("std", normalization.std)):
        if len(values) not in (1, channels or 1):
            raise DataError(
                f"{name} has {len(values)} numbers for the input {given}; expected one, or one for each of {channels or 1} channels"
            )
    return ImageInput(size=(sizes[0], sizes[1]), channels=channels, channels_first=first, dtype=given.dtype, normalization=normalization)


def _text(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"
